//! A key that is given up waits for an operator, in order, and nothing else does.

use shared::testing::eventually;
use uuid::Uuid;

use crate::keeper::{kept, kept_as, start, world};
use crate::support::{Produced, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_keeps_its_later_events_in_order_and_flows_again_after_a_replay() {
    let world = world("parked", 1).await;
    world.fate("bad", 2, Some("permanent")).await;
    let running = start(&world, true, &[]);
    world.produce([kept("bad", 1), kept("bad", 2), kept("a", 1), kept("bad", 3)]);
    world.eventually_at(0, 4).await;
    world.produce([kept("bad", 4), kept("a", 2), kept("b", 1)]);
    world.eventually_at(0, 7).await;
    assert_eq!(world.state("bad").await.as_deref(), Some("parked"));
    assert_eq!((world.versions("bad").await, world.versions("a").await), (vec![1], vec![1, 2]));
    assert_eq!(world.waiting("bad").await, [(2, Some("permanent".to_owned())), (3, None), (4, None)]);
    assert_eq!(world.count("SELECT count(*) FROM told WHERE key = 'bad' AND version = 2").await, 1);

    // Not mended: it stays as it was, and its handler is not told again.
    assert_eq!(world.replay("bad", 0, false).await, (0, 3, Some("permanent".to_owned())));
    assert_eq!(world.count("SELECT count(*) FROM told").await, 1);
    assert_eq!(world.state("bad").await.as_deref(), Some("parked"));

    // Mended, but the one behind it fails: that is parked, and its handler is told.
    world.fate("bad", 2, None).await;
    world.fate("bad", 3, Some("permanent")).await;
    assert_eq!(world.replay("bad", 0, false).await, (1, 2, Some("permanent".to_owned())));
    assert_eq!(world.waiting("bad").await, [(3, Some("permanent".to_owned())), (4, None)]);
    assert_eq!(world.count("SELECT count(*) FROM told WHERE version = 3").await, 1);

    world.fate("bad", 3, None).await;
    assert_eq!(world.replay("bad", 0, false).await, (2, 0, None));
    world.assert_nothing_waits().await;
    world.produce([kept("bad", 5)]);
    world.eventually_kept("bad", 5).await;
    // Nothing is there to be replayed.
    assert_eq!(world.replay("bad", 0, false).await, (0, 0, None));
    running.stop().await;
}

/// All that a dry run could change.
async fn snapshot(world: &World) -> Vec<String> {
    let query = "SELECT format('kept %s', k) FROM kept k UNION ALL SELECT format('told %s', t) FROM told t
        UNION ALL SELECT format('blocked %s', b) FROM blocked_keys b UNION ALL SELECT format('letter %s', d) FROM dead_letters d
        UNION ALL SELECT format('inbox %s', i) FROM inbox i UNION ALL SELECT format('offset %s', c) FROM consumer_offsets c
        ORDER BY 1";
    sqlx::query_scalar(query).fetch_all(&world.database.pool).await.expect("everything")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_would_come_of_a_replay_and_changes_nothing() {
    let world = world("rehearsed", 1).await;
    world.fate("bad", 1, Some("permanent")).await;
    let running = start(&world, true, &[]);
    world.produce([kept("bad", 1), kept("bad", 2), kept("bad", 3)]);
    world.eventually_at(0, 3).await;
    let before = snapshot(&world).await;
    assert_eq!(world.replay("bad", 0, true).await, (0, 3, Some("permanent".to_owned())));
    assert_eq!(snapshot(&world).await, before);
    world.fate("bad", 1, None).await;
    world.fate("bad", 3, Some("permanent")).await;
    assert_eq!(world.replay("bad", 0, true).await, (2, 1, Some("permanent".to_owned())));
    assert_eq!(snapshot(&world).await, before);
    world.fate("bad", 3, None).await;
    assert_eq!(world.replay("bad", 0, true).await, (3, 0, None));
    assert_eq!(snapshot(&world).await, before);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_key_is_drained_in_parts_and_in_order_while_more_comes() {
    let world = world("long", 1).await;
    world.fate("long", 1, Some("permanent")).await;
    let running = start(&world, true, &[("PROCESSOR_BATCH_ROWS_MAX", "2")]);
    world.produce((1..=150).map(|version| kept("long", version)));
    world.eventually_at(0, 150).await;
    assert_eq!(world.versions("long").await, [0_i64; 0]);
    world.fate("long", 1, None).await;
    assert_eq!(world.replay("long", 0, true).await, (100, 50, None), "a dry run says how much it has tried");
    world.produce((151..=200).map(|version| kept("long", version)));
    let (applied, _, reason) = world.replay("long", 0, false).await;
    assert_eq!((applied, reason), (100, None), "one transaction's share; the rest follows");
    world.eventually_kept("long", 200).await;
    world.eventually_state("long", None).await;
    running.stop().await;
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_three_times_as_long_as_a_batch_is_rehearsed_and_replayed_as_a_whole() {
    let world = world("thrice", 1).await;
    world.fate("long", 1, Some("permanent")).await;
    world.fate("long", 25, Some("permanent")).await;
    let running = start(&world, true, &[("PROCESSOR_BATCH_ROWS_MAX", "10")]);
    world.produce((1..=31).map(|version| kept("long", version)));
    world.eventually_at(0, 31).await;
    world.fate("long", 1, None).await;
    let stuck = (24, 7, Some("permanent".to_owned()));
    assert_eq!(world.replay("long", 0, true).await, stuck, "the dry run meets what is wrong far behind");
    assert_eq!((world.waiting("long").await.len(), world.versions("long").await.len()), (31, 0));
    world.fate("long", 25, None).await;
    assert_eq!(world.replay("long", 0, true).await, (31, 0, None));
    assert_eq!((world.waiting("long").await.len(), world.versions("long").await.len()), (31, 0));
    world.fate("long", 25, Some("permanent")).await;
    // All that came of it is there as soon as it is answered: it is one transaction.
    assert_eq!(world.replay("long", 0, false).await, stuck);
    assert_eq!(world.versions("long").await, (1..=24).collect::<Vec<i64>>());
    assert_eq!(world.state("long").await.as_deref(), Some("parked"));
    assert_eq!(world.waiting("long").await.first(), Some(&(25, Some("permanent".to_owned()))));
    world.fate("long", 25, None).await;
    assert_eq!(world.replay("long", 0, false).await, (7, 0, None));
    assert_eq!(world.state("long").await, None);
    world.produce([kept("long", 32)]);
    world.eventually_kept("long", 32).await;
    running.stop().await;
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_replayed_together_and_only_those_that_fail_stay() {
    let world = world("many", 2).await;
    let key = |n: i32| format!("k{n}");
    for n in 0..30 {
        world.fate(&key(n), 1, Some("permanent")).await;
    }
    let running = start(&world, true, &[]);
    let on = |n: i32, version| Produced { partition: n % 2, ..kept(&key(n), version) };
    world.produce((1..=3).flat_map(|version| (0..30).map(move |n| on(n, version))));
    world.eventually_at(0, 45).await;
    world.eventually_at(1, 45).await;
    sqlx::query("DELETE FROM fates WHERE key NOT IN ('k7', 'k8')").execute(&world.database.pool).await.expect("mended");
    let ids: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO dead_letter_requests (group_id, topic, partition, record_key, dry_run, requested_by)
        SELECT group_id, topic, partition, record_key, false, 'test' FROM blocked_keys ORDER BY record_key RETURNING id",
    )
    .fetch_all(&world.database.pool)
    .await
    .expect("requests");
    for id in ids {
        world.answer(id).await;
    }
    running.stop().await;
    assert_eq!(world.count("SELECT count(*) FROM blocked_keys WHERE state = 'parked'").await, 2);
    assert_eq!(world.count("SELECT count(*) FROM dead_letters").await, 6);
    assert_eq!(world.count("SELECT count(*) FROM kept").await, 84);
    for n in (0..30).filter(|n| ![7, 8].contains(n)) {
        assert_eq!(world.versions(&key(n)).await, [1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_parks_its_key_and_one_without_a_key_only_itself() {
    let world = world("unread", 1).await;
    let running = start(&world, true, &[]);
    // With a version it is one of ours; without, it would be in no key's order.
    let headers = vec![("aggregate_version", b"second".to_vec())];
    let unreadable =
        |key: Option<&[u8]>| Produced { key: key.map(<[u8]>::to_vec), headers: headers.clone(), ..Produced::default() };
    world.produce([unreadable(None), kept("a", 1), unreadable(Some(b"a")), kept("a", 2), kept("b", 1)]);
    world.eventually_at(0, 5).await;
    assert_eq!((world.versions("a").await, world.versions("b").await), (vec![1], vec![1]));
    assert_eq!(world.state("a").await.as_deref(), Some("parked"));
    assert_eq!(world.count("SELECT count(*) FROM dead_letters WHERE reason IS NULL").await, 1);
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO dead_letter_requests (group_id, topic, partition, dead_letter_id, dry_run, requested_by)
        SELECT group_id, topic, partition, id, false, 'test' FROM dead_letters WHERE record_key IS NULL RETURNING id",
    )
    .fetch_one(&world.database.pool)
    .await
    .expect("a request");
    assert_eq!(world.answer(id).await, (0, 1, Some("the header 'id' is missing".to_owned())));
    // As an operator discards it.
    sqlx::query("DELETE FROM dead_letters WHERE record_offset = 2").execute(&world.database.pool).await.expect("gone");
    assert_eq!(world.replay("a", 0, false).await, (1, 0, None));
    running.stop().await;
    assert_eq!(world.versions("a").await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_tried_by_a_processor_whose_partition_has_moved_on() {
    let world = world("zombie_keys", 1).await;
    world.fate("slow", 1, Some("later")).await;
    let running = start(&world, true, &[]);
    let id = Uuid::now_v7();
    world.produce([kept_as("slow", 1, id)]);
    world.eventually_state("slow", Some("retrying")).await;
    // Another processor has the partition: it applies a batch, and what waits.
    let mut other = world.database.pool.begin().await.expect("a transaction");
    sqlx::raw_sql(
        "UPDATE consumer_offsets SET next_offset = next_offset + 1; DELETE FROM blocked_keys; DELETE FROM fates;
        INSERT INTO kept (key, version) VALUES ('slow', 1); DELETE FROM dead_letters",
    )
    .execute(&mut *other)
    .await
    .expect("done");
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the processor waits", async || (world.count(waiting).await == 1).then_some(())).await;
    // The record that the other one has applied; its effect does not matter here.
    world.produce([kept("a", 1)]);
    other.commit().await.expect("committed");
    eventually("it is fenced", async || (running.metrics.fenced() == 1).then_some(())).await;
    world.produce([kept("a", 2)]);
    world.eventually_at(0, 3).await;
    running.stop().await;
    assert_eq!(world.versions("slow").await, [1]);
    world.assert_nothing_waits().await;
}
