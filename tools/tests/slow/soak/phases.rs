//! What happens to the topics in each part of the soak.

use anyhow::Result;

use crate::harness::scene::Scene;
use crate::harness::trouble::Trouble;
use crate::harness::writer::Load;

/// One part of the soak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is broken.
    Quiet,
    /// This topic's type has that trouble.
    One(&'static str, Trouble),
    /// The second broker has it: beta lacks a replica, gamma a leader.
    SecondBroker(Trouble),
    /// A type whose topic is made late.
    LateTopic,
    /// The broker refuses the first request of each partition of alpha's, and takes the second.
    FirstRequests,
    /// The broker takes a megabyte a second, and there is a backlog of eight.
    Quota,
}

const LATE: &str = "late";
const BULK: &str = "bulk";

/// All of them, in turn. The numbers are Kafka's: 5 is `LEADER_NOT_AVAILABLE`, 6 `NOT_LEADER_OR_FOLLOWER`, 56 `KAFKA_STORAGE_ERROR`.
pub(super) const PHASES: [Phase; 11] = [
    Phase::Quiet,
    Phase::One("beta", Trouble::WritesDenied),
    Phase::SecondBroker(Trouble::NoLeader),
    Phase::One("alpha", Trouble::Answered(5)),
    Phase::One("gamma", Trouble::ClockRefused),
    Phase::SecondBroker(Trouble::FrozenLeader),
    Phase::LateTopic,
    Phase::One("alpha", Trouble::Answered(6)),
    Phase::FirstRequests,
    Phase::One("alpha", Trouble::Answered(56)),
    Phase::Quota,
];

impl Phase {
    /// The types of the topics that may wait.
    pub(super) fn breaks(self) -> &'static [&'static str] {
        match self {
            Self::One("alpha", _) | Self::FirstRequests => &["alpha"],
            Self::One("beta", _) => &["beta"],
            Self::One("gamma", _) => &["gamma"],
            Self::SecondBroker(_) => &["beta", "gamma"],
            _ => &[],
        }
    }

    /// Whether the other topics' events must come within a second. A quota is the relay's and not a topic's: all share it.
    pub(super) fn keeps_others_prompt(self) -> bool {
        self != Self::Quota
    }

    /// Events that are written at once when it has begun.
    pub(super) fn backlog(self) -> Option<(Load, u64)> {
        match self {
            Self::LateTopic => Some((Load::new(&[LATE], 0), 500)),
            Self::Quota => Some((Load { payload_bytes: 3_200, ..Load::new(&[BULK], 0) }, 2_500)),
            _ => None,
        }
    }

    pub(super) async fn begin(self, scene: &mut Scene) -> Result<()> {
        match self {
            Self::Quiet | Self::LateTopic => Ok(()),
            Self::One(of_type, trouble) => {
                trouble.begin(&mut scene.broker, &scene.supply, &format!("{of_type}s")).await
            }
            Self::SecondBroker(trouble) => trouble.begin(&mut scene.broker, &scene.supply, "gammas").await,
            Self::FirstRequests => {
                scene.broker.proxy()?.refuse_first(&["alpha"], 6);
                Ok(())
            }
            Self::Quota => {
                scene.broker.create_topic(&format!("{BULK}s"), &[1]).await?;
                scene.broker.set_quota(&scene.supply, "outrider-relay", Some(1_048_576)).await
            }
        }
    }

    pub(super) async fn end(self, scene: &mut Scene) -> Result<()> {
        match self {
            Self::Quiet => Ok(()),
            Self::One(of_type, trouble) => trouble.end(&mut scene.broker, &scene.supply, &format!("{of_type}s")).await,
            Self::SecondBroker(trouble) => trouble.end(&mut scene.broker, &scene.supply, "gammas").await,
            Self::LateTopic => scene.broker.create_topic(&format!("{LATE}s"), &[1]).await,
            Self::FirstRequests => {
                scene.broker.proxy()?.refuse_no_more();
                Ok(())
            }
            Self::Quota => scene.broker.set_quota(&scene.supply, "outrider-relay", None).await,
        }
    }
}
