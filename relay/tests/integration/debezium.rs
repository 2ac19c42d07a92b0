//! The view `outbox_debezium`, as a service writes to it that was made for Debezium's outbox event router.

use sqlx::{Acquire, AssertSqlSafe};

use crate::support::{Fixture, assert_complete_and_in_order, published};

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_debeziums_columns_are_published_to_debeziums_topic() {
    let fixture = Fixture::new("rows_in_debeziums_columns").await;
    fixture.grant("outrider_writer", &fixture.aggregate_type).await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    sqlx::query("SET ROLE outrider_writer").execute(&mut *connection).await.unwrap();
    // The payload as each of the types that such tables have; what is json or text keeps its bytes.
    for payload in ["'{\"id\":  1}'", "'{\"id\":  1}'::json", "'{\"id\":  1}'::jsonb", "'{\"id\":  1}'::varchar(255)"] {
        let mut transaction = connection.begin().await.unwrap();
        let sql = format!(
            "INSERT INTO outbox_debezium (id, aggregatetype, aggregateid, type, payload)
             VALUES (gen_random_uuid(), $1, '7', 'OrderCreated', {payload}) RETURNING id"
        );
        let id: uuid::Uuid = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&fixture.aggregate_type)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        // As an object-relational mapper does at once; it counts on one row.
        let deleted = sqlx::query("DELETE FROM outbox_debezium WHERE id = $1").bind(id);
        assert_eq!(deleted.execute(&mut *transaction).await.unwrap().rows_affected(), 1);
        transaction.commit().await.unwrap();
    }
    let sql =
        "INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload, \"timestamp\", tracingspancontext)
        VALUES ($1, '7', 'OrderPaid', '2', 1556890294344, $2)";
    let context = "#Tue Nov 24 10:00:00 UTC 2026\ntracestate=a\\=b,c\\=d\ntraceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n";
    sqlx::query(sql).bind(&fixture.aggregate_type).bind(context).execute(&mut *connection).await.unwrap();

    let relay = fixture.relay(&[("RELAY_ROUTES", "*=outbox.event.*")]);
    let records = published(&format!("outbox.event.{}", fixture.aggregate_type), 5).await;
    assert_complete_and_in_order(&records, |_| 5, 1);
    let payloads: Vec<&str> = records.iter().map(|record| record.payload.as_str()).collect();
    assert_eq!(payloads, ["{\"id\":  1}", "{\"id\":  1}", "{\"id\": 1}", "{\"id\":  1}", "2"]);
    assert_eq!(records[0].key, "7");
    assert_eq!(records[0].headers["ce_type"], "OrderCreated");
    assert!(!records[0].headers.contains_key("traceparent") && !records[0].headers.contains_key("timestamp"));
    let last = &records[4].headers;
    assert_eq!(last["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!((last["tracestate"].as_str(), last["timestamp"].as_str()), ("a=b,c=d", "1556890294344"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_shows_and_deletes_nothing_of_other_transactions() {
    let fixture = Fixture::new("the_view_shows_and_deletes").await;
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let sql = "INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ('a', 'k', 't', '1')";
    sqlx::query(sql).execute(&mut *connection).await.unwrap();
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox_debezium").fetch_one(&mut *connection).await.unwrap();
    let deleted = sqlx::query("DELETE FROM outbox_debezium").execute(&mut *connection).await.unwrap().rows_affected();
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query(sql).execute(&mut *transaction).await.unwrap();
    let own: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox_debezium").fetch_one(&mut *transaction).await.unwrap();
    let changed = sqlx::query("UPDATE outbox_debezium SET payload = '2'").execute(&mut *transaction).await.unwrap_err();
    transaction.rollback().await.unwrap();
    assert_eq!((seen, deleted, own), (0, 0, 1));
    assert_eq!(changed.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("0A000"));
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_event_is_refused() {
    let fixture = Fixture::new("what_makes_no_event").await;
    for (values, state) in [
        ("'a', 'k', 't', NULL", "22023"),
        ("'a', NULL, 't', '1'", "22023"),
        ("NULL, 'k', 't', '1'", "22023"),
        ("'a', 'k', 't', 'no json'", "22P02"),
    ] {
        let sql = format!("INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ({values})");
        let error = sqlx::query(AssertSqlSafe(sql)).execute(&fixture.database.pool).await.unwrap_err();
        assert_eq!(
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some(state),
            "{values}: {error}"
        );
    }
}
