//! Keeps the certificate true to its files, and says when it is about to end.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::metrics::gauge::Gauge;
use shared::shutdown::Shutdown;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Tls;
use super::files::Fault;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long before its end a certificate is warned of, and how often.
const EXPIRY_NEAR: TimeDelta = TimeDelta::days(14);
const WARN_EVERY: Duration = Duration::from_hours(24);

/// Starts to watch a certificate, if there is one, and sets `expiry` to its end, in seconds since 1970. The task ends with the shutdown.
pub fn watch(tls: Option<&Tls>, expiry: &Gauge, shutdown: &Shutdown, tasks: &mut JoinSet<()>) {
    if let Some(tls) = tls {
        tasks.spawn(tls.clone().keep_watching(expiry.clone(), shutdown.clone()));
    }
}

impl Tls {
    /// Looks at the files again and again, until the shutdown. `expiry` is set to the certificate's end, in seconds since 1970.
    async fn keep_watching(self, expiry: Gauge, shutdown: Shutdown) {
        let mut faults = Faults::default();
        let mut warned = None;
        loop {
            let expires = self.expires();
            expiry.set(expires.map_or(0, |expires| expires.timestamp()));
            if warned.is_none_or(|at: Instant| at.elapsed() > WARN_EVERY) && warn_if_near(expires) {
                warned = Some(Instant::now());
            }
            if !shutdown.sleep(LOOK_EVERY).await {
                return;
            }
            let tls = self.clone();
            // The folder may be on a network, and slow.
            let Ok(look) = tokio::task::spawn_blocking(move || tls.look()).await else { continue };
            match look {
                Ok(false) => faults.over(),
                Ok(true) => {
                    faults.over();
                    warned = None;
                    let expires = self.expires().map(|expires| expires.to_rfc3339());
                    tracing::info!(tls.server.not_after = expires, "a new TLS certificate is in use");
                }
                Err(fault) => {
                    if faults.is_news(&fault) {
                        tracing::warn!(error = %fault, "the TLS certificate stays as it was: its files cannot be used");
                    }
                }
            }
        }
    }
}

fn warn_if_near(expires: Option<DateTime<Utc>>) -> bool {
    let Some(expires) = expires.filter(|expires| *expires - Utc::now() < EXPIRY_NEAR) else { return false };
    tracing::warn!(tls.server.not_after = expires.to_rfc3339(), "the TLS certificate is about to expire, or has");
    true
}

/// What was wrong at the last look. A fault is told once, and only when it has stayed for two looks: between the writing of one file and
/// the other, they do not fit.
#[derive(Default)]
struct Faults {
    last: Option<Fault>,
    told: bool,
}

impl Faults {
    fn over(&mut self) {
        *self = Self::default();
    }

    fn is_news(&mut self, fault: &Fault) -> bool {
        if self.last.as_ref() != Some(fault) {
            *self = Self { last: Some(fault.clone()), told: false };
            return false;
        }
        !std::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::files::Files;
    use super::*;

    fn missing(folder: &str) -> Fault {
        let path = Path::new("/nowhere").join(folder).join("tls.crt");
        Files { cert: path.clone(), key: path }.read().err().expect("there is no such file")
    }

    #[test]
    fn a_fault_is_told_once_when_it_has_stayed_and_again_when_it_comes_back() {
        let (first, second) = (missing("a"), missing("b"));
        let mut faults = Faults::default();
        let mut news = |fault: &Fault| faults.is_news(fault);
        assert_eq!([news(&first), news(&first), news(&first), news(&first)], [false, true, false, false]);
        assert_eq!([news(&second), news(&second), news(&second)], [false, true, false]);
        faults.over();
        let mut news = |fault: &Fault| faults.is_news(fault);
        assert_eq!([news(&second), news(&second)], [false, true]);
    }
}
