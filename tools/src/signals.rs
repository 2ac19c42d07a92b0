//! The signals that ask us to stop.

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// SIGINT, SIGTERM and SIGHUP, from now on; without this they would end us at once, our children behind us.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

/// An ordinary end that a signal has asked for, before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted(pub Signal);

impl Interrupted {
    /// The exit code that shells give to an end by a signal.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0.as_raw()).unwrap_or(1)
    }
}

impl StopSignals {
    /// Starts to listen.
    pub fn listen() -> Result<Self> {
        let listen = |kind| unix::signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }

    /// Does `work` until it is done or a signal comes; what the work has started ends with it.
    pub async fn interrupts<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            signal = self.next() => Err(Interrupted(signal).into()),
        }
    }
}
