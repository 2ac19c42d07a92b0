//! Shutdown in three steps: it is announced, at which a service says that it is not ready and goes on; it is requested, at which the service stops
//! taking work and finishes what it has; and a hard end, when the deadline is over or a second signal came.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

const SIGTERM: &str = "SIGTERM";

/// Handed to whatever must know that the service is ending. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    announced: CancellationToken,
    soft: CancellationToken,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that it will be asked for: others are to take over.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Asks for it: stop taking work, finish what is under way.
    pub fn request(&self) {
        self.announce();
        self.soft.cancel();
    }

    /// Resolves when it is announced.
    pub async fn announced(&self) {
        self.announced.cancelled().await;
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

/// How long the steps take.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// From the announcement to the request: until balancers have heard that this process is not ready.
    pub drain: Duration,
    /// From the request to the hard end.
    pub deadline: Duration,
}

/// Listens for SIGTERM and SIGINT from now on. SIGTERM announces the shutdown, and asks for it when the drain delay is over; SIGINT, which a person
/// sends, asks for it at once. When the deadline is over after that, or at a further signal, the process ends at once with exit code 1: what
/// was not finished is repeated after the next start.
///
/// # Errors
/// When the process may not install signal handlers.
pub fn listen(shutdown: Shutdown, Delays { drain, deadline }: Delays) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        if name == SIGTERM && !drain.is_zero() {
            tracing::info!(
                signal = name,
                drain_secs = drain.as_secs(),
                "not ready any more, going on until balancers have heard that"
            );
            shutdown.announce();
            tokio::select! {
                _ = either(&mut terminate, &mut interrupt) => {}
                () = tokio::time::sleep(drain) => {}
            }
        }
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
        _ = terminate.recv() => SIGTERM,
        _ = interrupt.recv() => "SIGINT",
    }
}
