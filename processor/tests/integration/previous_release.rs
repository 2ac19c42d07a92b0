//! Processors of the release before this one, which go on beside new ones while they are replaced one after the other.

use sqlx::{Connection, Executor};

use crate::recreated::{lost, make_anew};
use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_the_previous_release_block_keys_and_keep_dead_letters() {
    let world = World::new("previous_rows", 1).await;
    let mut connection = world.database.config("outrider_processor").connector().connect().await.expect("a connection");
    let mut transaction = connection.begin().await.expect("begun");
    // As it has them, columns and all.
    let block = "INSERT INTO blocked_keys
            (group_id, topic, record_key, partition, state, reason, fingerprint, attempts, next_attempt_at)
        SELECT 'g', 't', record_key, 0, 'retrying', 'r', 'f', 1, now() FROM UNNEST(ARRAY['\\x6b31', '\\x6b32']::bytea[]) AS new (record_key)
        ORDER BY record_key
        ON CONFLICT ON CONSTRAINT blocked_keys_pkey DO UPDATE SET last_failed_at = now()";
    let keep = "INSERT INTO dead_letters
            (group_id, topic, partition, record_offset, record_key, event_id, event_type, aggregate_version, headers,
                payload, reason, fingerprint, record_hash)
        SELECT 'g', 't', 0, record_offset, record_key, NULL, 'order.created', 1, '{}', NULL, 'r', 'f', record_offset
        FROM UNNEST(ARRAY[1, 2, 3]::bigint[], ARRAY['\\x6b31', '\\x6b32', NULL]::bytea[]) AS new (record_offset, record_key)
        ON CONFLICT ON CONSTRAINT dead_letters_record_key DO NOTHING";
    for (statement, first, again) in [(block, 2, 2), (keep, 3, 0)] {
        for expected in [first, again] {
            let done = transaction.execute(statement).await.expect("it is taken");
            assert_eq!(done.rows_affected(), expected, "{statement}");
        }
    }
    transaction.commit().await.expect("committed");
    let by_hash = "SELECT count(*) FROM blocked_keys b JOIN dead_letters d USING (group_id, topic, key_hash)
        WHERE b.key_hash = sha256(b.record_key) AND d.record_key = b.record_key";
    assert_eq!(world.count(by_hash).await, 2, "a new processor finds what an old one has blocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_the_previous_release_has_moved_still_tells_another_topic_of_the_same_name() {
    let world = World::new("previous_position", 1).await;
    world.created_orders(5).await;
    let running = world.start(&[]);
    world.eventually_at(0, 5).await;
    running.stop().await;
    // It knows nothing of this column: a new processor had passed empty offsets before record 4, and an old one has then applied that.
    sqlx::query("UPDATE consumer_offsets SET empty_from = 2")
        .execute(&world.database.pool)
        .await
        .expect("as an old one leaves it");
    make_anew(&world).await;
    world.created_orders(10).await;
    let message = lost(world.start(&[])).await;
    assert!(message.contains("the record at 4 is not the one"), "{message}");
}
