//! A test kit for handlers: gives them events through the processor's own transactions, on a real Postgres and without Kafka.
//!
//! What a [`TestKit`] does to the database is what a processor would do: position, inbox, effects and dead letters commit together.
//! Only the records come from the test instead of from a broker.
//!
//! ```no_run
//! # use processor::handler::{EventHandler, Handled, HandlerError};
//! # use processor::record::Event;
//! # use processor::testing::{TestEvent, TestKit};
//! # struct CountVisits;
//! # impl EventHandler for CountVisits {
//! #     async fn handle(&self, _: &[Event<'_>], _: &mut sqlx::PgConnection) -> Result<Handled, HandlerError> { Ok(Handled::default()) }
//! # }
//! # async fn test(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut kit = TestKit::new(pool).await?.handler("page.visited", CountVisits);
//! let visits = [
//!     TestEvent::new("page.visited", "home", 1).json(&serde_json::json!({"by": "alice"})),
//!     TestEvent::new("page.visited", "home", 2).json(&serde_json::json!({"by": "bob"})),
//! ];
//! assert_eq!(kit.apply(&visits).await?.applied, 2);
//! // Kafka may deliver everything twice; the effects must not show it.
//! assert_eq!(kit.redeliver().await?.repeated, 2);
//! assert!(kit.waiting().await?.is_empty());
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use shared::db::{Database, MIGRATOR, PooledConnection, ServerWatch};
use shared::spans::Spans;
use sqlx::migrate::MigrateError;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::apply::{Applier, ApplyError, Constraints};
use crate::batch::Batch;
use crate::handler::{EventHandler, Handlers};
use crate::key_work::KEYS_MAX;
use crate::metrics::{Metrics, Tally};
use crate::record::{Partition, Record};
use crate::retry::Schedule;
use crate::store::Share;
use crate::store::letters::Page;

pub use event::TestEvent;
pub use waiting::{Waiting, WaitingState};

mod event;
mod waiting;

/// So long a key that failed waits at most if nobody has it tried: no test takes as long.
const HOURS: Duration = Duration::from_hours(24);

/// Transactions in one [`TestKit::retry_now`]: with batches of a thousand records, a key of a million.
const ROUNDS_MAX: usize = 1_000;

/// Gives events to handlers as a processor does, from one partition. Each kit is a consumer group of its own.
#[derive(Debug)]
pub struct TestKit {
    applier: Applier,
    partition: Partition,
    position: Option<i64>,
    next_offset: i64,
    delivered: Vec<Record>,
}

/// Why something could not be done; not for what a handler refuses.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The schema of the processor does not apply.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The database does not answer, or not with this.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The batch was rolled back: nothing of it is left. A processor would try it again; [`TestKit::redeliver`] does.
    #[error("rolled back: {0}")]
    RolledBack(String),
}

/// What came of the events of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Given to their handler, and taken.
    pub applied: usize,
    /// Of those: without effect, as the handler says.
    pub superseded: usize,
    /// Known from before, and not given to a handler again.
    pub repeated: usize,
    /// Of a type without a handler.
    pub passed_over: usize,
    /// Put into the dead letters: failed, or behind an event of their key that did.
    pub set_aside: usize,
    /// Keys that wait no more.
    pub unblocked: usize,
}

impl TestKit {
    /// A kit on the database of `pool`, whose login owns it. Applies the migrations that are missing.
    ///
    /// # Errors
    /// When they do not apply.
    pub async fn new(pool: PgPool) -> Result<Self, KitError> {
        MIGRATOR.run(&pool).await?;
        let group = format!("testing-{}", Uuid::now_v7().simple());
        // Nothing is tried again unless the test says so.
        let schedule = Schedule { first: HOURS, max: HOURS, attempts_max: 10, age_max: 10 * HOURS };
        let page = Page { rows_max: 1_000, bytes_max: 8 << 20 };
        let handlers = Handlers::default();
        let (spans, metrics) = (Spans::default(), Metrics::default());
        let applier = Applier {
            database: Database::new(pool, ServerWatch::default()),
            group: group.into(),
            handlers,
            schedule,
            page,
            failpoint: None,
            spans,
            metrics,
        };
        let partition = Partition { topic: Arc::from("testing"), number: 0 };
        Ok(Self { applier, partition, position: None, next_offset: 0, delivered: Vec::new() })
    }

    /// Gives events of `event_type` to `handler`.
    #[must_use]
    pub fn handler(mut self, event_type: impl Into<String>, handler: impl EventHandler) -> Self {
        self.applier.handlers.insert(event_type, handler);
        self
    }

    /// After so many attempts at an event its key is parked; 10 unless this says otherwise.
    #[must_use]
    pub const fn attempts_max(mut self, attempts: u32) -> Self {
        self.applier.schedule.attempts_max = attempts;
        self
    }

    /// Delivers events as one batch.
    ///
    /// # Errors
    /// When the batch was rolled back, and with it all of its effects.
    pub async fn apply(&mut self, events: &[TestEvent]) -> Result<Applied, KitError> {
        let records = events.iter().map(TestEvent::record).collect();
        self.deliver(records).await
    }

    /// Delivers all events of this kit so far once more, as one batch and at new places of the partition, as a producer does that
    /// was not sure of its success.
    ///
    /// # Errors
    /// As for [`TestKit::apply`].
    pub async fn redeliver(&mut self) -> Result<Applied, KitError> {
        let records = std::mem::take(&mut self.delivered);
        self.deliver(records).await
    }

    /// Delivers events as one batch whose commit fails, when all of its effects are written: Postgres says that the transaction has lost to
    /// another one. Nothing of it must be left, as [`TestKit::redeliver`] then shows.
    ///
    /// # Errors
    /// When the commit did not fail: nothing was to be applied.
    pub async fn apply_failing_at_commit(&mut self, events: &[TestEvent]) -> Result<(), KitError> {
        let group = Arc::clone(&self.applier.group);
        let name = group.replace('-', "_");
        // Every batch moves its position last but for its commit, at which a deferred trigger fires. Only this group's.
        let fail = format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION 'failing, as the test wants' USING ERRCODE = 'serialization_failure'; END $$;
            CREATE CONSTRAINT TRIGGER {name} AFTER INSERT OR UPDATE ON consumer_offsets DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.group_id = '{group}') EXECUTE FUNCTION {name}()"
        );
        sqlx::raw_sql(AssertSqlSafe(fail)).execute(&mut *self.connection().await?).await?;
        let outcome = self.apply(events).await;
        let mend = format!("DROP TRIGGER {name} ON consumer_offsets; DROP FUNCTION {name}()");
        sqlx::raw_sql(AssertSqlSafe(mend)).execute(&mut *self.connection().await?).await?;
        match outcome {
            Err(KitError::RolledBack(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(KitError::RolledBack("there was nothing to commit".to_owned())),
        }
    }

    /// Tries every key that waits for another attempt or for an elder once, now. Keys that are parked stay so.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retry_now(&mut self) -> Result<Applied, KitError> {
        sqlx::query!(
            r#"-- make_keys_due
            UPDATE blocked_keys SET next_attempt_at = now() WHERE group_id = $1 AND next_attempt_at IS NOT NULL"#,
            &self.applier.group,
        )
        .execute(&mut *self.connection().await?)
        .await?;
        self.work().await
    }

    /// Has what waits of a key applied, parked or not, as an operator does with `outrider dead-letters replay`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn replay(&mut self, key: &str) -> Result<Applied, KitError> {
        sqlx::query!(
            r#"-- request_replay
            INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dry_run, requested_by)
            VALUES ($1, $2, $3, $4, false, 'a test')"#,
            &self.applier.group,
            &self.partition.topic,
            self.partition.number,
            key.as_bytes(),
        )
        .execute(&mut *self.connection().await?)
        .await?;
        self.work().await
    }

    /// The keys that wait and why, in the order of the keys.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn waiting(&self) -> Result<Vec<Waiting>, KitError> {
        Ok(waiting::waiting(&mut *self.connection().await?, &self.applier.group).await?)
    }

    async fn connection(&self) -> Result<PooledConnection, sqlx::Error> {
        self.applier.database.acquire().await
    }

    /// Delivers records at the next places of the partition. Those count as delivered, whatever comes of it.
    async fn deliver(&mut self, mut records: Vec<Record>) -> Result<Applied, KitError> {
        for record in &mut records {
            record.offset = self.next_offset;
            self.next_offset += 1;
        }
        let batch = Batch::read(&records, &self.applier.handlers);
        let next = records.last().map(|record| record.offset + 1);
        let share = Share { partition: &self.partition, position: self.position };
        let apply = async |constraints| self.applier.apply(&[share], &batch, constraints).await;
        let outcome = match apply(Constraints::AsDeclared).await {
            // As the partition's worker does: the second attempt finds out which event violates the deferred constraint.
            Err(ApplyError::Deferred(_)) => apply(Constraints::CheckedEarly).await,
            outcome => outcome,
        };
        self.delivered.extend(records);
        let tally = outcome.map_err(|error| KitError::RolledBack(error.to_string()))?;
        self.position = next.or(self.position);
        Ok(tally.into())
    }

    /// Tries keys until none is due, and carries out requests.
    async fn work(&mut self) -> Result<Applied, KitError> {
        let mut sum = Applied::default();
        // Without a position nothing was applied, and nothing waits.
        let Some(position) = self.position else { return Ok(sum) };
        for _ in 0..ROUNDS_MAX {
            let work =
                async |constraints| self.applier.work_keys(&self.partition, position, constraints, KEYS_MAX).await;
            let tally = match work(Constraints::AsDeclared).await {
                Err(ApplyError::Deferred(_)) => work(Constraints::CheckedEarly).await,
                outcome => outcome,
            };
            let tally = tally.map_err(|error| KitError::RolledBack(error.to_string()))?;
            sum.applied += tally.applied;
            sum.superseded += tally.superseded;
            sum.repeated += tally.repeated;
            sum.unblocked += tally.keys_unblocked;
            if tally.keys_tried == 0 {
                break;
            }
        }
        Ok(sum)
    }
}

impl From<Tally> for Applied {
    fn from(tally: Tally) -> Self {
        Self {
            applied: tally.applied,
            superseded: tally.superseded,
            repeated: tally.repeated,
            passed_over: tally.passed_over,
            set_aside: tally.dead_lettered + tally.waiting,
            unblocked: tally.keys_unblocked,
        }
    }
}
