//! A limit on refused credentials by address.
//!
//! Whether an API key or a token is good costs a look at the database or a tenth of a millisecond of computing, and anybody may ask. So an
//! address whose credentials were refused too often is not asked for new ones for a moment. Credentials that this process has found good
//! lately pass: behind a proxy, all callers have one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::shutdown::Shutdown;
use tokio::time::Instant;

use super::refusal::Reason;
use super::settings::RateConfig;
use crate::rate::{Payer, Rate};

/// Refused credentials that an address may send: a second, and at once. A client whose token has expired sends a few of them, and so do all clients of a
/// proxy together when a key is replaced.
const REFUSED: RateConfig = RateConfig { limit: 20, burst: 200 };

/// How long an address that sent more is not asked.
const CLOSED_FOR: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Gate {
    refused: Arc<Rate>,
    closed: Mutex<HashMap<Payer, Instant>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { refused: Arc::new(Rate::new(REFUSED)), closed: Mutex::default() }
    }
}

impl Gate {
    /// Whether new credentials from `address` are looked at.
    ///
    /// # Errors
    /// When too many of its credentials were refused.
    pub fn check(&self, address: Option<IpAddr>) -> Result<(), Reason> {
        let Some(address) = address.map(Payer::address) else { return Ok(()) };
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match closed.get(&address) {
            Some(until) if *until > Instant::now() => Err(Reason::TooManyRefused),
            Some(_) => {
                closed.remove(&address);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Counts credentials that were refused.
    pub fn refused(&self, reason: Reason, address: Option<IpAddr>) {
        // Those cost nothing, or the sender is known, or the fault is ours.
        let is_free =
            matches!(reason, Reason::Missing | Reason::MissingScope(_) | Reason::Unavailable | Reason::TooManyRefused);
        let Some(address) = address.filter(|_| !is_free).map(Payer::address) else { return };
        if self.refused.request(address.clone()).1.is_err() {
            let now = Instant::now();
            let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
            // Each of those sent two hundred in vain a moment ago: there are never many.
            closed.retain(|_, until| *until > now);
            closed.insert(address, now + CLOSED_FOR);
        }
    }

    /// Forgets the addresses that have behaved for a while, until the shutdown.
    pub fn keep_forgetting(&self, shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        Arc::clone(&self.refused).keep_forgetting(shutdown)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn an_address_that_was_refused_too_often_is_not_asked_for_a_moment_and_others_are() {
        let gate = Gate::default();
        let [bad, other] = [1, 2].map(|last| Some(IpAddr::from(Ipv4Addr::new(192, 0, 2, last))));
        for _ in 0..REFUSED.burst {
            assert_eq!(gate.check(bad), Ok(()));
            gate.refused(Reason::UnknownKey, bad);
        }
        gate.refused(Reason::UnknownKey, bad);
        assert_eq!(gate.check(bad), Err(Reason::TooManyRefused));
        assert_eq!(gate.check(other), Ok(()));
        assert_eq!(gate.check(None), Ok(()));
        tokio::time::sleep(CLOSED_FOR + Duration::from_millis(1)).await;
        assert_eq!(gate.check(bad), Ok(()), "it may try again");
    }

    #[tokio::test]
    async fn what_costs_nothing_is_not_counted() {
        let gate = Gate::default();
        let address = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        for _ in 0..REFUSED.burst * 2 {
            gate.refused(Reason::Missing, address);
            gate.refused(Reason::Unavailable, address);
        }
        assert_eq!(gate.check(address), Ok(()));
    }
}
