//! Whether the sequence gives out the ids of the outbox in the order in which they are asked for.
//!
//! The order of one aggregate's events rests on that. Postgres lets an administrator change it in silence, so it is looked at.

use std::fmt;

use sqlx::PgConnection;

/// The settings and the state of `outbox_id_seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdSequence {
    /// Ids that a connection takes at once.
    pub cache: i64,
    /// From one id to the next.
    pub increment: i64,
    /// Whether it begins again after its last id.
    pub cycles: bool,
    /// The last id that it gave out; 0 for none.
    pub last_id: i64,
    /// The highest id in the outbox or in a cursor; 0 for none.
    pub highest_id: i64,
}

/// What is wrong with the sequence, and the statement that mends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceFault {
    /// Its settings are not those of the migration.
    #[error("the sequence outbox_id_seq {faults}, so events would be published out of order: run `{}`", MEND_SETTINGS)]
    Settings {
        /// What of it.
        faults: SettingFaults,
    },
    /// It was set back: ids are given out a second time.
    #[error(
        "the sequence outbox_id_seq stands at {last_id}, below the highest id {highest_id} of the outbox and the cursors: new events would be \
         taken for old ones. Stop the writers and run `SELECT setval('outbox_id_seq', {highest_id})`"
    )]
    Behind {
        /// [`IdSequence::last_id`].
        last_id: i64,
        /// [`IdSequence::highest_id`].
        highest_id: i64,
    },
}

const MEND_SETTINGS: &str = "ALTER SEQUENCE outbox_id_seq CACHE 1 INCREMENT 1 NO CYCLE";

/// Settings that the sequence must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingFaults(IdSequence);

impl fmt::Display for SettingFaults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(IdSequence { cache, increment, cycles, .. }) = self;
        write!(formatter, "has CACHE {cache} INCREMENT {increment} {}", if *cycles { "CYCLE" } else { "NO CYCLE" })
    }
}

impl IdSequence {
    /// What is wrong with it.
    ///
    /// # Errors
    /// A fault, if there is one.
    pub const fn check(self) -> Result<(), SequenceFault> {
        let Self { cache, increment, cycles, last_id, highest_id } = self;
        if cache != 1 || increment != 1 || cycles {
            return Err(SequenceFault::Settings { faults: SettingFaults(self) });
        }
        if last_id < highest_id {
            return Err(SequenceFault::Behind { last_id, highest_id });
        }
        Ok(())
    }
}

/// Looks at the sequence. A row that the statement sees has its id from before the statement, so the sequence is never behind by chance.
///
/// # Errors
/// What the database says.
pub async fn id_sequence(connection: &mut PgConnection) -> Result<IdSequence, sqlx::Error> {
    // The highest id of each lane is the end of its range of (lane, id).
    sqlx::query_as!(
        IdSequence,
        r#"-- id_sequence
        SELECT p.seqcache AS cache, p.seqincrement AS increment, p.seqcycle AS cycles,
            CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END AS "last_id!",
            greatest((SELECT max(l.position) FROM relay_lanes l), (
                SELECT max(newest.id) FROM relay_lanes l CROSS JOIN LATERAL (
                    SELECT o.id FROM outbox o WHERE o.lane = l.lane ORDER BY o.id DESC LIMIT 1
                ) newest
            ), 0) AS "highest_id!"
        FROM pg_sequence p, outbox_id_seq s WHERE p.seqrelid = 'outbox_id_seq'::regclass"#
    )
    .fetch_one(connection)
    .await
}
