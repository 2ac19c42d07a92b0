//! What is still to be published, of each lane: looked at every few seconds for the metrics, and by whoever asks how the relays are doing.

use std::time::{Duration, Instant};

use serde::Serialize;
use shared::db::{Database, words};
use shared::shutdown::Shutdown;
use sqlx::PgConnection;

use crate::metrics::BacklogGauges;
use crate::outbox::status::{self, LaneStatus, LateRows, ParkedStatus, WaitingStatus};

/// A lane's backlog is counted up to this; beyond that it is estimated. All sixteen together take a fraction of a second.
const COUNTED_MAX: i64 = 20_000;

/// Rows that are looked at for late ones.
const LATE_MAX: i64 = 50_000;

/// Between two looks for the metrics.
const INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait between two looks that take long.
const INTERVAL_MAX: Duration = Duration::from_mins(1);

/// A look takes at most this part of the time, however deep the backlog and however many relays look.
const SHARE: u32 = 200;

/// Events to publish.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Backlog {
    /// How many.
    pub rows: i64,
    /// Whether all were counted; if not, `rows` is an estimate.
    pub exact: bool,
    /// Those among them that committed behind the lane's position.
    pub late_rows: i64,
    /// How long ago the oldest of them occurred.
    pub oldest_age_secs: Option<f64>,
}

/// What a look has found.
#[derive(Debug)]
pub struct Look {
    /// All lanes, by number.
    pub lanes: Vec<LaneStatus>,
    /// What each of them has to publish.
    pub backlogs: Vec<Backlog>,
    /// The lowest id that is still to be published.
    pub lowest_id: Option<i64>,
    /// The highest id given out.
    pub last_id: i64,
    /// What waits because Kafka refuses it.
    pub parked: ParkedStatus,
    /// What waits because its topic takes no records: its lanes are beyond it, and do not count it.
    pub waiting: Vec<WaitingStatus>,
}

impl Backlog {
    /// What all lanes have to publish.
    #[must_use]
    pub fn total(backlogs: &[Self]) -> Self {
        Self {
            rows: backlogs.iter().fold(0, |rows, backlog| rows.saturating_add(backlog.rows)),
            exact: backlogs.iter().all(|backlog| backlog.exact),
            late_rows: backlogs.iter().map(|backlog| backlog.late_rows).sum(),
            oldest_age_secs: backlogs.iter().filter_map(|backlog| backlog.oldest_age_secs).reduce(f64::max),
        }
    }

    /// What a lane has to publish. If more than was counted, the rest is taken to lie as close as what was, up to the last id.
    fn of(lane: &LaneStatus, behind: &[LateRows], last_id: i64) -> Self {
        let exact = lane.rows <= COUNTED_MAX;
        let rest = match (exact, lane.oldest_id, lane.reached) {
            (false, Some(oldest), Some(reached)) => {
                let rest =
                    i128::from(lane.rows) * i128::from((last_id - reached).max(0)) / i128::from(reached - oldest + 1);
                i64::try_from(rest).unwrap_or(i64::MAX)
            }
            _ => 0,
        };
        let behind = behind.iter().find(|behind| behind.lane == lane.lane);
        let ages = [lane.oldest_age_secs, behind.map(|behind| behind.oldest_age_secs)];
        let late_rows = behind.map_or(0, |behind| behind.rows);
        Self {
            rows: lane.rows.saturating_add(rest).saturating_add(late_rows),
            exact,
            late_rows,
            oldest_age_secs: ages.into_iter().flatten().reduce(f64::max),
        }
    }
}

impl Backlog {
    /// What waits for its topic is as old as its waiting at least.
    fn with_waiting(mut self, lane: i16, waiting: &[WaitingStatus]) -> Self {
        let ages = waiting.iter().filter(|of| of.lane == lane).map(|of| of.age_secs);
        self.oldest_age_secs = self.oldest_age_secs.into_iter().chain(ages).reduce(f64::max);
        self
    }
}

/// Looks at all lanes. Bounded, whatever the backlog.
///
/// # Errors
/// What the database says.
pub async fn look(connection: &mut PgConnection) -> Result<Look, sqlx::Error> {
    let last_id = status::last_id(connection).await?;
    let lanes = status::lanes(connection, COUNTED_MAX + 1).await?;
    let late = status::late_rows(connection, LATE_MAX).await?;
    let parked = status::parked(connection).await?;
    let waiting = status::waiting(connection).await?;
    let oldest = lanes.iter().filter_map(|lane| lane.oldest_id);
    Ok(Look {
        lowest_id: oldest.chain(late.iter().map(|late| late.oldest_id)).min(),
        backlogs: lanes
            .iter()
            .map(|lane| Backlog::of(lane, &late, last_id).with_waiting(lane.lane, &waiting))
            .collect(),
        lanes,
        last_id,
        parked,
        waiting,
    })
}

/// Looks every few seconds and shows it, until the shutdown is asked for.
pub async fn watch(database: Database, gauges: BacklogGauges, shutdown: Shutdown) {
    loop {
        let begun = Instant::now();
        match database.with(look).await {
            Ok(found) => gauges.set(&found),
            // A failure is that of the whole connection, which the worker logs.
            Err(error) => tracing::debug!(error = words(&error), "the backlog was not looked at"),
        }
        if !shutdown.sleep((begun.elapsed() * SHARE).clamp(INTERVAL, INTERVAL_MAX)).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rows: i64, oldest_id: i64, reached: i64) -> LaneStatus {
        LaneStatus {
            lane: 3,
            owner: None,
            lease_secs: None,
            position: 0,
            settled_at: None,
            settled_age_secs: None,
            rows,
            reached: Some(reached),
            oldest_id: Some(oldest_id),
            oldest_age_secs: Some(2.0),
        }
    }

    #[test]
    fn a_backlog_that_was_counted_is_exact_and_has_its_late_rows() {
        let late = [LateRows { lane: 3, rows: 2, oldest_id: 1, oldest_age_secs: 5.0 }];
        let found = Backlog::of(&counted(7, 10, 100), &late, 1_000);
        assert_eq!(found, Backlog { rows: 9, exact: true, late_rows: 2, oldest_age_secs: Some(5.0) });
    }

    #[test]
    fn a_backlog_too_large_to_count_is_estimated_by_how_close_its_rows_lie() {
        // One id in ten is of this lane.
        let lane = counted(COUNTED_MAX + 1, 5_000_001, 5_000_000 + 10 * (COUNTED_MAX + 1));
        let found = Backlog::of(&lane, &[], 15_000_000);
        assert!(!found.exact && (999_000..=1_001_000).contains(&found.rows), "{found:?}");
    }
}
