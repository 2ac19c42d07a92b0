//! Each transition reaches each reader once, whatever transactions, readers and servers do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::testing::{PATIENCE, TestDatabase};
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::service::Api;
use crate::watcher::Watcher;

const ORDERS: i64 = 12;
const USERS: i64 = 3;
const WRITERS: u64 = 6;
const TRANSACTIONS: usize = 40;
const READERS: u64 = 6;

/// A change of an order by one statement, as the services write it: the order is locked, then its event follows. `count` versions at once.
async fn change(connection: &mut PgConnection, order: i64, count: i64) -> Result<(), sqlx::Error> {
    let text = "WITH changed AS (
            UPDATE orders SET version = version + $2 WHERE id = $1 RETURNING id, user_id, version
        )
        INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT gen_random_uuid(), 'order', id::text, version - $2 + step, 'order.touched',
            json_build_object('user_id', user_id, 'status', 'Pending', 'failure_reason', NULL)
        FROM changed, generate_series(1, $2) step ORDER BY step";
    sqlx::query(text).bind(order).bind(count).execute(&mut *connection).await.map(drop)
}

/// An event of something else in the same lanes.
async fn other(connection: &mut PgConnection, id: i64) -> Result<(), sqlx::Error> {
    let text = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        VALUES (gen_random_uuid(), 'other', $1::text, 1, 'other.made', '{}')";
    sqlx::query(text).bind(id).execute(&mut *connection).await.map(drop)
}

/// Transactions of all kinds: long and short, rolled back, with savepoints, of one row or of thousands.
async fn write(pool: PgPool, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..TRANSACTIONS {
        let mut transaction = pool.begin().await.expect("a transaction begins");
        let mut orders: Vec<i64> = (0..random.random_range(1..4)).map(|_| random.random_range(1..=ORDERS)).collect();
        // In their order, so that nobody locks another out.
        orders.sort_unstable();
        orders.dedup();
        for order in orders {
            let count = if random.random_ratio(1, 40) { random.random_range(260..2_600) } else { 1 };
            if random.random_ratio(1, 4) {
                sqlx::query("SAVEPOINT s").execute(&mut *transaction).await.expect("a savepoint");
                change(&mut transaction, order, 1).await.expect("it changes");
                let end = if random.random_bool(0.5) { "ROLLBACK TO SAVEPOINT s" } else { "RELEASE SAVEPOINT s" };
                sqlx::query(end).execute(&mut *transaction).await.expect("the savepoint ends");
            }
            change(&mut transaction, order, count).await.expect("it changes");
            other(&mut transaction, order).await.expect("it is written");
            // Holds it open, at times for longer than many looks.
            let held_ms = if random.random_ratio(1, 10) { 150 } else { random.random_range(0..8) };
            sleep(Duration::from_millis(held_ms)).await;
        }
        if random.random_ratio(1, 8) {
            transaction.rollback().await.expect("it rolls back");
        } else {
            transaction.commit().await.expect("it commits");
        }
    }
}

/// Reads until it has got `expected` changes, as soon as that is known, coming and going, at either server.
async fn read(
    servers: Arc<Mutex<[SocketAddr; 2]>>,
    path: String,
    mut last_id: Option<String>,
    seed: u64,
    expected: impl Fn() -> Option<usize>,
) -> Vec<(i64, i64)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut found = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while expected().is_none_or(|expected| found.len() < expected) {
        assert!(Instant::now() < deadline, "{} changes of {:?}", found.len(), expected());
        let address = servers.lock().expect("no panic")[random.random_range(0..2_usize)];
        // A server that goes down takes no more connections, or says so.
        let Some(mut watcher) = Watcher::try_open(address, &path, last_id.as_deref()).await else { continue };
        if watcher.status == 503 {
            continue;
        }
        assert_eq!(watcher.status, 200, "{}", watcher.head);
        let blocks = random.random_range(1..400);
        let leaves = Instant::now() + Duration::from_millis(random.random_range(1..300));
        for _ in 0..blocks {
            let left = leaves.saturating_duration_since(Instant::now());
            // Whoever leaves amid a block has not got it.
            let Ok(Some(message)) = tokio::time::timeout(left, watcher.next()).await else { break };
            found.extend(message.change());
        }
        last_id = watcher.last_id.clone();
    }
    found
}

fn assert_each_once(found: &[(i64, i64)], users_orders: impl Fn(i64) -> bool, versions: &HashMap<i64, i64>) {
    let mut next: HashMap<i64, i64> = HashMap::new();
    for (order, version) in found {
        assert!(users_orders(*order), "order {order} is not asked for");
        let expected = next.entry(*order).or_insert(2);
        assert_eq!(version, expected, "order {order}");
        *expected += 1;
    }
    for (order, version) in versions.iter().filter(|(order, _)| users_orders(**order)) {
        assert_eq!(next.get(order).copied().unwrap_or(2), version + 1, "all of order {order}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reader_gets_each_transition_once_whatever_happens() {
    let database = TestDatabase::create("each_transition_once").await;
    let make =
        "INSERT INTO orders (user_id, product_id, quantity) SELECT 1 + n % 3, 1, 1 FROM generate_series(1, 12) n";
    sqlx::query(make).execute(&database.pool).await.expect("orders");
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    // The second one cuts off readers at the slightest delay, and goes down now and then.
    let steady = Api::start(&database).await;
    let fickle = || Api::with(&database, |limits| limits.watching.sse_buffer_events = 20);
    let mut other = fickle().await;
    let servers = Arc::new(Mutex::new([steady.address, other.address]));

    // Everybody begins before the first transaction.
    let mut first = Watcher::open(steady.address, "/orders/events", None).await;
    let begin = first.next().await.expect("the stream begins").id;
    let (told, total) = tokio::sync::watch::channel(None::<HashMap<i64, i64>>);
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let user = (number % 3 == 2).then(|| 1 + i64::try_from(number).expect("small") % USERS);
        let path = user.map_or("/orders/events".to_owned(), |user| format!("/orders/events?user_id={user}"));
        let (servers, begin, total) = (Arc::clone(&servers), begin.clone(), total.clone());
        readers.spawn(async move {
            let mine = move |order: i64| user.is_none_or(|user| 1 + order % 3 == user);
            let expected = || {
                let total = total.borrow();
                let versions = total.as_ref()?.iter().filter(|(order, _)| mine(**order));
                usize::try_from(versions.map(|(_, version)| version - 1).sum::<i64>()).ok()
            };
            let found = read(servers, path, begin, seed.wrapping_add(1_000 + number), expected).await;
            let versions = total.borrow().clone().expect("all is written");
            assert_each_once(&found, mine, &versions);
        });
    }
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        writers.spawn(write(database.pool.clone(), seed.wrapping_add(number)));
    }
    for _ in 0..2 {
        writers.join_next().await.expect("a writer").expect("no panic");
        other.stop().await;
        other = fickle().await;
        servers.lock().expect("no panic")[1] = other.address;
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("no panic");
    }
    let versions: Vec<(i64, i64)> =
        sqlx::query_as("SELECT id, version FROM orders").fetch_all(&database.pool).await.expect("the orders");
    told.send_replace(Some(versions.into_iter().collect()));
    while let Some(ended) = readers.join_next().await {
        ended.expect("each once");
    }
    // The one that never left.
    let versions = total.borrow().clone().expect("all is written");
    let count = versions.values().map(|version| version - 1).sum::<i64>();
    let mut found = Vec::new();
    while i64::try_from(found.len()).expect("few") < count {
        // It is not read meanwhile, and may be cut off for that; then it goes on.
        if let Some(message) = first.next().await {
            found.extend(message.change());
        } else {
            let last_id = first.last_id.clone();
            first = Watcher::open(steady.address, "/orders/events", last_id.as_deref()).await;
        }
    }
    assert_each_once(&found, |_| true, &versions);
    drop(first);
    steady.stop().await;
    other.stop().await;
}
