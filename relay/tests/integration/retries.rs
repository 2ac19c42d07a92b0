//! The statements of a retry of parked keys, under the relay's own role. Who asks for one is an operator.

use std::time::Duration;

use relay::outbox;
use relay::outbox::parked::{
    Beginning, HeldKey, Remaining, RetryRequest, begin_retry, park, parked_keys, parked_rows, refuse_retry,
    retry_requests, settle_retry,
};
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};

use crate::support::{Fixture, insert};

/// A connection of a relay that holds all lanes, and one key with its parked events.
struct Stage {
    fixture: Fixture,
    connection: PoolConnection<Postgres>,
    lane: i16,
    token: i64,
}

impl Stage {
    /// Parks versions 1 to `parked` of the key `k`, the first as refused, and as many of a second key of the same lane.
    async fn new(test: &str, parked: i64) -> Self {
        let fixture = Fixture::new(test).await;
        let mut connection = fixture.database.pool.acquire().await.unwrap();
        connection.close_on_drop();
        let keys: Vec<String> = fixture.keys_of_one_lane(2).await;
        for version in 1..=parked {
            for key in &keys {
                insert(&mut connection, &fixture.aggregate_type, key, version, "{\"a\":  1}").await;
            }
        }
        sqlx::query("SET ROLE outrider_relay").execute(&mut *connection).await.unwrap();
        let lanes = outbox::claim_lanes(&mut connection, "relay", Duration::from_mins(1), &[], 16).await.unwrap();
        let lane = lanes.iter().find(|lane| lane.lane == 3).unwrap();
        let mut stage = Self { lane: lane.lane, token: lane.token, fixture, connection };
        stage.park_from(1, Some("too large")).await;
        stage
    }

    /// Parks all rows of the outbox from this id on that are not parked.
    async fn park_from(&mut self, id: i64, reason: Option<&str>) {
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM outbox WHERE id >= $1 ORDER BY id")
            .bind(id)
            .fetch_all(&mut *self.connection)
            .await
            .unwrap();
        let mut reasons = vec![None; ids.len()];
        reasons[0] = reason;
        assert!(park(&mut self.connection, self.lane, self.token, &ids, &reasons).await.unwrap());
    }

    async fn key(&self, number: usize) -> (String, String) {
        (self.fixture.aggregate_type.clone(), self.fixture.keys_of_one_lane(2).await[number].clone())
    }

    /// As an operator asks.
    async fn request(&self, key: &(String, String)) {
        let sql = "INSERT INTO relay_parked_requests (lane, aggregate_type, aggregate_id, requested_by) VALUES ($1, $2, $3, 'me')";
        let insert = sqlx::query(sql).bind(self.lane).bind(&key.0).bind(&key.1);
        insert.execute(&self.fixture.database.pool).await.unwrap();
    }

    fn held<'a>(&self, key: &'a (String, String)) -> HeldKey<'a> {
        HeldKey { lane: self.lane, token: self.token, aggregate_type: &key.0, aggregate_id: &key.1 }
    }

    async fn requests(&mut self) -> Vec<RetryRequest> {
        let lanes: Vec<i16> = (0..16).collect();
        retry_requests(&mut self.connection, &lanes, 10).await.unwrap()
    }

    /// All that is parked, and all requests, as text.
    async fn state(&self) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT p::text FROM relay_parked p UNION ALL SELECT r::text FROM relay_parked_requests r ORDER BY 1",
        )
        .fetch_all(&self.fixture.database.pool)
        .await
        .unwrap()
    }
}

async fn versions(connection: &mut PgConnection, key: &HeldKey<'_>, rows_max: i64) -> Vec<(i64, i64)> {
    let rows = parked_rows(connection, key, rows_max).await.unwrap();
    assert!(
        rows.iter().all(|row| row.payload.as_deref() == Some("{\"a\":  1}") && row.aggregate_id == key.aggregate_id)
    );
    rows.iter().map(|row| (row.aggregate_version, row.id)).collect()
}

fn ids(rows: &[(i64, i64)]) -> Vec<i64> {
    rows.iter().map(|(_, id)| *id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_on_in_order_until_nothing_of_the_key_is_left() {
    let mut stage = Stage::new("a_retry_goes_on_in_order", 5).await;
    let (key, other) = (stage.key(0).await, stage.key(1).await);
    let held = stage.held(&key);
    assert_eq!(stage.requests().await, []);
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::Withdrawn, "nobody has asked");
    stage.request(&key).await;
    let requests = stage.requests().await;
    assert_eq!(requests, [RetryRequest { lane: 3, aggregate_type: key.0.clone(), aggregate_id: key.1.clone() }]);
    assert_eq!(retry_requests(&mut stage.connection, &[1, 2, 4], 10).await.unwrap(), [], "not of these lanes");
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::Begun);

    let first = versions(&mut stage.connection, &held, 3).await;
    assert_eq!(first.iter().map(|row| row.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(settle_retry(&mut stage.connection, &held, &ids(&first)).await.unwrap(), Remaining::Rows);
    // A later event of the key is parked behind, for the key is still parked in the relay's memory.
    let late =
        insert(&mut stage.fixture.database.pool.acquire().await.unwrap(), &key.0, &key.1, 6, "{\"a\":  1}").await;
    stage.park_from(late, None).await;
    let rest = versions(&mut stage.connection, &held, 10).await;
    assert_eq!(rest.iter().map(|row| row.0).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(settle_retry(&mut stage.connection, &held, &ids(&rest)[..2]).await.unwrap(), Remaining::Rows);
    assert_eq!(stage.requests().await.len(), 1);
    assert_eq!(settle_retry(&mut stage.connection, &held, &ids(&rest)[2..]).await.unwrap(), Remaining::Nothing);
    assert_eq!(stage.requests().await, []);
    let parked = parked_keys(&mut stage.connection, &[3]).await.unwrap();
    assert_eq!(parked, [(3, other.0, other.1.clone())], "the other key is as it was");
    assert_eq!(stage.state().await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_key_of_which_everything_was_discarded_ends_at_once() {
    let mut stage = Stage::new("a_retry_of_a_key_of_which", 1).await;
    let key = stage.key(0).await;
    stage.request(&key).await;
    sqlx::query("DELETE FROM relay_parked WHERE aggregate_id = $1")
        .bind(&key.1)
        .execute(&stage.fixture.database.pool)
        .await
        .unwrap();
    let held = stage.held(&key);
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::Begun);
    assert_eq!(parked_rows(&mut stage.connection, &held, 10).await.unwrap().len(), 0);
    assert_eq!(settle_retry(&mut stage.connection, &held, &[]).await.unwrap(), Remaining::Nothing);
    assert_eq!(stage.requests().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_kafka_refuses_ends_with_the_new_reason() {
    let mut stage = Stage::new("a_retry_that_kafka_refuses", 3).await;
    let (key, other) = (stage.key(0).await, stage.key(1).await);
    stage.request(&key).await;
    stage.request(&other).await;
    let held = stage.held(&key);
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::Begun);
    let rows = versions(&mut stage.connection, &held, 10).await;
    assert_eq!(settle_retry(&mut stage.connection, &held, &ids(&rows)[..1]).await.unwrap(), Remaining::Rows);
    assert!(refuse_retry(&mut stage.connection, &held, rows[1].1, "still too large").await.unwrap());
    let requests = stage.requests().await;
    assert_eq!(requests.iter().map(|request| &request.aggregate_id).collect::<Vec<_>>(), [&other.1]);
    let parked: Vec<(i64, Option<String>)> =
        sqlx::query_as("SELECT aggregate_version, reason FROM relay_parked WHERE aggregate_id = $1 ORDER BY id")
            .bind(&key.1)
            .fetch_all(&mut *stage.connection)
            .await
            .unwrap();
    assert_eq!(parked, [(2, Some("still too large".to_owned())), (3, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_lost_the_lane_changes_nothing_of_a_retry() {
    let mut stage = Stage::new("a_relay_that_has_lost_the_lane", 3).await;
    let key = stage.key(0).await;
    stage.request(&key).await;
    let held = stage.held(&key);
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::Begun);
    let rows = versions(&mut stage.connection, &held, 10).await;
    // Its lease ends, and another relay takes the lane and begins with the same retry.
    sqlx::query("UPDATE relay_lanes SET expires_at = now()").execute(&stage.fixture.database.pool).await.unwrap();
    let taken = outbox::claim_lanes(&mut stage.connection, "successor", Duration::from_mins(1), &[], 16).await.unwrap();
    let successor = HeldKey { token: taken.iter().find(|lane| lane.lane == 3).unwrap().token, ..held };
    assert_eq!(begin_retry(&mut stage.connection, &successor).await.unwrap(), Beginning::Begun);
    let before = stage.state().await;
    assert_eq!(begin_retry(&mut stage.connection, &held).await.unwrap(), Beginning::LaneLost);
    assert_eq!(settle_retry(&mut stage.connection, &held, &ids(&rows)).await.unwrap(), Remaining::LaneLost);
    assert!(!refuse_retry(&mut stage.connection, &held, rows[0].1, "refused").await.unwrap());
    assert_eq!(stage.state().await, before);
    assert_eq!(versions(&mut stage.connection, &successor, 10).await, rows, "the successor publishes them again");
    assert_eq!(settle_retry(&mut stage.connection, &successor, &ids(&rows)).await.unwrap(), Remaining::Nothing);
}
