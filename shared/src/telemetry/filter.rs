//! What is logged, which can be changed while the process runs.

use std::sync::OnceLock;

use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::{ConfigError, Env};

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT: &str = "info";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What the targets of our own code begin with.
const OURS: [&str; 7] = ["api", "outrider_api", "outrider_processor", "outrider_relay", "processor", "relay", "shared"];

static CHANGEABLE: OnceLock<Changeable> = OnceLock::new();

struct Changeable {
    /// As it was when the process began.
    initial: String,
    handle: Handle<EnvFilter, Registry>,
}

/// The filter of the process, as `RUST_LOG` says.
pub(super) fn from_env(env: &Env) -> Result<reload::Layer<EnvFilter, Registry>, ConfigError> {
    let initial = env.var("RUST_LOG").unwrap_or(DEFAULT).to_owned();
    let filter = parse(&initial).map_err(|error| ConfigError::new("RUST_LOG", error))?;
    let (layer, handle) = reload::Layer::new(filter);
    let _ = CHANGEABLE.set(Changeable { initial, handle });
    Ok(layer)
}

/// The directives in force, in the form of `RUST_LOG`; none in a process that does not log.
#[must_use]
pub fn current() -> Option<String> {
    CHANGEABLE.get()?.handle.with_current(ToString::to_string).ok()
}

/// Puts other directives in force, in the form of `RUST_LOG`; those that the process began with, if there are none in `directives`.
///
/// # Errors
/// When they cannot be understood: then nothing has changed.
pub fn change(directives: &str) -> Result<(), String> {
    let Some(changeable) = CHANGEABLE.get() else { return Err("this process does not log".to_owned()) };
    let wanted = match directives.trim() {
        "" => changeable.initial.as_str(),
        wanted => wanted,
    };
    let filter = parse(wanted)?;
    // Before: afterwards it might not be logged.
    tracing::info!(filter = wanted, "what is logged is changed");
    changeable.handle.reload(filter).map_err(|error| error.to_string())
}

/// Reads directives in the form of `RUST_LOG`, and refuses what would silence everything by mistake: a word that is no level is a target to
/// tracing, and nothing is logged but that. Errors are always logged.
fn parse(directives: &str) -> Result<EnvFilter, String> {
    let mut kept = Vec::new();
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        kept.push(check(directive)?);
    }
    if !kept.iter().any(|directive| is_level(directive)) {
        kept.push("error".to_owned());
    }
    EnvFilter::builder().parse(kept.join(",")).map_err(|error| error.to_string())
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level))
}

/// One directive, with errors in place of nothing.
fn check(directive: &str) -> Result<String, String> {
    let is_off = |word: &str| word.eq_ignore_ascii_case("off");
    let (target, level) = match directive.rsplit_once('=') {
        // A field of a span may have an equals sign too.
        Some((target, level)) if !level.contains(']') => (target, Some(level)),
        _ => (directive, None),
    };
    let name = target.split('[').next().unwrap_or(target);
    let is_ours = OURS.contains(&name.split("::").next().unwrap_or(name));
    match level {
        None if is_off(directive) => Ok("error".to_owned()),
        None if is_level(directive) || is_ours || target.starts_with('[') => Ok(directive.to_owned()),
        None => Err(format!("'{directive}' is neither a level ({}) nor a part of this program", LEVELS.join(", "))),
        Some(level) if !is_level(level) => Err(format!("'{level}' is no level: use {}", LEVELS.join(", "))),
        Some(_) if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_:-.".contains(letter)) => {
            Err(format!("'{target}' is no target: separate directives by commas, as in info,relay=debug"))
        }
        Some(level) if is_ours && is_off(level) => Ok(format!("{target}=error")),
        Some(_) => Ok(directive.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_silence_everything_is_refused() {
        for wrong in
            ["warning", "verbose", "info;relay=debug", "relay=loud", "INFO WARN", "relay debug", "info,nothing"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            parse("warning").unwrap_err(),
            "'warning' is neither a level (off, error, warn, info, debug, trace) nor a part of this program"
        );
    }

    #[test]
    fn errors_are_always_logged() {
        for (given, expected) in [
            ("info,actix_http=off", "actix_http=off,info"),
            ("off", "error"),
            ("relay=off,sqlx=off", "relay=error,sqlx=off,error"),
            ("debug,rdkafka=info", "rdkafka=info,debug"),
            ("relay", "relay=trace,error"),
            ("relay::lanes=DEBUG", "relay::lanes=debug,error"),
            ("", "error"),
        ] {
            let parsed = parse(given).unwrap_or_else(|error| panic!("{given}: {error}")).to_string();
            let sorted = |text: &str| {
                let mut parts: Vec<String> = text.split(',').map(str::to_owned).collect();
                parts.sort();
                parts
            };
            assert_eq!(sorted(&parsed), sorted(expected), "{given}");
        }
    }
}
