//! A handler whose failures are rows of a table, so that a test can make and mend them, and what can be asked of its world.

use processor::Processor;
use processor::handler::{EventHandler, Failure, FailureKind, Handled, HandlerError};
use processor::record::Event;
use shared::testing::eventually;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::{Produced, Running, World, event};

/// Writes events down in the order in which it gets them, unless `fates` says otherwise.
#[derive(Clone, Copy)]
pub struct Keeper {
    /// Whether it says which events fail.
    pub names: bool,
}

impl EventHandler for Keeper {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let keys: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        let versions: Vec<i64> = events.iter().map(Event::aggregate_version).collect();
        // Written first, so that a failure has something to undo.
        sqlx::query("INSERT INTO kept (key, version) SELECT * FROM UNNEST($1::text[], $2::bigint[])")
            .bind(&keys)
            .bind(&versions)
            .execute(&mut *connection)
            .await?;
        let fates: Vec<(i64, String)> = sqlx::query_as(
            "SELECT e.place - 1, f.fate FROM UNNEST($1::text[], $2::bigint[]) WITH ORDINALITY AS e (key, version, place)
            JOIN fates f ON f.key = e.key AND f.version = e.version
            UNION ALL
            SELECT e.place - 1, 'early' FROM UNNEST($1::text[], $2::bigint[]) WITH ORDINALITY AS e (key, version, place)
            WHERE e.key LIKE 'row%' AND e.version > 1
                AND NOT EXISTS (SELECT FROM kept elder JOIN kept own ON own.key = elder.key AND own.place > elder.place
                    WHERE elder.key = e.key AND elder.version = e.version - 1 AND own.version = e.version)
            ORDER BY 1",
        )
        .bind(&keys)
        .bind(&versions)
        .fetch_all(&mut *connection)
        .await?;
        let kind = |fate: &str| match fate {
            "permanent" => FailureKind::Permanent,
            "early" => FailureKind::TooEarly,
            _ => FailureKind::Retryable,
        };
        let failed: Vec<(usize, Failure)> = fates
            .iter()
            .map(|(place, fate)| (usize::try_from(*place).expect("small"), Failure::new(kind(fate), fate)))
            .collect();
        match failed.first() {
            None => Ok(Handled::default()),
            Some(_) if self.names => Err(HandlerError::events(failed)),
            Some((_, failure)) if failure.kind == FailureKind::Permanent => {
                Err(HandlerError::permanent(&failure.reason))
            }
            Some((_, failure)) => Err(HandlerError::retryable(failure.reason.clone())),
        }
    }

    async fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        sqlx::query("INSERT INTO told (key, version, reason) VALUES ($1, $2, $3)")
            .bind(event.aggregate_id())
            .bind(event.aggregate_version())
            .bind(reason)
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Quick retries, so that a test does not wait, and so many that none is given up by chance.
pub const QUICK: [(&str, &str); 3] =
    [("PROCESSOR_RETRY_FIRST_MS", "5"), ("PROCESSOR_KEY_RETRY_MAX_MS", "20"), ("PROCESSOR_KEY_ATTEMPTS_MAX", "100000")];

/// A world with the keeper's tables.
pub async fn world(test: &str, partitions: i32) -> World {
    let world = World::new(test, partitions).await;
    world.table("kept (place bigint GENERATED ALWAYS AS IDENTITY, key text, version bigint)").await;
    world.table("fates (key text, version bigint, fate text NOT NULL, PRIMARY KEY (key, version))").await;
    world.table("told (key text, version bigint, reason text)").await;
    world
}

/// A keeper at work; `more` variables win.
pub fn start(world: &World, names: bool, more: &[(&str, &str)]) -> Running {
    let more: Vec<(&str, &str)> = QUICK.iter().chain(more).copied().collect();
    Running::start(Processor::builder(world.config(&more)).handler("kept", Keeper { names }))
}

/// An event of this key and version.
pub fn kept(key: &str, version: i64) -> Produced {
    kept_as(key, version, Uuid::now_v7())
}

/// The same with this identity.
pub fn kept_as(key: &str, version: i64, event_id: Uuid) -> Produced {
    let mut produced = event("kept", event_id, key, "{}");
    for (name, value) in &mut produced.headers {
        if *name == "aggregate_version" {
            *value = version.to_string().into_bytes();
        }
    }
    produced
}

impl World {
    /// From now on this event fails so; none: it does not.
    pub async fn fate(&self, key: &str, version: i64, fate: Option<&str>) {
        let query = match fate {
            Some(_) => "INSERT INTO fates (key, version, fate) VALUES ($1, $2, $3)",
            None => "DELETE FROM fates WHERE key = $1 AND version = $2 AND $3::text IS NULL",
        };
        let done = sqlx::query(query).bind(key).bind(version).bind(fate).execute(&self.database.pool).await;
        assert_eq!(done.expect("a fate").rows_affected(), 1);
    }

    /// Versions of a key in the order in which they were kept.
    pub async fn versions(&self, key: &str) -> Vec<i64> {
        sqlx::query_scalar("SELECT version FROM kept WHERE key = $1 ORDER BY place")
            .bind(key)
            .fetch_all(&self.database.pool)
            .await
            .expect("versions")
    }

    /// Waits until a key has been kept up to this version, in order and each once.
    pub async fn eventually_kept(&self, key: &str, version: i64) {
        let what = format!("{key} is kept up to {version}");
        eventually(&what, async || (self.versions(key).await.last() == Some(&version)).then_some(())).await;
        assert_eq!(self.versions(key).await, (1..=version).collect::<Vec<i64>>());
    }

    /// State of a blocked key; none if it is not.
    pub async fn state(&self, key: &str) -> Option<String> {
        sqlx::query_scalar("SELECT state FROM blocked_keys WHERE group_id = $1 AND topic = $2 AND record_key = $3")
            .bind(&self.group)
            .bind(&self.topic)
            .bind(key.as_bytes())
            .fetch_optional(&self.database.pool)
            .await
            .expect("a state")
    }

    /// Waits until a key is in this state.
    pub async fn eventually_state(&self, key: &str, state: Option<&str>) {
        let what = format!("{key} is {state:?}");
        eventually(&what, async || (self.state(key).await.as_deref() == state).then_some(())).await;
    }

    /// Version and reason of what waits of a key, in the order of their versions.
    pub async fn waiting(&self, key: &str) -> Vec<(i64, Option<String>)> {
        sqlx::query_as(
            "SELECT aggregate_version, reason FROM dead_letters WHERE record_key = $1 ORDER BY 1, record_offset",
        )
        .bind(key.as_bytes())
        .fetch_all(&self.database.pool)
        .await
        .expect("letters")
    }

    /// Asks for a replay of a key in this partition. Returns what came of it: applied, waiting, reason.
    pub async fn replay(&self, key: &str, partition: i32, dry_run: bool) -> (i64, i64, Option<String>) {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dry_run, requested_by)
            VALUES ($1, $2, $3, $4, $5, 'test') RETURNING id",
        )
        .bind(&self.group)
        .bind(&self.topic)
        .bind(partition)
        .bind(key.as_bytes())
        .bind(dry_run)
        .fetch_one(&self.database.pool)
        .await
        .expect("a request");
        self.answer(id).await
    }

    /// Waits for what comes of a request.
    pub async fn answer(&self, id: i64) -> (i64, i64, Option<String>) {
        eventually("the request is answered", async || {
            sqlx::query_as(
                "SELECT applied, waiting, reason FROM dead_letter_requests WHERE id = $1 AND done_at IS NOT NULL",
            )
            .bind(id)
            .fetch_optional(&self.database.pool)
            .await
            .expect("an answer")
        })
        .await
    }

    /// Checks that nothing waits, and that no key is blocked.
    pub async fn assert_nothing_waits(&self) {
        assert_eq!(self.count("SELECT count(*) FROM blocked_keys").await, 0);
        assert_eq!(self.count("SELECT count(*) FROM dead_letters").await, 0);
    }
}
