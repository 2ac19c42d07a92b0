//! Readers of the outbox's times, on times that chrono does not have.

use relay::backlog::look;

use super::stage::Stage;

/// One of each kind, as SQL.
const ODD: [&str; 5] = [
    "'infinity'",
    "'-infinity'",
    "'294276-12-31 23:59:59+00'",
    "'4713-01-01 00:00:00+00 BC'",
    "'10000-01-01 00:00:00+00'",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_a_backlog_is_a_number_whatever_its_rows_say() {
    let stage = Stage::new("the_age_of_a_backlog").await;
    let mut connection = stage.fixture.database.pool.acquire().await.unwrap();
    let ages = async |connection: &mut sqlx::PgConnection| -> Vec<f64> {
        let found = look(connection).await.expect("the backlog can be looked at");
        found.backlogs.iter().filter_map(|backlog| backlog.oldest_age_secs).collect()
    };
    assert_eq!(ages(&mut connection).await, [] as [f64; 0], "an empty lane has no age");
    for (key, time) in ODD.iter().enumerate() {
        stage.plant("thing", 1, &[("aggregate_id", &format!("'{key}'")), ("occurred_at", time)]).await;
        let ages = ages(&mut connection).await;
        assert!(!ages.is_empty() && ages.iter().all(|age| (0.0..1e12).contains(age)), "{time}: {ages:?}");
    }

    // The same of rows that committed late.
    stage.run("SELECT setval('outbox_id_seq', 1000)").await;
    stage.plant("thing", 1, &[]).await;
    stage.settle().await;
    for (id, time) in ODD.iter().enumerate() {
        stage
            .run(&format!(
                "INSERT INTO outbox (id, aggregate_type, aggregate_id, aggregate_version, type, payload, occurred_at)
                OVERRIDING SYSTEM VALUE VALUES ({}, 'thing', 'late{id}', 1, 'thing.made', '{{}}', {time})",
                id + 100
            ))
            .await;
    }
    let found = look(&mut connection).await.expect("the backlog can be looked at");
    assert_eq!(found.backlogs.iter().map(|backlog| backlog.late_rows).sum::<i64>(), 5);
    let ages: Vec<f64> = found.backlogs.iter().filter_map(|backlog| backlog.oldest_age_secs).collect();
    assert!(ages.iter().all(|age| (0.0..1e12).contains(age)), "{ages:?}");
}
