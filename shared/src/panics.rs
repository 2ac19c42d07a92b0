//! Panics are logged as everything else is, and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Of this process, whose hook there is only one of.
static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// From now on, a panic is an error in the log.
pub fn log_and_count() {
    set_hook(Box::new(|panic| {
        PANICS.inc();
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(
            code.location = panic.location().map(tracing::field::display),
            thread.name = std::thread::current().name(),
            exception.stacktrace = backtrace,
            "panicked: {}",
            message(panic)
        );
    }));
}

/// Makes their number known to `registry`.
pub fn show_in(registry: &mut Registry) {
    registry.register("outrider_panics", "Panics of the process; each has ended a task", PANICS.clone());
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    panic.payload_as_str().unwrap_or("with something that is no text")
}
