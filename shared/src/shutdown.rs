//! Shutdown in two steps: a soft request, at which a service stops taking work and finishes what it has, and a hard end, when
//! the deadline is over or a second signal came.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Handed to whatever must know that the service is ending. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for it: stop taking work, finish what is under way.
    pub fn request(&self) {
        self.soft.cancel();
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Resolves when it is asked for.
    pub async fn requested(&self) {
        self.soft.cancelled().await;
    }

    /// Waits for `duration`, or less if the shutdown is asked for meanwhile. Returns whether to go on.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.soft.cancelled() => false,
        }
    }
}

/// Listens for SIGTERM and SIGINT from now on. The first one asks for the shutdown; when `deadline` is over after that, or at a
/// second signal, the process ends at once with exit code 1: what was not finished is repeated after the next start.
///
/// # Errors
/// When the process may not install signal handlers.
pub fn listen(shutdown: Shutdown, deadline: Duration) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, deadline_secs = deadline.as_secs(), "shutting down");
        shutdown.request();
        tokio::select! {
            name = either(&mut terminate, &mut interrupt) => tracing::warn!(signal = name, "second signal, ending at once"),
            () = tokio::time::sleep(deadline) => tracing::error!("shutdown did not finish before its deadline, ending at once"),
        }
        std::process::exit(1);
    });
    Ok(())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
