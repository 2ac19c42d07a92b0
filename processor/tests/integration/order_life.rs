//! An order whose processing is given up is Failed, and Processed after all when its event is replayed.

use uuid::Uuid;

use crate::keeper::QUICK;
use crate::support::{Order, Process, World};

/// From now on, to process these orders fails with this SQLSTATE.
pub async fn break_orders(world: &World, orders: &[&Order], sql_state: &str) {
    world.table("bad_orders (id bigint PRIMARY KEY, sql_state text NOT NULL)").await;
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE bad text;
        BEGIN
            SELECT sql_state INTO bad FROM bad_orders WHERE id = NEW.id;
            IF FOUND AND NEW.status = 'Processed' THEN
                RAISE EXCEPTION 'out of stock' USING ERRCODE = bad;
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(trigger).execute(&world.database.pool).await.expect("a trigger");
    let ids: Vec<i64> = orders.iter().map(|order| order.id).collect();
    sqlx::query("INSERT INTO bad_orders SELECT id, $2 FROM UNNEST($1::bigint[]) AS new (id)")
        .bind(ids)
        .bind(sql_state)
        .execute(&world.database.pool)
        .await
        .expect("bad orders");
}

/// All orders can be processed again.
pub async fn mend_orders(world: &World) {
    sqlx::query("TRUNCATE bad_orders").execute(&world.database.pool).await.expect("mended");
}

impl World {
    /// The states that an order has gone through, checked: each version has one transition and, from the second on, one event.
    pub async fn life(&self, order: &Order) -> Vec<String> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT t.to_status, t.version, (SELECT count(*) FROM outbox o WHERE o.event_id = t.event_id
                AND o.aggregate_id = t.order_id::text AND o.aggregate_version = t.version
                AND o.type = 'order.' || lower(t.to_status))
            FROM order_transitions t WHERE t.order_id = $1 ORDER BY t.version",
        )
        .bind(order.id)
        .fetch_all(&self.database.pool)
        .await
        .expect("a life");
        for (place, (_, version, events)) in rows.iter().enumerate() {
            assert_eq!((*version, *events), (i64::try_from(place).expect("small") + 1, i64::from(place > 0)));
        }
        rows.into_iter().map(|(status, _, _)| status).collect()
    }

    /// Has a processor that dies at `failpoint` come and go.
    pub async fn die_at(&self, failpoint: &str) {
        let mut variables = QUICK.to_vec();
        variables.push(("PROCESSOR_FAILPOINT", failpoint));
        let mut process: Process = self.spawn(&variables);
        assert!(!process.ended().await, "it has died at {failpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_given_up_is_failed_with_the_reason_and_processed_after_a_replay() {
    let world = World::new("life", 1).await;
    let orders = world.orders(3).await;
    break_orders(&world, &[&orders[1]], "P0001").await;
    world.produce(orders.iter().map(|order| order.created(1)));
    let running = world.start(&[]);
    world.eventually_processed(2).await;
    let key = orders[1].id.to_string();
    world.eventually_state(&key, Some("parked")).await;
    let (status, reason, version): (String, String, i64) =
        sqlx::query_as("SELECT status, failure_reason, version FROM orders WHERE id = $1")
            .bind(orders[1].id)
            .fetch_one(&world.database.pool)
            .await
            .expect("an order");
    assert_eq!((status.as_str(), version), ("Failed", 2));
    assert!(reason.contains("out of stock"), "{reason}");
    assert_eq!(world.life(&orders[1]).await, ["Pending", "Failed"]);
    let told = world.count("SELECT count(*) FROM order_transitions WHERE reason LIKE '%out of stock%'").await;
    assert_eq!(told, 1);
    let payload: String = sqlx::query_scalar("SELECT payload::text FROM outbox WHERE type = 'order.failed'")
        .fetch_one(&world.database.pool)
        .await
        .expect("its event");
    assert!(payload.contains("out of stock"), "{payload}");

    // Refused once more: it stays as it is.
    let (applied, waiting, reason) = world.replay(&key, 0, false).await;
    assert_eq!((applied, waiting), (0, 1));
    assert!(reason.is_some_and(|reason| reason.contains("out of stock")));
    assert_eq!(world.life(&orders[1]).await, ["Pending", "Failed"]);

    mend_orders(&world).await;
    assert_eq!(world.replay(&key, 0, true).await, (1, 0, None));
    assert_eq!(world.life(&orders[1]).await, ["Pending", "Failed"]);
    assert_eq!(world.replay(&key, 0, false).await, (1, 0, None));
    assert_eq!(world.life(&orders[1]).await, ["Pending", "Failed", "Processed"]);
    assert_eq!(world.count("SELECT count(*) FROM orders WHERE failure_reason IS NOT NULL").await, 0);

    // Another event of its creation changes nothing any more.
    world.produce([orders[1].event(Uuid::now_v7(), 0)]);
    world.eventually_at(0, 4).await;
    running.stop().await;
    for order in [&orders[0], &orders[2]] {
        assert_eq!(world.life(order).await, ["Pending", "Processed"]);
    }
    assert_eq!(world.life(&orders[1]).await, ["Pending", "Failed", "Processed"]);
    world.assert_nothing_waits().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_attempts_are_exhausted_is_failed_once() {
    let world = World::new("tired", 1).await;
    let order = world.orders(1).await.remove(0);
    break_orders(&world, &[&order], "55P03").await;
    world.produce([order.created(1)]);
    let mut variables = QUICK.to_vec();
    variables.push(("PROCESSOR_KEY_ATTEMPTS_MAX", "3"));
    let running = world.start(&variables);
    world.eventually_state(&order.id.to_string(), Some("parked")).await;
    running.stop().await;
    assert_eq!(world.life(&order).await, ["Pending", "Failed"]);
}
