//! How much a caller may ask for: so many requests a second, and so many at once (GCRA, by the crate governor).
//!
//! A request counts as one, and a batch as many as it has orders. Each process counts by itself, in memory: several of them allow
//! several times as much. Whoever is not asked who it is counts by its address.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use shared::shutdown::Shutdown;

use crate::auth::settings::RateConfig;
use crate::caller::Caller;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// How often those are forgotten who have not asked for long enough to have all of their quota again.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// Whose quota it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A caller, by its name.
    Caller(Arc<str>),
    /// Whoever has this address; of IPv6, the network, since a client has as many addresses of it as it likes.
    Address(IpAddr),
}

impl Payer {
    /// Who is behind a request: the caller, or where nobody is asked who they are, the address.
    #[must_use]
    pub fn of(request: &HttpRequest, caller: &Caller) -> Self {
        Self::known_or_at(caller.known_name(), request.peer_addr())
    }

    /// A caller by its name, or whoever has this address.
    #[must_use]
    pub fn known_or_at(name: Option<&Arc<str>>, address: Option<SocketAddr>) -> Self {
        match name {
            Some(name) => Self::Caller(Arc::clone(name)),
            // A socket that is closed already has no address.
            None => Self::address(address.map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.ip())),
        }
    }

    /// Whoever has this address.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// Counts.
#[derive(Debug)]
pub struct Rate {
    limiter: RateLimiter<Payer, HashMapStateStore<Payer>, DefaultClock, StateInformationMiddleware>,
    config: RateConfig,
}

/// What is left of a payer's quota, for as long as its request takes.
#[derive(Debug)]
pub struct Meter {
    payer: Payer,
    left: Cell<u32>,
    /// In seconds, when more was asked for than was left.
    wait_secs: Cell<Option<u64>>,
}

/// Why something is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// Not now.
    Now,
    /// Never: no burst is that large.
    Ever {
        /// The largest burst.
        burst: u32,
    },
}

impl Rate {
    /// As `config` says.
    #[must_use]
    pub fn new(config: RateConfig) -> Self {
        let positive = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(positive(config.limit)).allow_burst(positive(config.burst));
        let limiter = RateLimiter::hashmap_with_clock(quota, DefaultClock::default());
        Self { limiter: limiter.with_middleware(), config }
    }

    /// Counts one request of `payer`. What is left of its quota is known either way.
    pub fn request(&self, payer: Payer) -> (Meter, Result<(), TooMuch>) {
        let meter = Meter { payer, left: Cell::new(0), wait_secs: Cell::new(None) };
        let counted = self.more(&meter, 1);
        (meter, counted)
    }

    /// Counts so many orders of a request that counts as one already.
    ///
    /// # Errors
    /// When that is too much; then none of them is counted.
    pub fn orders(&self, meter: &Meter, count: usize) -> Result<(), TooMuch> {
        let burst = self.config.burst;
        let count = u32::try_from(count).ok().filter(|count| *count <= burst).ok_or(TooMuch::Ever { burst })?;
        self.more(meter, count.saturating_sub(1))
    }

    fn more(&self, meter: &Meter, count: u32) -> Result<(), TooMuch> {
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        match self.limiter.check_key_n(&meter.payer, count) {
            Ok(Ok(state)) => {
                meter.left.set(state.remaining_burst_capacity());
                Ok(())
            }
            Ok(Err(not_until)) => {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                meter.wait_secs.set(Some(secs_up(wait).max(1)));
                Err(TooMuch::Now)
            }
            Err(_) => Err(TooMuch::Ever { burst: self.config.burst }),
        }
    }

    /// Says in an answer how much there is, how much is left of it and in how many seconds all of it is there again; and when to come back, if it
    /// was too much.
    pub fn tell(&self, meter: &Meter, headers: &mut HeaderMap) {
        let left = meter.left.get();
        let missing = u64::from(self.config.burst.saturating_sub(left));
        headers.insert(LIMIT, self.config.burst.into());
        headers.insert(REMAINING, left.into());
        headers.insert(RESET, missing.div_ceil(u64::from(self.config.limit.max(1))).into());
        if let Some(wait) = meter.wait_secs.get() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
        }
    }

    /// Forgets those who have all of their quota again, until the shutdown.
    pub async fn keep_forgetting(self: Arc<Self>, shutdown: Shutdown) {
        while shutdown.sleep(FORGET_EVERY).await {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

fn secs_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(limit: u32, burst: u32) -> Rate {
        Rate::new(RateConfig { limit, burst })
    }

    fn payer(name: &str) -> Payer {
        Payer::Caller(name.into())
    }

    fn told(rate: &Rate, meter: &Meter) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        rate.tell(meter, &mut headers);
        let text =
            |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().expect("text").to_owned());
        let mut told: Vec<_> = headers.iter().map(text).collect();
        told.sort();
        told
    }

    #[test]
    fn a_batch_counts_its_orders_or_nothing() {
        let rate = rate(1, 10);
        let (meter, counted) = rate.request(payer("a"));
        assert_eq!(counted, Ok(()));
        assert_eq!(rate.orders(&meter, 1), Ok(()));
        assert_eq!(rate.orders(&meter, 6), Ok(()));
        assert_eq!(meter.left.get(), 4);
        assert_eq!(rate.orders(&meter, 9), Err(TooMuch::Now));
        assert_eq!(rate.orders(&meter, 11), Err(TooMuch::Ever { burst: 10 }));
        assert_eq!(rate.orders(&meter, usize::MAX), Err(TooMuch::Ever { burst: 10 }));
        let told = told(&rate, &meter);
        let wait: u64 = told[3].1.parse().expect("seconds");
        let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"]);
        assert_eq!([&told[0].1, &told[1].1, &told[2].1], ["10", "4", "6"]);
        assert!((1..=4).contains(&wait), "{wait}");
    }

    #[test]
    fn each_payer_has_its_own_quota() {
        let rate = rate(1, 2);
        let count = |name| (0..10).filter(|_| rate.request(payer(name)).1.is_ok()).count();
        assert_eq!([count("a"), count("b")], [2, 2]);
        assert_eq!(rate.limiter.len(), 2);
        rate.limiter.retain_recent();
        assert_eq!(rate.limiter.len(), 2, "they have used something");
    }

    #[test]
    fn those_who_have_all_of_their_quota_are_forgotten() {
        let rate = rate(1_000_000, 2);
        assert_eq!(rate.request(payer("a")).1, Ok(()));
        // A microsecond later.
        let start = std::time::Instant::now();
        while !rate.limiter.is_empty() {
            rate.limiter.retain_recent();
            assert!(start.elapsed() < Duration::from_mins(1), "never forgotten");
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| Payer::address(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("127.0.0.1"), of("127.0.0.2"));
        assert_eq!(of("::ffff:127.0.0.1"), of("127.0.0.1"));
    }
}
