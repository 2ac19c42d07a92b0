//! One topic is broken in each way, while another one's events must flow as if nothing were.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use shared::testing::eventually;
use tokio::time::sleep;

use crate::command_line::{operator, well};
use crate::harness::reader::now_us;
use crate::harness::scene::Scene;
use crate::harness::trouble::Trouble;
use crate::harness::writer::{Load, Writer};

/// Events a second, both topics together.
const PER_SEC: u64 = 300;

/// How long the topic stays broken: longer than a record may wait, so that waiting alone mends nothing.
const BROKEN: Duration = Duration::from_secs(7);

/// How long the broken topic's events may take once it is well.
const RECOVERY: Duration = Duration::from_secs(15);

/// How late the healthy topic's events may be.
const LATE_MS: i64 = 1_000;

/// The same with a second broker in trouble. The first one may never have given out a producer id. It asks the controller for some when the relay
/// replaces its producer, and librdkafka asks the broker again half a second later.
const LATE_BESIDE_BROKER_MS: i64 = 1_500;

/// The same while a replica does not answer its leader. A broker answers the requests of a connection in turn, so all are late until the relay
/// has found out which topic it is, and goes on over another connection: a quarter of a second until it asks, and up to a second until a broker
/// is found not to answer. Measured: 0.2 to 1.8 s.
const LATE_BEHIND_REPLICA_MS: i64 = 2_500;

/// What the log says of a topic if all that is known of it is its silence.
const SILENT: &str = "have not acknowledged";

/// Breaks the topic of the type `shaky` and mends it, while the type `steady` has its own.
async fn one_topic_is_broken(test: &str, trouble: Trouble) -> Result<()> {
    one_topic_is_broken_under(test, trouble, Load::new(&["steady", "shaky"], PER_SEC)).await
}

async fn one_topic_is_broken_under(test: &str, trouble: Trouble, load: Load) -> Result<()> {
    let mut scene = Scene::start(test, &trouble.broker_options()).await?;
    scene.broker.create_topic("steadys", &[1]).await?;
    let missing = trouble == Trouble::Missing;
    if !missing {
        scene.broker.create_topic("shakys", trouble.nodes()).await?;
    }
    let mut relay = scene.relay("relay", &[("KAFKA_CREATE_TOPICS", "false")]).await?;
    let writer = Writer::start(&scene.database.pool, load);
    scene.flows("steadys", 200).await;
    if !missing {
        scene.flows("shakys", 200).await;
        // A broker that has just begun may be slow by itself.
        eventually("no type waits", async || (scene.waiting().await? == 0).then_some(())).await;
    }

    let said_before = if missing { [0, 0] } else { said(&scene) };
    // A topic that is new may have been slow.
    let silent_before = scene.said(SILENT, "shakys");
    let begins = now_us();
    trouble.begin(&mut scene.broker, &scene.supply, "shakys").await?;
    let begun = now_us();
    sleep(BROKEN / 2).await;
    let half = now_us();
    sleep(BROKEN / 2).await;
    assert_eq!(scene.reader.arrived_since("shakys", half), 0, "the topic is broken, so nothing arrives");
    assert_eq!(scene.parked().await?, 0, "parked events, of a topic that is to blame itself");
    assert_waiting(&scene)?;
    let meanwhile = writer.written();
    trouble.end(&mut scene.broker, &scene.supply, "shakys").await?;
    scene.complete_within(RECOVERY, "the topic is well again", &meanwhile).await;
    let ended = now_us();

    let written = writer.stop().await?;
    scene.complete_within(RECOVERY, "the writer has ended", &written).await;
    // It takes time to begin, and a broker that stops holds others up all the while.
    let steady = scene.reader.figures("steadys", begins..ended);
    let shaky = scene.reader.figures("shakys", 0..i64::MAX);
    println!("{trouble:?}: steady {steady}; shaky {shaky}");
    assert_eq!(scene.reader.out_of_order(), 0, "events out of order");
    assert_eq!(scene.parked().await?, 0, "parked events");
    let late_ms = match trouble {
        Trouble::FrozenReplica | Trouble::KilledReplica => LATE_BEHIND_REPLICA_MS,
        Trouble::TooFewReplicas | Trouble::NoLeader | Trouble::FrozenLeader => LATE_BESIDE_BROKER_MS,
        _ => LATE_MS,
    };
    assert!(steady.events > 500 && steady.p99_ms < late_ms, "the healthy topic: {steady}");
    let once_begun = scene.reader.figures("steadys", begun..ended);
    assert!(once_begun.has_few_repeats(), "the healthy topic, once the trouble has begun: {once_begun}");
    if trouble == Trouble::TooFewReplicas {
        // Else it took two and a half seconds to find out. It is the broker's own word, or what it says when it is asked.
        assert_eq!(scene.said(SILENT, "shakys"), silent_before, "the log says what the topic lacks");
    }
    assert_eq!(said(&scene), said_before.map(|count| count + 1), "times that the log says so");
    assert_eq!(status(&scene)?, Value::Array(Vec::new()), "nothing waits any more");
    relay.stop().await?;
    Ok(())
}

/// How often the log says that the topic takes nothing, and that it does again.
fn said(scene: &Scene) -> [usize; 2] {
    ["a topic takes no records", "a topic takes records again"].map(|words| scene.said(words, "shakys"))
}

/// What `outrider status` says is waiting.
fn status(scene: &Scene) -> Result<Value> {
    let mut status: Value = serde_json::from_str(&well(&mut operator("status --json", &scene.database.url))?)?;
    Ok(status["relay"]["waiting"].take())
}

fn assert_waiting(scene: &Scene) -> Result<()> {
    let waiting = status(scene)?;
    assert_eq!(waiting.as_array().map(Vec::len), Some(1), "{waiting}");
    assert_eq!((&waiting[0]["topic"], &waiting[0]["aggregate_types"]), (&"shakys".into(), &json!(["shaky"])));
    assert!(waiting[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{waiting}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_too_few_replicas_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_with_too_few_replicas", Trouble::TooFewReplicas).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_replica_stands_still_delays_others_no_longer_than_it_takes_to_find_out() -> Result<()> {
    one_topic_is_broken("a_topic_whose_replica", Trouble::FrozenReplica).await
}

/// What is not acknowledged soon fills what may be in flight. The relay must find out all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_long_events_whose_replica_stands_still_delays_others_no_longer_than_that() -> Result<()> {
    let load = Load { payload_bytes: 10_000, ..Load::new(&["steady", "shaky"], PER_SEC) };
    one_topic_is_broken_under("a_topic_of_long_events", Trouble::FrozenReplica, load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_replica_is_killed_delays_others_no_longer_than_it_takes_to_find_out() -> Result<()> {
    one_topic_is_broken("a_topic_whose_replica_is_killed", Trouble::KilledReplica).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_a_leader_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_without_a_leader", Trouble::NoLeader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_broker_stands_still_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_whose_broker_stands_still", Trouble::FrozenLeader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_for_a_while_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_that_may_not_be_written", Trouble::WritesDenied).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_refuses_the_time_of_its_records_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_that_refuses_the_time", Trouble::ClockRefused).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_late_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_that_is_made_late", Trouble::Missing).await
}

/// `LEADER_NOT_AVAILABLE`.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_leader_is_not_available_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_whose_leader", Trouble::Answered(5)).await
}

/// `NOT_LEADER_OR_FOLLOWER`.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_broker_says_that_it_does_not_lead_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_whose_broker_says", Trouble::Answered(6)).await
}

/// `KAFKA_STORAGE_ERROR`.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_brokers_disk_has_failed_delays_only_itself() -> Result<()> {
    one_topic_is_broken("a_topic_whose_brokers_disk", Trouble::Answered(56)).await
}
