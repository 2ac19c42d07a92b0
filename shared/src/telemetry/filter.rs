//! What is logged, which can be changed while the process runs.

use std::sync::OnceLock;

use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::{ConfigError, Env};

/// What is logged unless `RUST_LOG` says otherwise. What actix finds wrong with a connection is its client's doing, and an error in our
/// log for each would let anybody fill that.
const DEFAULT: &str = "info,actix_http=off";

static CHANGEABLE: OnceLock<Changeable> = OnceLock::new();

struct Changeable {
    /// As it was when the process began.
    initial: String,
    handle: Handle<EnvFilter, Registry>,
}

/// The filter of the process, as `RUST_LOG` says.
pub(super) fn from_env(env: &Env) -> Result<reload::Layer<EnvFilter, Registry>, ConfigError> {
    let initial = env.var("RUST_LOG").unwrap_or(DEFAULT).to_owned();
    let filter = EnvFilter::try_new(&initial).map_err(|error| ConfigError::new("RUST_LOG", error.to_string()))?;
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
    let filter = EnvFilter::try_new(wanted).map_err(|error| error.to_string())?;
    changeable.handle.reload(filter).map_err(|error| error.to_string())?;
    tracing::info!(filter = wanted, "what is logged was changed");
    Ok(())
}
