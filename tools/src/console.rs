//! What is shown to whoever waits: plain lines, the same on a terminal and in a file.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;

/// Why something could not be printed, of the first time that it could not.
static NOT_PRINTED: OnceLock<io::Error> = OnceLock::new();

/// Prints a line. A reader who has gone away is no reason to stop: the work goes on, ends in order, and [`not_printed`] tells.
pub fn say(line: impl Display) {
    if let Err(error) = say_or_fail(line) {
        let _ = NOT_PRINTED.set(error);
    }
}

/// Prints a line that must not be lost.
///
/// # Errors
/// When it cannot be printed.
pub fn say_or_fail(line: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Why not all that was to be printed could be.
#[must_use]
pub fn not_printed() -> Option<&'static io::Error> {
    NOT_PRINTED.get()
}

/// Asks whoever sits at the terminal; without one, nobody says yes.
///
/// # Errors
/// When the terminal cannot be read.
pub async fn confirmed(question: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut out = io::stdout();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    // In a thread of its own, which ends with the process: a signal is not to wait for the answer.
    let (answer, answered) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        let _ = answer.send(read.map(|_| line));
    });
    Ok(matches!(answered.await??.trim(), "y" | "Y" | "yes"))
}

/// A duration for people: `7 ms`, `1.2 s`.
#[must_use]
pub fn short(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// A path for people: relative to the working folder when it is inside of it.
#[must_use]
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}
