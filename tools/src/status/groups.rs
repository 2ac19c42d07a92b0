//! How the consumer groups are doing: positions in Postgres, which count, beside what Kafka knows of them.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use processor::status::{self, PartitionPosition};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::Instant;

use super::kafka_groups::{self, GroupView, Place};

/// The consumer groups that have a position.
#[derive(Debug, Serialize)]
pub struct Groups {
    /// By name.
    pub groups: Vec<Group>,
    /// Why nothing is known of Kafka's side.
    pub kafka_error: Option<String>,
}

/// A consumer group.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Its name.
    pub group: String,
    /// What Kafka says that it does: `Stable`, `Empty` and so on.
    pub state: Option<String>,
    /// Who is in it; empty too when Kafka does not say.
    pub members: Vec<Member>,
    /// All partitions that it has a position in.
    pub partitions: Vec<Partition>,
    /// Records that are still to be passed, of all partitions; none when some end is not known.
    pub lag: Option<i64>,
    /// How long ago the oldest of them was produced.
    pub lag_secs: Option<f64>,
    /// Records passed a second.
    pub rate_per_second: f64,
    /// What waits because it failed.
    pub blocked: Blocked,
}

/// A member of a group.
#[derive(Debug, Serialize)]
pub struct Member {
    /// Its id.
    pub member: String,
    /// Where it is, as the broker sees it.
    pub host: String,
    /// How many partitions it has.
    pub partitions: usize,
}

/// A partition that a group works on.
#[derive(Debug, Serialize)]
pub struct Partition {
    /// Topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The member that has it.
    pub owner: Option<String>,
    /// Offset of the next record to apply, in Postgres.
    pub position: i64,
    /// How long ago that moved.
    pub moved_age_secs: f64,
    /// The offset that was committed to Kafka.
    pub kafka_position: Option<i64>,
    /// Offset after the last record.
    pub end: Option<i64>,
    /// Records between position and end.
    pub lag: Option<i64>,
    /// How long ago the next record to apply was produced; 0 if there is none.
    pub lag_secs: Option<f64>,
}

/// Keys that wait because an event of theirs failed.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Blocked {
    /// Tried again by themselves.
    pub retrying: i64,
    /// For an elder event.
    pub waiting: i64,
    /// For an operator.
    pub parked: i64,
    /// For how long the oldest of all has been waiting.
    pub oldest_age_secs: Option<f64>,
}

/// Positions at one moment, to tell the rate by.
#[derive(Debug)]
pub struct Before {
    at: Instant,
    positions: HashMap<(String, Place), i64>,
}

/// Looks a first time.
pub async fn before(connection: &mut PgConnection) -> Result<Before> {
    let positions = status::positions(connection).await?;
    let positions = positions.into_iter().map(|row| ((row.group_id, (row.topic, row.partition)), row.next_offset));
    Ok(Before { at: Instant::now(), positions: positions.collect() })
}

/// Looks a second time; `kafka` is where to ask for the rest, if that is known.
pub async fn look(
    connection: &mut PgConnection,
    before: &Before,
    kafka: Option<&shared::kafka::KafkaConfig>,
) -> Result<Groups> {
    let rows = status::positions(connection).await?;
    let secs = before.at.elapsed().as_secs_f64();
    let blocked = status::blocked(connection).await?;
    let mut by_group: BTreeMap<String, Vec<PartitionPosition>> = BTreeMap::new();
    for row in rows {
        by_group.entry(row.group_id.clone()).or_default().push(row);
    }
    // A group can fail before it has ever moved on.
    for keys in &blocked {
        by_group.entry(keys.group_id.clone()).or_default();
    }
    let (mut groups, mut kafka_error) = (Vec::new(), None);
    for (name, rows) in by_group {
        let places = rows.iter().map(|row| ((row.topic.clone(), row.partition), row.next_offset)).collect();
        let view = match kafka {
            None => GroupView::default(),
            // One that does not answer is not asked again for each group.
            Some(_) if kafka_error.is_some() => GroupView::default(),
            Some(kafka) => kafka_groups::view(kafka, &name, places).await.unwrap_or_else(|error| {
                kafka_error = Some(format!("{error:#}"));
                GroupView::default()
            }),
        };
        let mut found = group(name, &rows, view);
        found.rate_per_second = rate(before, &rows, secs);
        for keys in blocked.iter().filter(|keys| keys.group_id == found.group) {
            found.blocked.add(&keys.state, keys.keys, keys.oldest_age_secs);
        }
        groups.push(found);
    }
    if kafka.is_none() {
        kafka_error = Some("KAFKA_BROKERS is not set".to_owned());
    }
    Ok(Groups { groups, kafka_error })
}

impl Blocked {
    fn add(&mut self, state: &str, keys: i64, age_secs: f64) {
        match state {
            "retrying" => self.retrying += keys,
            "waiting" => self.waiting += keys,
            _ => self.parked += keys,
        }
        self.oldest_age_secs = Some(self.oldest_age_secs.unwrap_or(0.0).max(age_secs));
    }
}

/// Puts together what Postgres and Kafka say of a group.
fn group(name: String, rows: &[PartitionPosition], view: GroupView) -> Group {
    let partitions: Vec<Partition> = rows.iter().map(|row| partition(row, &view)).collect();
    let members = view.members.into_iter().map(|member| Member {
        partitions: member.partitions.len(),
        member: member.id,
        host: member.host,
    });
    Group {
        group: name,
        state: view.state,
        members: members.collect(),
        lag: partitions.iter().map(|partition| partition.lag).sum(),
        lag_secs: partitions.iter().filter_map(|partition| partition.lag_secs).reduce(f64::max),
        partitions,
        rate_per_second: 0.0,
        blocked: Blocked::default(),
    }
}

fn partition(row: &PartitionPosition, view: &GroupView) -> Partition {
    let place = (row.topic.clone(), row.partition);
    let owner = view.members.iter().find(|member| member.partitions.contains(&place));
    let found = view.partitions.get(&place);
    let lag = found.and_then(|found| found.end).map(|end| (end - row.next_offset).max(0));
    Partition {
        owner: owner.map(|member| member.id.clone()),
        position: row.next_offset,
        moved_age_secs: row.moved_age_secs,
        kafka_position: found.and_then(|found| found.committed),
        end: found.and_then(|found| found.end),
        lag,
        lag_secs: if lag == Some(0) { Some(0.0) } else { found.and_then(|found| found.next_age_secs) },
        topic: place.0,
        partition: place.1,
    }
}

/// Records passed a second between the two looks. A partition that came in between had no position: it counts from the beginning of
/// the next pair.
#[expect(clippy::cast_precision_loss, reason = "records within a second are far below 2^52")]
fn rate(before: &Before, rows: &[PartitionPosition], secs: f64) -> f64 {
    let passed = rows.iter().map(|row| {
        let key = (row.group_id.clone(), (row.topic.clone(), row.partition));
        before.positions.get(&key).map_or(0, |earlier| (row.next_offset - earlier).max(0))
    });
    passed.sum::<i64>() as f64 / secs
}
