//! How far behind the group is, as Kafka's client knows it. Pure.

use rdkafka::Statistics;
use rdkafka::statistics::Partition;

/// Records of a partition that the group has not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lag<'a> {
    /// Topic of the partition.
    pub(crate) topic: &'a str,
    /// Number of the partition.
    pub(crate) partition: i32,
    /// How many offsets there are to its end, those of open transactions included. Offsets that hold no record are passed within seconds.
    pub(crate) records: i64,
}

/// The partitions that this member has, by what it knows of their ends and of what was committed. Those of which it does not know both yet are
/// left out.
pub(crate) fn lags(statistics: &Statistics) -> Vec<Lag<'_>> {
    assigned(statistics)
        .filter_map(|(topic, partition)| {
            let (end, committed) = (partition.hi_offset, partition.committed_offset);
            (end >= 0 && committed >= 0).then(|| Lag {
                topic,
                partition: partition.partition,
                records: (end - committed).max(0),
            })
        })
        .collect()
}

/// The partitions that this member has, each with its topic.
pub(crate) fn assigned(statistics: &Statistics) -> impl Iterator<Item = (&str, &Partition)> {
    let partitions = statistics
        .topics
        .values()
        .flat_map(|topic| topic.partitions.values().map(|partition| (topic.topic.as_str(), partition)));
    partitions.filter(|(_, partition)| partition.fetch_state == "active")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rdkafka::statistics::{Partition, Topic};

    use super::*;

    #[test]
    fn the_lag_is_told_of_partitions_whose_ends_and_positions_are_known() {
        let partition = |partition, fetch_state: &str, committed_offset, hi_offset| Partition {
            partition,
            fetch_state: fetch_state.to_owned(),
            committed_offset,
            hi_offset,
            ..Partition::default()
        };
        let partitions = [
            partition(0, "active", 7, 10),
            // Nothing was committed yet.
            partition(1, "active", -1001, 10),
            // Another member's.
            partition(2, "none", 3, 10),
            // The end that is known is older than the commit.
            partition(3, "active", 11, 10),
        ];
        let partitions: HashMap<i32, Partition> = partitions.into_iter().map(|one| (one.partition, one)).collect();
        let topic = Topic { topic: "orders".to_owned(), partitions, ..Topic::default() };
        let statistics = Statistics { topics: HashMap::from([("orders".to_owned(), topic)]), ..Statistics::default() };
        let mut found = lags(&statistics);
        found.sort_unstable_by_key(|lag| lag.partition);
        let lag = |partition, records| Lag { topic: "orders", partition, records };
        assert_eq!(found, [lag(0, 3), lag(3, 0)]);
    }
}
