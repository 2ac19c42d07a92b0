//! A sequence that does not give out ids in order.

use std::time::Duration;

use shared::testing::{eventually, eventually_within};
use sqlx::AssertSqlSafe;

use crate::support::{Fixture, all_settled, assert_complete_and_in_order, assert_no_repeats};
use relay::outbox::sequence::id_sequence;

/// What is wrong with the sequence now, in words.
async fn fault(fixture: &Fixture) -> Option<String> {
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    id_sequence(&mut connection).await.unwrap().check().err().map(|fault| fault.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_that_lets_ids_come_out_of_order_is_a_fault_with_its_mend() {
    let fixture = Fixture::new("each_setting_that_lets_ids").await;
    assert_eq!(fault(&fixture).await, None, "an empty outbox");
    fixture.insert_all("k", 1, 3).await;
    assert_eq!(fault(&fixture).await, None);
    for (change, word) in [
        ("ALTER SEQUENCE outbox_id_seq CACHE 50", "CACHE 50"),
        ("ALTER SEQUENCE outbox_id_seq INCREMENT 2", "INCREMENT 2"),
        ("ALTER SEQUENCE outbox_id_seq MINVALUE -5 INCREMENT -1", "INCREMENT -1"),
        ("ALTER SEQUENCE outbox_id_seq CYCLE", "1 CYCLE"),
        ("ALTER SEQUENCE outbox_id_seq RESTART", "stands at 0, below the highest id 3"),
        ("SELECT setval('outbox_id_seq', 2)", "stands at 2, below the highest id 3"),
        (
            "UPDATE relay_lanes SET position = 900, seen = '5:5:' WHERE lane = 7",
            "stands at 3, below the highest id 900",
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(change)).execute(&fixture.database.pool).await.unwrap();
        let fault_now = fault(&fixture).await.unwrap_or_else(|| panic!("{change} is no fault"));
        assert!(fault_now.contains(word) && !fault_now.contains('\n'), "{fault_now}");
        let mend = fault_now.split('`').nth(1).expect("the message names a statement").to_owned();
        sqlx::raw_sql(AssertSqlSafe(mend)).execute(&fixture.database.pool).await.unwrap();
        assert_eq!(fault(&fixture).await, None, "{change} is mended");
    }
}

/// Mends the sequence behind two events of `k`: all four are published, once and in order.
async fn goes_on_once_mended(fixture: &Fixture) {
    sqlx::query("ALTER SEQUENCE outbox_id_seq CACHE 1").execute(&fixture.database.pool).await.unwrap();
    fixture.insert_all("k", 3, 4).await;
    let records = fixture.published(4).await;
    assert_complete_and_in_order(&records, |_| 4, 1);
    all_settled(fixture).await;
    assert_no_repeats(&fixture.published(4).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_waits_while_ids_come_out_of_order_and_goes_on_by_itself() {
    let fixture = Fixture::with_topic("a_relay_waits_while_ids").await;
    fixture.insert_all("k", 1, 2).await;
    sqlx::query("ALTER SEQUENCE outbox_id_seq CACHE 50").execute(&fixture.database.pool).await.unwrap();
    let relay = fixture.process(&[]);
    eventually("the relay says what to do", async || {
        relay.log().contains("ALTER SEQUENCE outbox_id_seq CACHE 1 INCREMENT 1 NO CYCLE").then_some(())
    })
    .await;
    let settled: bool = sqlx::query_scalar("SELECT bool_or(position > 0) FROM relay_lanes")
        .fetch_one(&fixture.database.pool)
        .await
        .unwrap();
    assert!(!settled, "nothing is published meanwhile");
    goes_on_once_mended(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_runs_finds_out_within_two_minutes_and_goes_on_by_itself() {
    let fixture = Fixture::with_topic("a_relay_that_runs_finds_out").await;
    let relay = fixture.process(&[]);
    fixture.insert_all("k", 1, 2).await;
    fixture.published(2).await;
    sqlx::query("ALTER SEQUENCE outbox_id_seq CACHE 50").execute(&fixture.database.pool).await.unwrap();
    eventually_within(Duration::from_mins(2), "the relay says what to do", async || {
        relay.log().contains("ALTER SEQUENCE outbox_id_seq CACHE 1 INCREMENT 1 NO CYCLE").then_some(())
    })
    .await;
    goes_on_once_mended(&fixture).await;
}
