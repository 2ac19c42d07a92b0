//! The ways in which one topic has trouble while the others are well, and how each is mended.

use anyhow::Result;
use tools::stack::throwaway::Supply;

use super::broker::{AUTHORIZER, Broker, BrokerOptions};
use super::second_broker::NODE;

/// A way to break a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// One of its two replicas is down, and `min.insync.replicas` is 2.
    TooFewReplicas,
    /// One of its two replicas stands still: records lie at the leader, and are not acknowledged.
    FrozenReplica,
    /// One of its two replicas was killed, and the controller has not missed it yet.
    KilledReplica,
    /// The only broker with its partitions is down.
    NoLeader,
    /// The only broker with its partitions stands still, and its connections stay open.
    FrozenLeader,
    /// The right to write is taken away.
    WritesDenied,
    /// The brokers find the time of each record too old, as with a clock that is wrong.
    ClockRefused,
    /// There is no such topic, and the relay may not make it.
    Missing,
    /// A broker answers each produce request with this error code of Kafka's.
    Answered(i16),
}

impl Trouble {
    /// What the test's brokers need for it.
    pub(crate) fn broker_options(self) -> BrokerOptions {
        let none = BrokerOptions::default();
        match self {
            Self::ClockRefused | Self::Missing => none,
            Self::TooFewReplicas | Self::FrozenReplica | Self::KilledReplica | Self::NoLeader | Self::FrozenLeader => {
                BrokerOptions { second: true, ..none }
            }
            Self::WritesDenied => BrokerOptions { settings: AUTHORIZER.to_vec(), ..none },
            Self::Answered(_) => BrokerOptions { proxied: true, ..none },
        }
    }

    /// The nodes that the topic must lie on, its leader first.
    pub(crate) fn nodes(self) -> &'static [i32] {
        match self {
            Self::TooFewReplicas | Self::FrozenReplica | Self::KilledReplica => &[1, NODE],
            Self::NoLeader | Self::FrozenLeader => &[NODE],
            _ => &[1],
        }
    }

    /// Breaks the topic.
    pub(crate) async fn begin(self, broker: &mut Broker, supply: &Supply, topic: &str) -> Result<()> {
        match self {
            Self::TooFewReplicas | Self::NoLeader => broker.second()?.stop().await,
            Self::FrozenReplica | Self::FrozenLeader => broker.second()?.process()?.freeze(),
            Self::KilledReplica => broker.second()?.kill().await,
            Self::WritesDenied => broker.allow_writes(supply, topic, false).await,
            Self::ClockRefused => broker.configure_topic(topic, &[("message.timestamp.before.max.ms", "0")]).await,
            Self::Missing => Ok(()),
            Self::Answered(error) => {
                broker.proxy()?.answer(topic, error, u64::MAX);
                Ok(())
            }
        }
    }

    /// Mends it.
    pub(crate) async fn end(self, broker: &mut Broker, supply: &Supply, topic: &str) -> Result<()> {
        match self {
            Self::ClockRefused => broker.configure_topic(topic, &[]).await,
            Self::TooFewReplicas | Self::KilledReplica | Self::NoLeader => {
                broker.second()?.start()?;
                broker.has_brokers(2).await?;
                broker.is_whole(topic).await
            }
            Self::FrozenReplica | Self::FrozenLeader => {
                broker.second()?.process()?.thaw()?;
                broker.is_whole(topic).await
            }
            Self::WritesDenied => broker.allow_writes(supply, topic, true).await,
            Self::Missing => broker.create_topic(topic, &[1]).await,
            Self::Answered(_) => {
                broker.proxy()?.answer_no_more(topic);
                Ok(())
            }
        }
    }
}
