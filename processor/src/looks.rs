//! When a partition's worker looks at the keys that wait, and what it does then.

use std::time::Duration;

use shared::backoff::Backoff;
use shared::db::MaybePostgres;
use shared::throttle::Throttle;
use tokio::time::Instant;

use crate::apply::{ApplyError, Constraints};
use crate::key_work::KEYS_MAX;
use crate::partition::Shop;
use crate::record::Partition;
use crate::store::requests;

mod turns;

use turns::{LOOK_MAX, LOOK_MIN, Turns};

/// First wait after a look that failed, before jitter.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// The looks of one worker.
#[derive(Debug)]
pub(crate) struct Looks {
    turns: Turns,
    backoff: Backoff,
    /// Keys, and requests, that are tried in one transaction.
    ///
    /// Mostly [`KEYS_MAX`]. A handler's error that says nothing of any event (its database is away, a table or a grant is missing) rolls
    /// all of them back, and those longest due would be tried first for ever. So the next ones are fewer, down to one; and what
    /// fails by itself makes way.
    keys_max: u16,
    log: Throttle,
}

/// By how much fewer keys are tried after a failure.
const NARROWER: u16 = 8;

/// A look that failed.
struct Stuck {
    /// Whether that was over a dry run.
    is_dry_run: bool,
    error: ApplyError,
}

/// What a look has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    /// The worker goes on, whether it went well or not.
    GoOn,
    /// The position was moved by somebody else.
    Fenced,
}

impl Looks {
    /// The first one is due at once: keys may wait that another processor has blocked.
    pub(crate) fn new(retry_max: Duration) -> Self {
        Self {
            turns: Turns::new(Instant::now()),
            backoff: Backoff::new(FIRST_RETRY, retry_max),
            keys_max: KEYS_MAX,
            log: Throttle::new(),
        }
    }

    /// Whether one is due.
    pub(crate) fn is_time(&self) -> bool {
        Instant::now() >= self.turns.among_batches
    }

    /// Waits, where there are no records to work on, until one is due.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep_until(self.turns.idle).await;
        self.turns.among_batches = self.turns.idle;
    }

    /// Has the next one come as soon as it may.
    pub(crate) fn soon(&mut self) {
        self.turns.soon();
    }

    /// Looks, and tries the keys that are due. What fails here is tried again later; batches go on meanwhile.
    pub(crate) async fn look(&mut self, shop: &Shop, partition: &Partition, position: i64) -> Looked {
        let started = Instant::now();
        let outcome = shop.applier.database.watch().bound(work(shop, partition, position, self.keys_max)).await;
        let ended = Instant::now();
        match outcome {
            Ok(wait) => {
                self.backoff.reset();
                self.keys_max = self.keys_max.saturating_mul(2).min(KEYS_MAX);
                self.turns.looked(started, ended, wait);
                Looked::GoOn
            }
            Err(Stuck { error: ApplyError::Fenced, .. }) => Looked::Fenced,
            Err(Stuck { error, is_dry_run }) => {
                let delay = self.backoff.random_delay().max(LOOK_MIN);
                self.turns.failed(ended, delay);
                shop.metrics.retries.inc();
                if let Some(others) = self.log.pass("not tried") {
                    tracing::warn!(
                        messaging.destination.name = &*partition.topic,
                        messaging.destination.partition.id = partition.number,
                        attempt = self.backoff.attempts(),
                        keys_max = self.keys_max,
                        retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                        error = %error,
                        others_since_the_last = others,
                        "keys not tried"
                    );
                }
                if self.keys_max > 1 {
                    self.keys_max = (self.keys_max / NARROWER).max(1);
                } else {
                    let way = (shop.retry_max, &*error.to_string());
                    // While the database is away this fails as well, and there is nothing to make way for.
                    let given = shop.applier.give_way(partition, position, is_dry_run, way);
                    if shop.applier.database.watch().bound(given).await.is_ok() {
                        self.turns.failed(ended, LOOK_MIN);
                    }
                }
                Looked::GoOn
            }
        }
    }
}

impl<E: Into<ApplyError>> From<E> for Stuck {
    fn from(error: E) -> Self {
        Self { is_dry_run: false, error: error.into() }
    }
}

impl MaybePostgres for Stuck {
    fn postgres(&self) -> Option<&sqlx::Error> {
        self.error.postgres()
    }
}

/// One look. Returns how long the next one can wait.
async fn work(shop: &Shop, partition: &Partition, position: i64, keys_max: u16) -> Result<Duration, Stuck> {
    let applier = &shop.applier;
    let due = requests::due(&mut *applier.database.acquire().await?, &applier.group, partition).await?;
    if due.is_rehearsed {
        let rehearsed = applier.rehearse(partition, position, keys_max).await;
        rehearsed.map_err(|error| Stuck { is_dry_run: true, error })?;
    }
    if !due.is_requested && due.key != Some(Duration::ZERO) {
        return Ok(due.key.unwrap_or(LOOK_MAX).clamp(LOOK_MIN, LOOK_MAX));
    }
    let tally = match applier.work_keys(partition, position, Constraints::AsDeclared, keys_max).await {
        // Once more, to find out which event it is.
        Err(ApplyError::Deferred(_)) => {
            applier.work_keys(partition, position, Constraints::CheckedEarly, keys_max).await?
        }
        // An unknown outcome needs no finding out: whatever waits still is in the database.
        other => other?,
    };
    shop.metrics.count(&tally);
    if tally.keys_parked > 0 {
        tracing::warn!(
            messaging.destination.name = &*partition.topic,
            messaging.destination.partition.id = partition.number,
            count = tally.keys_parked,
            "keys given up: see blocked_keys"
        );
    }
    // The next part of a long key, or more keys than one transaction may try, are due now; batches have their turn in between. Keys that
    // become due meanwhile wait until a look is worth its transaction: else, with a failure in most batches, there would be one a batch.
    let more = tally.keys_resumed > 0 || tally.keys_tried >= usize::from(keys_max);
    Ok(if more { Duration::ZERO } else { LOOK_MIN })
}
