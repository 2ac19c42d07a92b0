//! Names the transactions that stay open for long, and the replication slots that stand still. They delay no event but their own, but they keep Postgres from cleaning up, and
//! partitions from being dropped; and whoever waits for an event of theirs wants to know whose it is.

mod slots;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use shared::db::Database;
use shared::shutdown::Shutdown;
use sqlx::PgConnection;

use crate::metrics::Upkeep;
use crate::outbox::holders::{OpenTransaction, names_holders, open_transactions, sees_other_users};
use crate::outbox::slots::{ReplicationSlot, replication_slots};

use slots::Slots;

/// Between two lines on the same transaction.
const AGAIN: Duration = Duration::from_mins(5);

/// Transactions younger than that are not looked at: under load there is always one.
const AGE_MIN: Duration = Duration::from_secs(1);

/// Who looks, and for what.
#[derive(Debug, Clone)]
pub struct Watch {
    /// This relay's name.
    pub relay: String,
    /// How old a transaction must be to be named, and for how long a slot must have stood still.
    pub age: Duration,
}

/// Looks until the shutdown is asked for. Every relay sets the gauges; the one that holds lane 0 names the holders in its log, so that
/// each is named once, however many relays run. When that lane is just changing hands, two of them may, or none for one look.
pub async fn watch(database: Database, watch: Watch, metrics: Upkeep, shutdown: Shutdown) {
    let interval = (watch.age / 4).clamp(Duration::from_secs(1), Duration::from_secs(10));
    let (mut known, mut slots) = (Known::default(), Slots::default());
    let mut told_blind = false;
    loop {
        // A failure is that of the whole connection, which the worker logs.
        let seen = database.with(async |connection| look(connection, &watch.relay, &mut told_blind).await).await;
        if let Ok(seen) = seen {
            metrics.oldest_transaction_age.set(seen.open.first().map_or(0.0, |oldest| oldest.age_secs));
            slots::measure(&seen.slots, &metrics);
            if seen.names {
                let old = seen.open.into_iter().filter(|open| open.age_secs >= watch.age.as_secs_f64()).collect();
                for line in known.update(old, Instant::now()) {
                    log(&line);
                }
                slots.update(seen.slots, watch.age, Instant::now()).iter().for_each(slots::log);
            } else {
                // Whoever names them now begins anew.
                (known, slots) = (Known::default(), Slots::default());
            }
        }
        if !shutdown.sleep(interval).await {
            return;
        }
    }
}

/// What one look has found.
struct Seen {
    open: Vec<OpenTransaction>,
    slots: Vec<ReplicationSlot>,
    /// Whether it is for this relay to name them.
    names: bool,
}

async fn look(connection: &mut PgConnection, relay: &str, told_blind: &mut bool) -> Result<Seen, sqlx::Error> {
    if !*told_blind && !sees_other_users(connection).await? {
        *told_blind = true;
        tracing::warn!(
            "transactions of other users that stay open cannot be named: let an administrator run `GRANT pg_read_all_stats TO outrider_relay`"
        );
    }
    Ok(Seen {
        names: names_holders(connection, relay).await?,
        slots: replication_slots(connection).await?,
        open: open_transactions(connection, AGE_MIN).await?,
    })
}

/// What tells one transaction from another: its session and beginning, or its name.
type Id = (Option<i32>, Option<String>, DateTime<Utc>);

/// Transactions that were logged and not yet seen to end.
#[derive(Debug, Default)]
struct Known(HashMap<Id, (OpenTransaction, Instant)>);

#[derive(Debug, PartialEq)]
enum Line {
    Open(OpenTransaction),
    Gone(OpenTransaction),
}

impl Known {
    /// What is to be logged, now that these transactions are old: those that are new to us or were logged long ago, and those that are gone.
    fn update(&mut self, old: Vec<OpenTransaction>, now: Instant) -> Vec<Line> {
        let mut before = std::mem::take(&mut self.0);
        let mut lines = Vec::new();
        for transaction in old {
            let id = (transaction.pid, transaction.gid.clone(), transaction.since);
            let logged = before.remove(&id).map(|(_, logged)| logged);
            let due = logged.is_none_or(|logged| now.duration_since(logged) >= AGAIN);
            if due {
                lines.push(Line::Open(transaction.clone()));
            }
            self.0.insert(id, (transaction, logged.filter(|_| !due).unwrap_or(now)));
        }
        lines.extend(before.into_values().map(|(transaction, _)| Line::Gone(transaction)));
        lines
    }
}

fn log(line: &Line) {
    match line {
        Line::Open(open) => tracing::warn!(
            db.session.pid = open.pid,
            db.transaction.gid = open.gid,
            db.session.application = open.application,
            db.session.user = open.user,
            db.session.database = open.database,
            db.session.state = open.state,
            db.transaction.holds = open.holds,
            db.transaction.age_secs = whole_secs(open.age_secs),
            "a transaction stays open: its own events wait for it, and Postgres cannot clean up behind it"
        ),
        Line::Gone(open) => tracing::info!(
            db.session.pid = open.pid,
            db.transaction.gid = open.gid,
            db.session.application = open.application,
            db.transaction.age_secs = whole_secs(open.age_secs),
            "the transaction that stayed open has ended"
        ),
    }
}

/// Seconds for people.
#[expect(clippy::cast_possible_truncation, reason = "seconds of a transaction are far below 2^63")]
fn whole_secs(secs: f64) -> i64 {
    secs as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(pid: i32, since: i64) -> OpenTransaction {
        OpenTransaction {
            pid: Some(pid),
            gid: None,
            application: Some("psql".to_owned()),
            user: Some("me".to_owned()),
            database: Some("shop".to_owned()),
            state: Some("idle in transaction".to_owned()),
            holds: "a snapshot".to_owned(),
            since: DateTime::from_timestamp(since, 0).unwrap(),
            age_secs: 60.0,
        }
    }

    #[test]
    fn a_transaction_is_logged_when_it_appears_now_and_then_and_when_it_is_gone() {
        let (mut known, start) = (Known::default(), Instant::now());
        let one = transaction(1, 10);
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(known.update(vec![one.clone()], start), [Line::Open(one.clone())]);
        assert_eq!(known.update(vec![one.clone()], after(299)), []);
        assert_eq!(known.update(vec![one.clone()], after(300)), [Line::Open(one.clone())]);
        assert_eq!(known.update(vec![one.clone()], after(599)), []);
        assert_eq!(known.update(vec![], after(600)), [Line::Gone(one)]);
        assert_eq!(known.update(vec![], after(601)), []);
    }

    #[test]
    fn the_next_transaction_of_a_session_is_another_one() {
        let (mut known, start) = (Known::default(), Instant::now());
        let (one, next) = (transaction(1, 10), transaction(1, 20));
        known.update(vec![one.clone()], start);
        assert_eq!(known.update(vec![next.clone()], start), [Line::Open(next), Line::Gone(one)]);
    }
}
