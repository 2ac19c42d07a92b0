//! What is shown to whoever waits: plain lines, the same on a terminal and in a file.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::oneshot;

/// Prints a line. A reader who has gone away is no reason to stop: the work goes on, and ends in order.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Asks whoever sits at the terminal; without one, nobody says yes.
///
/// # Errors
/// When the terminal cannot be read.
pub async fn confirmed(question: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("{question} [y/N] ");
    io::stdout().flush()?;
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
