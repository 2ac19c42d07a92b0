//! How the relays are doing: lanes, backlog, rate, parked keys, partitions.

use std::time::Duration;

use anyhow::Result;
use relay::backlog::{self, Backlog};
use relay::outbox::retention::{Partition, partitions};
use relay::outbox::status::{self, LaneStatus, Published, WaitingStatus};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

/// What one lane can have published between two looks, far more than any relay publishes.
const PUBLISHED_MAX: i64 = 200_000;

/// Between the two looks that a rate is taken from: a few settles.
const BETWEEN: Duration = Duration::from_secs(1);

/// The relays and what they work on.
#[derive(Debug, Serialize)]
pub struct RelayStatus {
    /// Relays that are running.
    pub relays: Vec<Relay>,
    /// All lanes, by number.
    pub lanes: Vec<Lane>,
    /// What is still to be published, of all lanes.
    pub backlog: Backlog,
    /// How fast that goes.
    pub rate: Rate,
    /// What waits because Kafka refuses it.
    pub parked: Parked,
    /// What waits because its topic takes no records, the oldest first.
    pub waiting: Vec<WaitingTopic>,
    /// The outbox's partitions, the oldest first.
    pub partitions: Vec<PartitionStatus>,
    /// Ids that can be given out before an insert finds no partition.
    pub ids_ahead: i64,
}

/// A relay that is running.
#[derive(Debug, Serialize)]
pub struct Relay {
    /// Its name, as in `lanes.owner`.
    pub relay: String,
    /// How many lanes it holds.
    pub lanes: usize,
    /// For how long it counts without being heard of.
    pub lease_secs: f64,
}

/// A lane.
#[derive(Debug, Serialize)]
pub struct Lane {
    /// Which one.
    pub lane: i16,
    /// The relay that holds it.
    pub owner: Option<String>,
    /// For how long it does without renewal.
    pub lease_secs: Option<f64>,
    /// The settled position.
    pub position: i64,
    /// How long ago that was written.
    pub settled_age_secs: Option<f64>,
    /// Events to publish, late ones included.
    pub backlog: Backlog,
}

/// How fast events come and go.
#[derive(Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Events published a second; none when nothing was settled between the two looks.
    pub published_per_second: Option<f64>,
    /// Ids given out a second.
    pub written_per_second: f64,
    /// How long the backlog lasts at this rate; none when it does not shrink.
    pub drain_secs: Option<f64>,
}

/// What waits because Kafka refuses it.
#[derive(Debug, Serialize)]
pub struct Parked {
    /// How many keys.
    pub keys: i64,
    /// How many events of them.
    pub events: i64,
    /// For how long the oldest has been waiting.
    pub oldest_age_secs: Option<f64>,
}

/// A topic that takes no records.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitingTopic {
    /// Its name.
    pub topic: String,
    /// The aggregate types whose events wait for it.
    pub aggregate_types: Vec<String>,
    /// What it lacks.
    pub reason: String,
    /// For how long they have been waiting.
    pub age_secs: f64,
}

/// A partition of the outbox.
#[derive(Debug, Serialize)]
pub struct PartitionStatus {
    /// Its table.
    pub name: String,
    /// The ids that belong into it, both included.
    pub ids: (i64, i64),
    /// About how many rows it has, from the statistics.
    pub rows_estimated: i64,
    /// Table and indexes on disk.
    pub bytes: i64,
    /// What it is good for.
    pub state: PartitionState,
}

/// What a partition is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionState {
    /// It has events that are still to be published.
    Kept,
    /// All of it is published; it goes when `RELAY_RETENTION` is over.
    Published,
    /// Ids are given out of it.
    Current,
    /// Its ids are still to come.
    Ahead,
}

/// Looks twice, about a second apart.
pub async fn look(connection: &mut PgConnection) -> Result<RelayStatus> {
    let (begun, last_before) = (Instant::now(), status::last_id(connection).await?);
    let before = status::lanes(connection, 0).await?;
    tokio::time::sleep_until(begun + BETWEEN).await;
    let between = begun.elapsed().as_secs_f64();
    let found = backlog::look(connection).await?;
    let published = status::published_since(connection, &before, PUBLISHED_MAX).await?;
    let members = status::members(connection).await?;
    let partitions = partitions(connection).await?;

    let (last_id, parked) = (found.last_id, found.parked);
    let relays = members.into_iter().map(|member| Relay {
        lanes: found.lanes.iter().filter(|lane| lane.owner.as_ref() == Some(&member.relay)).count(),
        relay: member.relay,
        lease_secs: member.lease_secs,
    });
    let relays: Vec<Relay> = relays.collect();
    let total = Backlog::total(&found.backlogs);
    let published = if relays.is_empty() { Some(0.0) } else { per_second(&published) };
    Ok(RelayStatus {
        relays,
        rate: rate(published, per_second_of(last_id - last_before, between), total.rows),
        backlog: total,
        lanes: found.lanes.into_iter().zip(found.backlogs).map(|(status, backlog)| lane(status, backlog)).collect(),
        parked: Parked { keys: parked.keys, events: parked.events, oldest_age_secs: parked.oldest_age_secs },
        waiting: waiting_topics(found.waiting),
        ids_ahead: partitions.iter().map(|partition| partition.past_id - 1 - last_id).max().unwrap_or(0).max(0),
        partitions: partitions.into_iter().map(|partition| judged(partition, last_id, found.lowest_id)).collect(),
    })
}

/// One line a topic; `waiting` has one for each type and lane, the oldest first.
fn waiting_topics(waiting: Vec<WaitingStatus>) -> Vec<WaitingTopic> {
    let mut topics: Vec<WaitingTopic> = Vec::new();
    for WaitingStatus { aggregate_type, topic, reason, age_secs, .. } in waiting {
        let Some(known) = topics.iter_mut().find(|known| known.topic == topic) else {
            topics.push(WaitingTopic { topic, aggregate_types: vec![aggregate_type], reason, age_secs });
            continue;
        };
        if !known.aggregate_types.contains(&aggregate_type) {
            known.aggregate_types.push(aggregate_type);
        }
    }
    topics
}

fn lane(status: LaneStatus, backlog: Backlog) -> Lane {
    Lane {
        lane: status.lane,
        owner: status.owner,
        lease_secs: status.lease_secs,
        position: status.position,
        settled_age_secs: status.settled_age_secs,
        backlog,
    }
}

/// Each lane's rate by its own two settles; none when no lane was settled a second time.
fn per_second(published: &[Published]) -> Option<f64> {
    let rates =
        published.iter().filter_map(|lane| Some(per_second_of(lane.rows, lane.secs.filter(|secs| *secs > 0.0)?)));
    rates.reduce(|sum, rate| sum + rate)
}

#[expect(clippy::cast_precision_loss, reason = "rows are far below 2^52")]
fn per_second_of(rows: i64, secs: f64) -> f64 {
    rows as f64 / secs
}

#[expect(clippy::cast_precision_loss, reason = "rows are far below 2^52")]
fn rate(published: Option<f64>, written: f64, backlog: i64) -> Rate {
    let net = published.unwrap_or(0.0) - written;
    let drain_secs = if backlog == 0 { Some(0.0) } else { (net > 0.0).then(|| backlog as f64 / net) };
    Rate { published_per_second: published, written_per_second: written, drain_secs }
}

/// `lowest` is the lowest id that is still to be published.
fn judged(partition: Partition, last_id: i64, lowest: Option<i64>) -> PartitionStatus {
    let state = if partition.first_id > last_id {
        PartitionState::Ahead
    } else if partition.past_id > last_id {
        PartitionState::Current
    } else if lowest.is_none_or(|lowest| lowest >= partition.past_id) {
        PartitionState::Published
    } else {
        PartitionState::Kept
    };
    PartitionStatus {
        name: partition.name,
        ids: (partition.first_id, partition.past_id - 1),
        rows_estimated: partition.rows,
        bytes: partition.bytes,
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_that_grows_is_never_drained() {
        assert_eq!(rate(Some(300.0), 100.0, 1_000).drain_secs, Some(5.0));
        assert_eq!(rate(Some(100.0), 100.0, 1_000).drain_secs, None);
        assert_eq!(rate(None, 0.0, 1_000).drain_secs, None);
        assert_eq!(rate(None, 50.0, 0).drain_secs, Some(0.0));
    }

    #[test]
    fn a_topic_that_waits_is_told_once_with_all_its_types() {
        let of = |lane, aggregate_type: &str, topic: &str, age_secs| WaitingStatus {
            lane,
            aggregate_type: aggregate_type.to_owned(),
            topic: topic.to_owned(),
            reason: "has no leader".to_owned(),
            age_secs,
        };
        let topics = waiting_topics(vec![
            of(1, "a", "t", 9.0),
            of(2, "a", "t", 9.0),
            of(1, "b", "t", 5.0),
            of(1, "c", "u", 1.0),
        ]);
        let found: Vec<_> = topics
            .iter()
            .map(|topic| (topic.topic.as_str(), topic.aggregate_types.join(","), topic.age_secs))
            .collect();
        assert_eq!(found, [("t", "a,b".to_owned(), 9.0), ("u", "c".to_owned(), 1.0)]);
    }

    #[test]
    fn each_lanes_rate_is_by_its_own_settles() {
        let of = |rows, secs| Published { rows, secs };
        assert_eq!(per_second(&[of(100, Some(0.5)), of(100, Some(1.0)), of(0, None)]), Some(300.0));
        assert_eq!(per_second(&[of(0, None)]), None);
    }

    #[test]
    fn a_partition_is_kept_while_something_in_it_is_to_be_published() {
        let partition =
            |first_id| Partition { name: String::new(), first_id, past_id: first_id + 100, rows: 0, bytes: 0 };
        let state = |first_id, lowest| judged(partition(first_id), 250, lowest).state;
        assert_eq!(state(1, None), PartitionState::Published);
        assert_eq!(state(1, Some(101)), PartitionState::Published);
        assert_eq!(state(1, Some(100)), PartitionState::Kept);
        assert_eq!(state(101, Some(100)), PartitionState::Kept);
        assert_eq!(state(201, Some(100)), PartitionState::Current);
        assert_eq!(state(301, Some(100)), PartitionState::Ahead);
        assert_eq!(state(251, None), PartitionState::Ahead);
    }
}
