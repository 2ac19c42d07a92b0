//! What Kafka knows of a consumer group: members, committed offsets, ends of partitions, and the age of what comes next.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use shared::kafka::KafkaConfig;

/// Topic and number of a partition.
pub type Place = (String, i32);

/// How long a broker may take for an answer.
const BROKER_PATIENCE: Duration = Duration::from_secs(5);

/// How long the records that come next are waited for, of all partitions together.
const RECORDS_PATIENCE: Duration = Duration::from_secs(2);

/// Kafka's side of a group.
#[derive(Debug, Default)]
pub struct GroupView {
    /// What it does.
    pub state: Option<String>,
    /// Who is in it.
    pub members: Vec<MemberView>,
    /// Its partitions.
    pub partitions: HashMap<Place, PartitionView>,
}

/// A member.
#[derive(Debug)]
pub struct MemberView {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub host: String,
    /// What it has.
    pub partitions: HashSet<Place>,
}

/// A partition.
#[derive(Debug, Default)]
pub struct PartitionView {
    /// The group's committed offset.
    pub committed: Option<i64>,
    /// Offset after the last record; none if the partition is not there.
    pub end: Option<i64>,
    /// Age of the record at the position, in seconds.
    pub next_age_secs: Option<f64>,
}

/// Asks for all of it. `positions` are those in Postgres.
pub async fn view(kafka: &KafkaConfig, group: &str, positions: Vec<(Place, i64)>) -> Result<GroupView> {
    let mut config = kafka.consumer("outrider-status", group);
    // It looks at single records, and must not fetch a backlog for that. It never subscribes, so the group does not see it.
    config.set("fetch.message.max.bytes", "1024").set("queued.max.messages.kbytes", "64");
    config.set("auto.offset.reset", "earliest").set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    let group = group.to_owned();
    tokio::task::spawn_blocking(move || ask(&config.create()?, &group, &positions)).await?
}

fn ask(client: &BaseConsumer, group: &str, positions: &[(Place, i64)]) -> Result<GroupView> {
    let list = client.fetch_group_list(Some(group), BROKER_PATIENCE).context("Kafka does not answer")?;
    let mut view = GroupView::default();
    if let Some(found) = list.groups().iter().find(|found| found.name() == group) {
        // What the broker assigns itself (KIP-848) is described by another request, which librdkafka has and rdkafka has not: to
        // this one such a group looks as if it were not there.
        view.state = Some(found.state().to_owned()).filter(|state| !state.is_empty() && state != "Dead");
        view.members = found.members().iter().map(member).collect();
    }
    let mut wanted = TopicPartitionList::new();
    for ((topic, partition), _) in positions {
        wanted.add_partition(topic, *partition);
    }
    let committed = client.committed_offsets(wanted, BROKER_PATIENCE).context("Kafka does not tell the offsets")?;
    for ((topic, partition), _) in positions {
        let committed = committed.find_partition(topic, *partition).map(|found| found.offset());
        let found = PartitionView {
            committed: match committed {
                Some(Offset::Offset(offset)) => Some(offset),
                _ => None,
            },
            // A topic that was deleted is no reason to show nothing of the others.
            end: client.fetch_watermarks(topic, *partition, BROKER_PATIENCE).ok().map(|(_, high)| high),
            next_age_secs: None,
        };
        view.partitions.insert((topic.clone(), *partition), found);
    }
    ages(client, positions, &mut view.partitions)?;
    Ok(view)
}

fn member(info: &GroupMemberInfo) -> MemberView {
    MemberView {
        id: info.id().to_owned(),
        host: info.client_host().trim_start_matches('/').to_owned(),
        partitions: info.assignment().and_then(assigned).unwrap_or_default(),
    }
}

/// Reads the record at each position that has one.
fn ages(client: &BaseConsumer, positions: &[(Place, i64)], found: &mut HashMap<Place, PartitionView>) -> Result<()> {
    let mut list = TopicPartitionList::new();
    let mut open: HashSet<Place> = HashSet::new();
    for (place, position) in positions {
        if found.get(place).and_then(|view| view.end).is_some_and(|end| end > *position) {
            list.add_partition_offset(&place.0, place.1, Offset::Offset(*position))?;
            open.insert(place.clone());
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    client.assign(&list)?;
    let begun = Instant::now();
    while !open.is_empty() && begun.elapsed() < RECORDS_PATIENCE {
        let Some(Ok(message)) = client.poll(Duration::from_millis(100)) else { continue };
        let place = (message.topic().to_owned(), message.partition());
        if open.remove(&place)
            && let (Some(view), Some(millis)) = (found.get_mut(&place), message.timestamp().to_millis())
        {
            view.next_age_secs = Some(age_secs(millis));
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
fn age_secs(millis: i64) -> f64 {
    (chrono::Utc::now().timestamp_millis() - millis).max(0) as f64 / 1_000.0
}

/// An assignment of Kafka's consumer protocol: a version, then topics with the numbers of their partitions, all big-endian.
/// <https://kafka.apache.org/protocol.html>
fn assigned(bytes: &[u8]) -> Option<HashSet<Place>> {
    let mut rest = bytes.get(2..)?;
    let mut places = HashSet::new();
    for _ in 0..number(&mut rest)? {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest = after;
        let topic = str::from_utf8(name).ok()?;
        for _ in 0..number(&mut rest)? {
            places.insert((topic.to_owned(), number(&mut rest)?));
        }
    }
    Some(places)
}

fn number(rest: &mut &[u8]) -> Option<i32> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(i32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_and_a_broken_one_is_none() {
        let bytes = [0, 3, 0, 0, 0, 1, 0, 2, b'o', b's', 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7, 255, 255, 255, 255];
        let places = assigned(&bytes).expect("whole");
        assert_eq!(places, HashSet::from([("os".to_owned(), 0), ("os".to_owned(), 7)]));
        assert_eq!(assigned(&bytes[..17]), None);
        assert_eq!(assigned(&[]), None);
    }
}
