//! Positions that the brokers do not bear out: finding them, saying what is wrong, and accepting it.
//!
//! What is known of a partition is its position and its anchor, the record before it. If the broker has no record at the position, or
//! another one at the anchor, then the topic was made anew, or lost records; and whether what there is now is to be applied, only
//! its operator can know.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rdkafka::error::KafkaError;
use sqlx::{Connection, PgConnection};

use crate::anchor::Anchor;
use crate::broker::{Broker, View};
use crate::record::Partition;
use crate::store::offsets::{self as sql, Stored};

/// A position that the broker does not bear out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Consumer group.
    pub group: Arc<str>,
    /// The partition.
    pub partition: Partition,
    /// Offset of the next record to apply.
    pub offset: i64,
    /// Whether that is in Postgres, and not only in Kafka.
    pub in_postgres: bool,
    /// What the broker has.
    pub view: View,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Records that were never applied have been deleted.
    Deleted,
    /// The partition ends before the position: it was made anew, or has lost its end.
    Beyond,
    /// The record before the position is not the one that was applied: the partition was made anew, or has lost its end and grown.
    Another,
}

/// What was found out of a partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) view: View,
    /// The record that is at the place of the stored anchor now. None if there is none any more, or no anchor.
    pub(crate) at_anchor: Option<Anchor>,
}

/// What is wrong with the position of a partition, if anything.
pub(crate) fn judge(stored: Option<&Stored>, seen: &Seen) -> Option<Cause> {
    let offset = stored.map(|stored| stored.next_offset).or(seen.view.committed)?;
    if offset < seen.view.low {
        return Some(Cause::Deleted);
    }
    if offset > seen.view.high {
        return Some(Cause::Beyond);
    }
    // An anchor that is gone was deleted by age or compacted away.
    let (anchor, found) = stored.and_then(|stored| stored.anchor).zip(seen.at_anchor)?;
    (anchor != found).then_some(Cause::Another)
}

/// Asks the brokers about `partitions`. Blocks.
pub(crate) fn see(
    broker: &Broker,
    partitions: &[Partition],
    stored: impl Fn(&Partition) -> Option<Stored>,
) -> Result<Vec<Seen>, KafkaError> {
    let views = broker.views(partitions)?;
    let mut seen: Vec<Seen> = views.into_iter().map(|view| Seen { view, at_anchor: None }).collect();
    let mut places = Vec::new();
    let mut asked = Vec::new();
    for (place, (partition, seen)) in partitions.iter().zip(&seen).enumerate() {
        let anchor = stored(partition).and_then(|stored| stored.anchor);
        // Only within the range can a record be read.
        if let Some(anchor) = anchor.filter(|anchor| (seen.view.low..seen.view.high).contains(&anchor.offset)) {
            places.push((partition.clone(), anchor.offset));
            asked.push(place);
        }
    }
    if !places.is_empty() {
        for (place, found) in asked.into_iter().zip(broker.anchors(&places)?) {
            seen[place].at_anchor = found;
        }
    }
    Ok(seen)
}

/// Positions that the broker does not bear out.
#[derive(Debug)]
pub struct LostPositions(pub(crate) Vec<Lost>);

impl From<Vec<Lost>> for LostPositions {
    fn from(lost: Vec<Lost>) -> Self {
        Self(lost)
    }
}

impl fmt::Display for LostPositions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the broker does not have the records at the position of every partition")?;
        self.0.iter().try_for_each(|lost| write!(formatter, "; {lost}"))?;
        formatter.write_str(". To go on with what the broker has: ")?;
        let mut topics: Vec<(&str, &str)> = self.0.iter().map(|lost| (&*lost.group, &*lost.partition.topic)).collect();
        topics.sort_unstable();
        topics.dedup();
        for (place, (group, topic)) in topics.into_iter().enumerate() {
            let and = if place == 0 { "" } else { " && " };
            write!(formatter, "{and}outrider offsets accept --group {} --topic {}", quoted(group), quoted(topic))?;
        }
        Ok(())
    }
}

impl std::error::Error for LostPositions {}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { low, high, .. } = self.view;
        let keeper = if self.in_postgres { "Postgres" } else { "Kafka's committed offset" };
        let cause = match self.cause {
            Cause::Deleted => "records that were never applied have been deleted".to_owned(),
            Cause::Beyond => "the topic was made anew or has lost its end".to_owned(),
            Cause::Another => format!(
                "the record at {} is not the one that was applied, so the topic was made anew or has lost its end",
                self.offset - 1
            ),
        };
        write!(
            formatter,
            "partition {}: {keeper} says {}, the broker has {low} to {high}: {cause}",
            self.partition, self.offset
        )
    }
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-/:".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Why it is not known which positions are lost.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// The database does not answer, or refuses.
    #[error("Postgres: {}", shared::db::words(.0))]
    Database(#[from] sqlx::Error),
    /// The brokers do not answer, or refuse.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The brokers do not know the topic: nobody can say what of it is lost. Just after it was made, one of them may not know it yet.
    #[error("Kafka has no topic '{0}': look at its name, or try again if it was made just now")]
    NoTopic(String),
}

/// A position, and what the broker has of its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Consumer group.
    pub group: String,
    /// The partition.
    pub partition: Partition,
    /// Offset of the next record to apply.
    pub next_offset: i64,
    /// The offsets that the broker has records at; none if it has no such partition.
    pub range: Option<Range<i64>>,
}

/// Positions of all groups and topics, or of one of them, beside what the brokers have. Blocks in between.
///
/// # Errors
/// When the database or the brokers do not answer, or refuse.
pub async fn list(
    connection: &mut PgConnection,
    broker: &Broker,
    group: Option<&str>,
    topic: Option<&str>,
) -> Result<Vec<Position>, OffsetsError> {
    let mut positions: Vec<Position> = sql::rows(connection, group, topic)
        .await?
        .into_iter()
        .map(|row| Position {
            group: row.group,
            partition: Partition { topic: row.topic.into(), number: row.partition },
            next_offset: row.next_offset,
            range: None,
        })
        .collect();
    let mut topics: Vec<Arc<str>> = positions.iter().map(|position| Arc::clone(&position.partition.topic)).collect();
    topics.sort_unstable();
    topics.dedup();
    for topic in topics {
        let there = of_topic(broker, &topic)?;
        let ranges = broker.ranges(&there)?;
        for position in positions.iter_mut().filter(|position| position.partition.topic == topic) {
            let place = there.iter().position(|partition| *partition == position.partition);
            position.range = place.and_then(|place| ranges.get(place)).cloned();
        }
    }
    Ok(positions)
}

fn of_topic(broker: &Broker, topic: &str) -> Result<Vec<Partition>, KafkaError> {
    let topic: Arc<str> = topic.into();
    let numbers = broker.partitions(&topic)?;
    Ok(numbers.into_iter().map(|number| Partition { topic: Arc::clone(&topic), number }).collect())
}

/// The positions of a group in a topic, or in one partition of it, that the brokers do not bear out. `broker` asks for that group.
/// Blocks in between.
///
/// # Errors
/// When the database or the brokers do not answer, or refuse.
pub async fn lost(
    connection: &mut PgConnection,
    broker: &Broker,
    group: &str,
    topic: &str,
    number: Option<i32>,
) -> Result<Vec<Lost>, OffsetsError> {
    let mut partitions = of_topic(broker, topic)?;
    if partitions.is_empty() {
        return Err(OffsetsError::NoTopic(topic.to_owned()));
    }
    partitions.retain(|partition| number.is_none_or(|number| number == partition.number));
    let stored = sql::stored(&mut *connection, group, &partitions).await?;
    let seen = see(broker, &partitions, |partition| stored.get(partition).copied())?;
    let lost = partitions.iter().zip(&seen);
    Ok(lost.filter_map(|(partition, seen)| lost_of(group, partition, stored.get(partition), seen)).collect())
}

/// The position of a partition, if it is lost.
pub(crate) fn lost_of(group: &str, partition: &Partition, stored: Option<&Stored>, seen: &Seen) -> Option<Lost> {
    let cause = judge(stored, seen)?;
    let offset = stored.map(|stored| stored.next_offset).or(seen.view.committed)?;
    let (group, partition) = (group.into(), partition.clone());
    Some(Lost { group, partition, offset, in_postgres: stored.is_some(), view: seen.view, cause })
}

/// Who accepts a lost position, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Operator<'a> {
    /// User of the operating system.
    pub os_user: &'a str,
    /// What they give as the reason.
    pub why: Option<&'a str>,
}

/// Accepts what the broker has: its group goes on at the first record that there is. Events among them that were applied before
/// are known by their ids. It is written to `offset_log`, in the same transaction. Returns false, and changes nothing, if the position
/// has been moved meanwhile.
///
/// # Errors
/// When the database does not answer, or refuses.
pub async fn accept(connection: &mut PgConnection, lost: &Lost, operator: Operator<'_>) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let old = lost.in_postgres.then_some(lost.offset);
    let is_set = sql::set(&mut transaction, &lost.group, &lost.partition, old, lost.view.low).await?;
    if is_set {
        sql::log(&mut transaction, lost, operator).await?;
    }
    transaction.commit().await?;
    Ok(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(hash: i64) -> Anchor {
        Anchor { offset: 6, hash, time_ms: None }
    }

    #[test]
    fn a_position_is_borne_out_by_its_range_and_by_its_anchor() {
        let view = View { low: 5, high: 9, committed: Some(12) };
        let judge = |position: Option<i64>, known: Option<Anchor>, at_anchor| {
            let stored = position.map(|next_offset| Stored { next_offset, anchor: known });
            judge(stored.as_ref(), &Seen { view, at_anchor })
        };
        assert_eq!(judge(Some(4), None, None), Some(Cause::Deleted));
        assert_eq!(judge(Some(10), None, None), Some(Cause::Beyond));
        for inside in [5, 9] {
            assert_eq!(judge(Some(inside), None, None), None);
        }
        assert_eq!(judge(Some(7), Some(anchor(1)), Some(anchor(1))), None);
        assert_eq!(judge(Some(7), Some(anchor(1)), Some(anchor(2))), Some(Cause::Another));
        assert_eq!(judge(Some(7), Some(anchor(1)), None), None, "gone by age or compaction");
        assert_eq!(judge(Some(7), None, Some(anchor(2))), None, "set by hand");
        assert_eq!(judge(None, None, None), Some(Cause::Beyond), "Kafka's own offset counts where Postgres has none");
    }

    #[test]
    fn a_lost_position_says_what_is_stored_what_there_is_and_how_to_accept_it() {
        let lost = |offset, in_postgres, cause| Lost {
            group: "g'".into(),
            partition: Partition { topic: "orders".into(), number: 3 },
            offset,
            in_postgres,
            view: View { low: 5, high: 9, committed: None },
            cause,
        };
        let lost = vec![lost(10, true, Cause::Beyond), lost(1, false, Cause::Deleted), lost(7, true, Cause::Another)];
        let text = LostPositions(lost).to_string();
        for part in [
            "orders/3: Postgres says 10, the broker has 5 to 9: the topic was made anew",
            "Kafka's committed offset says 1, the broker has 5 to 9: records that were never applied have been deleted;",
            "Postgres says 7, the broker has 5 to 9: the record at 6 is not the one that was applied",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let end = ". To go on with what the broker has: outrider offsets accept --group 'g'\\''' --topic orders";
        assert!(text.ends_with(end), "{text}");
    }
}
