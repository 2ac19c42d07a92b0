//! What a command of several steps shows: lines for people, or events for scripts.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::console::{say, short};

/// Where what happens is shown, and how.
#[derive(Debug, Clone, Copy)]
pub enum Output {
    /// Plain lines; on a terminal, the step that is under way is named at the bottom.
    Lines {
        /// Whether somebody watches.
        terminal: bool,
    },
    /// A JSON object a line. Whatever else there is to tell goes to stderr.
    Events,
}

impl Output {
    /// As the flag `--json` says.
    #[must_use]
    pub fn new(json: bool) -> Self {
        if json { Self::Events } else { Self::Lines { terminal: io::stdout().is_terminal() } }
    }

    /// Who is told what takes long, in the middle of a step.
    #[must_use]
    pub fn announce(self) -> fn(&str) {
        match self {
            Self::Lines { .. } => |line| say(line),
            Self::Events => |line| eprintln!("{line}"),
        }
    }

    /// A line for people only.
    pub fn say(self, line: impl Display) {
        match self {
            Self::Lines { .. } => say(line),
            Self::Events => {}
        }
    }

    /// Something that happened: `line` for people, `fields` for scripts. `name` is the event's.
    pub fn tell(self, name: &str, fields: Value, line: impl Display) {
        match self {
            Self::Lines { .. } => say(line),
            Self::Events => self.event(name, fields),
        }
    }

    /// An event for scripts only.
    pub fn event(self, name: &str, mut fields: Value) {
        if let (Self::Events, Some(object)) = (self, fields.as_object_mut()) {
            object.insert("event".to_owned(), name.into());
            say(fields);
        }
    }

    /// What must not be overlooked: in bold, where that can be seen.
    pub fn headline(self, name: &str, fields: Value, line: impl Display) {
        match self {
            Self::Lines { terminal: true } if std::env::var_os("NO_COLOR").is_none() => {
                say(format_args!("\x1b[1;32m{line}\x1b[0m"));
            }
            _ => self.tell(name, fields, line),
        }
    }

    /// Does one step of a longer way, and tells its name, what came of it and how long it took. The step returns its result and a few words
    /// on it.
    pub async fn step<T>(self, name: &str, work: impl Future<Output = Result<(T, String)>>) -> Result<T> {
        let begun = Instant::now();
        self.event("step_started", json!({ "step": name }));
        if matches!(self, Self::Lines { terminal: true }) {
            // Whatever is printed next takes its place: all lines are longer than these names.
            let mut out = io::stdout();
            let _ = write!(out, "{name} …\r").and_then(|()| out.flush());
        }
        let (result, words) = work.await.with_context(|| format!("{name} failed"))?;
        let taken = begun.elapsed();
        let line = format!("{name:<15}{words:<60} {:>8}", short(taken));
        self.tell("step_done", json!({ "step": name, "detail": words, "seconds": taken.as_secs_f64() }), line);
        Ok(result)
    }
}
