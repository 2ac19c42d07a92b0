//! What every service's `main` does: read the configuration, start telemetry, run until done, flush, and say it by the exit code.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{ConfigError, EXIT_CONFIG, Env};
use crate::shutdown::{self, Delays, Shutdown};
use crate::{db, panics, telemetry};

/// Runs a service named `name` until it is done or shut down: `configure` reads its settings, `run` is its work.
///
/// Each service calls this in its library and not in `main.rs`: an `async fn` is compiled by the crate that polls it, so there the whole service
/// would be compiled twice.
///
/// Exit codes: 0 after an ordered shutdown, 64 for a bad setting (one line on standard error names it), 1 for anything else.
pub fn run<C>(
    name: &'static str,
    configure: impl FnOnce(&Env) -> Result<C, ConfigError>,
    run: impl AsyncFnOnce(C, Shutdown) -> anyhow::Result<()>,
) -> ExitCode {
    let prepared = Env::load().and_then(|env| {
        let config = configure(&env)?;
        let secs = |variable: &str, default| match env.var(variable) {
            None => Ok(Duration::from_secs(default)),
            Some(value) => value
                .parse()
                .map(Duration::from_secs)
                .map_err(|error| ConfigError::new(variable, format!("{error} ('{value}' given)"))),
        };
        let delays = Delays { drain: secs("SHUTDOWN_DRAIN_SECS", 0)?, deadline: secs("SHUTDOWN_TIMEOUT_SECS", 25)? };
        Ok((config, delays, env))
    });
    let (config, delays, env) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return refuse(name, &error, std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json")),
    };
    let as_json = env.var("LOG_FORMAT") == Some("json");
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        let telemetry = match telemetry::init(&env, name) {
            Ok(telemetry) => telemetry,
            Err(error) => return refuse(name, &error, as_json),
        };
        panics::log_and_count();
        tracing::info!(service.version = env!("CARGO_PKG_VERSION"), "{name} starts");
        let shutdown = Shutdown::new();
        let result = match shutdown::listen(shutdown.clone(), delays) {
            Ok(()) => run(config, shutdown.clone()).await,
            Err(error) => Err(error.into()),
        };
        let code = match result {
            Ok(()) => {
                tracing::info!("{name} has ended");
                ExitCode::SUCCESS
            }
            Err(error) => {
                // Some settings are bad only by what the servers say.
                if let Some(bad) = error.chain().find_map(|cause| cause.downcast_ref::<ConfigError>()) {
                    refuse(name, bad, as_json)
                } else {
                    tracing::error!("{name} has failed: {}", db::chain(&error));
                    ExitCode::FAILURE
                }
            }
        };
        // The exporter waits on the network; doing that on a worker thread would stall whatever still runs there.
        let _ = tokio::task::spawn_blocking(|| telemetry.flush()).await;
        code
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Says in one line what is wrong with a setting, in the form in which everything else would have been logged.
fn refuse(name: &str, error: &ConfigError, as_json: bool) -> ExitCode {
    let line = if as_json {
        let timestamp = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        serde_json::json!({"timestamp": timestamp, "level": "ERROR", "message": error.to_string(), "target": name})
            .to_string()
    } else {
        format!("{name}: {error}")
    };
    // Nobody may listen.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(EXIT_CONFIG)
}
