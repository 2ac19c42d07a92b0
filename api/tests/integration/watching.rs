//! Event streams, waiting for an order, and what becomes of both when things go wrong.

use std::time::{Duration, Instant};

use shared::testing::{TestDatabase, eventually};
use tokio::time::timeout;

use crate::http::{Answer, request, send};
use crate::proxy::{Proxy, Way};
use crate::service::{Api, ORDER, execute};
use crate::watcher::Watcher;

/// Moves an order on as the processor does.
async fn process(database: &TestDatabase, order: i64) {
    let text = "WITH changed AS (
            UPDATE orders AS o SET status = 'Processed', version = version + 1, updated_at = now()
            WHERE id = $1 AND status = 'Pending'
            RETURNING id, version, row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                o.updated_at, o.failure_reason)::order_document) AS document, gen_random_uuid() AS event_id
        ), history AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
            SELECT id, version, 'Pending', 'Processed', event_id FROM changed
        )
        INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
        SELECT event_id, 'order', id::text, version, 'order.processed', document FROM changed";
    let done = sqlx::query(text).bind(order).execute(&database.pool).await.expect("it is processed");
    assert_eq!(done.rows_affected(), 1);
}

fn order_of(user: i64) -> String {
    format!(r#"{{"user_id": {user}, "product_id": 2, "quantity": 3}}"#)
}

async fn get(api: &Api, path: &str, headers: &str) -> Answer {
    send(api.address, request("GET", path, headers, b"")).await
}

#[tokio::test]
async fn every_transition_is_told_as_it_happens_to_those_who_asked_for_it() {
    let database = TestDatabase::create("told_as_it_happens").await;
    let api = Api::start(&database).await;
    let mut all = Watcher::open(api.address, "/orders/events", None).await;
    let mut users = Watcher::open(api.address, "/orders/events?user_id=2", None).await;
    let mut done = Watcher::open(api.address, "/orders/events?status=Processed", None).await;
    let opening = all.next().await.expect("it begins");
    assert!(opening.retry.is_some() && opening.id.is_some() && opening.data.is_none(), "{opening:?}");
    for user in [1, 2] {
        assert_eq!(api.post(&order_of(user)).await.status, 201);
    }
    process(&database, 1).await;
    assert_eq!(send(api.address, request("DELETE", "/orders/2", "", b"")).await.status, 204);

    let mut told = Vec::new();
    for _ in 0..4 {
        let message = all.change().await;
        let data = message.data.clone().expect("data");
        assert_eq!(message.event.as_deref(), data["type"].as_str());
        for field in ["event_id", "occurred_at", "user_id"] {
            assert!(!data[field].is_null(), "{data}");
        }
        told.push((message.change().expect("a change"), data["type"].to_string(), data["status"].to_string()));
    }
    told.sort();
    let expected = [
        (1, 1, "created", "Pending"),
        (1, 2, "processed", "Processed"),
        (2, 1, "created", "Pending"),
        (2, 2, "deleted", "Deleted"),
    ];
    let expected = expected
        .map(|(order, version, kind, status)| ((order, version), format!("\"order.{kind}\""), format!("\"{status}\"")));
    assert_eq!(told, expected);
    assert_eq!([users.change().await.change(), users.change().await.change()], [Some((2, 1)), Some((2, 2))]);
    assert_eq!(done.change().await.change(), Some((1, 2)));
    api.stop().await;
}

#[tokio::test]
async fn an_order_tells_its_past_and_then_its_future_and_ends_with_it() {
    let database = TestDatabase::create("past_and_future").await;
    let api = Api::start(&database).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut watcher = Watcher::open(api.address, "/orders/1/events", None).await;
    assert_eq!(watcher.change().await.change(), Some((1, 1)));
    process(&database, 2).await;
    process(&database, 1).await;
    let message = watcher.change().await;
    assert_eq!((message.change(), message.id.as_deref()), (Some((1, 2)), Some("2")));
    // Another one comes later, one has been there before, one knows all of it.
    let mut late = Watcher::open(api.address, "/orders/1/events", None).await;
    let mut back = Watcher::open(api.address, "/orders/1/events", Some("1")).await;
    let knows = Watcher::open(api.address, "/orders/1/events", Some("2")).await;
    assert_eq!([late.change().await.change(), late.change().await.change()], [Some((1, 1)), Some((1, 2))]);
    assert_eq!(back.change().await.change(), Some((1, 2)));
    assert_eq!(send(api.address, request("DELETE", "/orders/1", "", b"")).await.status, 204);
    for mut watcher in [watcher, late, back, knows] {
        assert_eq!(watcher.change().await.change(), Some((1, 3)));
        assert_eq!(watcher.next().await, None, "nothing more can become of it");
    }
    for path in ["/orders/1/events", "/orders/9/events", "/orders/x/events"] {
        let answer = get(&api, path, "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "/problems/order-not-found"), "{path}");
    }
    api.stop().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_a_reason() {
    let database = TestDatabase::create("cannot_be_resumed").await;
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let id = watcher.next().await.expect("it begins").id.expect("an id");
    for bad in ["7", "x", "1.2.3", &id[1..].replace('.', ""), &format!("{id}.1")] {
        let answer = get(&api, "/orders/events", &format!("last-event-id: {bad}\r\n")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-event-id"), "{bad}");
    }
    let answer = get(&api, "/orders/1/events", "last-event-id: 1.5\r\n").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-event-id"));
    let answer = get(&api, "/orders/events?product_id=1", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-query"));
    // Signed with a key that there is not, and changed.
    let (key, rest) = id.split_once('.').expect("fields");
    let other = format!("{key}f.{rest}");
    let (start, signature) = id.rsplit_once('.').expect("fields");
    let digit = if signature.starts_with('0') { "1" } else { "0" };
    let changed = format!("{start}.{digit}{}", &signature[1..]);
    for gone in [other, changed] {
        let answer = get(&api, "/orders/events", &format!("last-event-id: {gone}\r\n")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (410, "/problems/events-gone"), "{gone}");
    }
    // What is dropped may hold what it would have to be told.
    let past = "ALTER SEQUENCE outbox_id_seq RESTART 5000001; DROP TABLE outbox_p1";
    execute(&database, past).await;
    let answer = get(&api, "/orders/events", &format!("last-event-id: {id}\r\n")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (410, "/problems/events-gone"));
    drop(watcher);
    api.stop().await;
    // Whoever comes now begins behind that.
    let api = Api::start(&database).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let id = watcher.next().await.expect("it begins").id;
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut again = Watcher::open(api.address, "/orders/events", id.as_deref()).await;
    for watcher in [&mut watcher, &mut again] {
        assert_eq!(watcher.change().await.change(), Some((1, 1)));
    }
    api.stop().await;
}

/// Waits until the feed has noticed that nobody listens any more.
async fn feed_rests(database: &TestDatabase) {
    eventually("the feed has closed its connection", async || (feed_connections(database).await == 0).then_some(()))
        .await;
}

async fn feed_connections(database: &TestDatabase) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND (query LIKE '-- feed_snapshot%' OR query LIKE '-- read_feed%')";
    sqlx::query_scalar(count).fetch_one(&database.pool).await.expect("the activity can be seen")
}

#[tokio::test]
async fn nothing_is_read_while_nobody_listens() {
    let database = TestDatabase::create("nobody_listens").await;
    let api = Api::start(&database).await;
    assert_eq!((feed_connections(&database).await, api.metric("api_feed_reads_total").await), (0, 0));
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    watcher.change().await;
    assert!(feed_connections(&database).await > 0, "the statement is known by its name");
    drop(watcher);
    feed_rests(&database).await;
    // And begins anew.
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    assert_eq!(watcher.change().await.change(), Some((2, 1)));
    api.stop().await;
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_with_a_word_and_goes_on_from_there() {
    const BATCH: usize = 1_000;
    let database = TestDatabase::create("slow_reader").await;
    let api = Api::with(&database, |limits| limits.watching.sse_buffer_events = 5).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    let mut other = Watcher::open(api.address, "/orders/events?user_id=2", None).await;
    watcher.next().await.expect("it begins");
    let batch = format!("[{}]", vec![ORDER; BATCH].join(","));
    let batch = request("POST", "/orders/batch", "content-type: application/json\r\n", batch.as_bytes());
    // It reads nothing. The sockets hold some megabytes, so one batch may not be enough.
    let orders = eventually("the reader is cut off", async || {
        assert_eq!(send(api.address, batch.clone()).await.status, 200);
        (api.metric("api_sse_cut_off_total").await == 1).then_some(())?;
        let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&database.pool).await.ok()?;
        usize::try_from(orders).ok()
    })
    .await;
    let mut told = Vec::new();
    let last = loop {
        let message = watcher.next().await.expect("a word comes before the end");
        if message.event.as_deref() == Some("cut-off") {
            break message;
        }
        told.extend(message.change());
    };
    assert!(last.id.is_none() && last.data.expect("data")["reason"].is_string());
    assert_eq!(watcher.next().await, None);
    assert!((5..orders).contains(&told.len()), "{} of {orders}", told.len());
    assert_eq!(api.metric("api_sse_cut_off_total").await, 1);
    let last_id = watcher.last_id.clone();
    let mut watcher = Watcher::open(api.address, "/orders/events", last_id.as_deref()).await;
    while told.len() < orders {
        told.extend(watcher.change().await.change());
    }
    told.sort_unstable();
    let all = i64::try_from(orders).expect("a number of orders");
    assert_eq!(told, (1..=all).map(|order| (order, 1)).collect::<Vec<_>>());
    // Others were not held up.
    assert_eq!(api.post(&order_of(2)).await.status, 201);
    assert_eq!(other.change().await.change(), Some((all + 1, 1)));
    api.stop().await;
}

#[tokio::test]
async fn a_silent_stream_lives_and_moves_its_reader_on() {
    let database = TestDatabase::create("silent_stream").await;
    let api = Api::with(&database, |limits| limits.watching.sse_heartbeat_secs = 1).await;
    let mut users = Watcher::open(api.address, "/orders/events?user_id=2", None).await;
    let begin = users.next().await.expect("it begins").id;
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut order = Watcher::open(api.address, "/orders/1/events", None).await;
    order.change().await;
    let beat = order.next().await.expect("a heartbeat");
    assert!(beat.comment && beat.id.is_none() && beat.data.is_none(), "{beat:?}");
    let moved = eventually("the cursor moves though nothing of interest happens", async || {
        let beat = users.next().await.expect("a heartbeat");
        assert!(beat.comment && beat.data.is_none());
        (beat.id != begin).then_some(beat.id)
    })
    .await;
    assert_eq!(api.post(&order_of(2)).await.status, 201);
    let mut users = Watcher::open(api.address, "/orders/events?user_id=2", moved.as_deref()).await;
    assert_eq!(users.change().await.change(), Some((2, 1)));
    api.stop().await;
}

#[tokio::test]
async fn streams_are_limited_and_make_room_when_they_end() {
    let database = TestDatabase::create("streams_limited").await;
    let api = Api::with(&database, |limits| limits.watching.sse_readers_max = 2).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    let first = Watcher::open(api.address, "/orders/events", None).await;
    let _second = Watcher::open(api.address, "/orders/1/events", None).await;
    for path in ["/orders/events", "/orders/1/events"] {
        let answer = get(&api, path, "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/overloaded"));
    }
    drop(first);
    eventually("there is room", async || (api.metric("api_sse_readers").await == 1).then_some(())).await;
    let _third = Watcher::open(api.address, "/orders/events", None).await;
    api.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_streams_and_waiting_at_once() {
    let database = TestDatabase::create("shutdown_watching").await;
    let api = Api::start(&database).await;
    let mut watchers = vec![Watcher::open(api.address, "/orders/events", None).await];
    let headers = "content-type: application/json\r\nprefer: wait=30\r\n";
    let waiting = tokio::spawn(send(api.address, request("POST", "/orders", headers, ORDER.as_bytes())));
    watchers[0].change().await;
    watchers.push(Watcher::open(api.address, "/orders/1/events", None).await);
    watchers[1].change().await;
    let start = Instant::now();
    api.shutdown.request();
    for mut watcher in watchers {
        let mut last = None;
        while let Some(message) = watcher.next().await {
            last = Some(message);
        }
        assert!(last.expect("a word comes before the end").retry.is_some());
    }
    let answer = waiting.await.expect("no panic");
    assert_eq!((answer.status, answer.json()["status"].as_str()), (201, Some("Pending")));
    api.running.await.expect("no panic").expect("it ends in order");
    assert!(start.elapsed() < Duration::from_secs(15), "nobody is waited for: {:?}", start.elapsed());
}

#[tokio::test]
async fn streams_go_on_when_postgres_is_back() {
    let database = TestDatabase::create("streams_go_on").await;
    let (_, rest) = database.url.split_once('@').expect("a user");
    let (server, _) = rest.split_once('/').expect("a database");
    let proxy = Proxy::to(server.to_owned()).await;
    let url = database.url.replace(server, &proxy.address.to_string());
    let env = shared::config::Env::from_pairs([("DATABASE_URL", url.as_str()), ("DB_ROLE", "outrider_api")]);
    let config = shared::db::DatabaseConfig::from_env(&env, "outrider-test").expect("a good URL");
    let api = Api::on(config, |_| ()).await;
    let mut watcher = Watcher::open(api.address, "/orders/events", None).await;
    assert_eq!(api.post(ORDER).await.status, 201);
    assert_eq!(watcher.change().await.change(), Some((1, 1)));
    proxy.set(Way::Cut);
    // Meanwhile something becomes of the order, of which this server hears nothing.
    process(&database, 1).await;
    let answer = get(&api, "/orders/1/events", "").await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "/problems/unavailable"));
    proxy.set(Way::Open);
    assert_eq!(watcher.change().await.change(), Some((1, 2)));
    api.stop().await;
}

/// Posts an order, and waits for it as `prefer` says.
async fn post_and_wait(api: &Api, prefer: &str) -> Answer {
    let headers = format!("content-type: application/json\r\nprefer: {prefer}\r\n");
    send(api.address, request("POST", "/orders", &headers, ORDER.as_bytes())).await
}

#[tokio::test]
async fn a_client_that_prefers_to_wait_gets_the_order_processed() {
    let database = TestDatabase::create("prefers_to_wait").await;
    let api = Api::start(&database).await;
    // One that is processed as soon as it can be seen, and so at any moment of its request.
    let pool = database.pool.clone();
    let processor = tokio::spawn(async move {
        loop {
            let due = "UPDATE orders SET status = 'Processed', version = 2 WHERE status = 'Pending' RETURNING id";
            let mut transaction = pool.begin().await.expect("a transaction");
            let orders: Vec<i64> = sqlx::query_scalar(due).fetch_all(&mut *transaction).await.expect("orders");
            for id in orders {
                let text =
                    "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
                    SELECT gen_random_uuid(), 'order', o.id::text, 2, 'order.processed',
                        row_to_json(ROW(o.id, o.user_id, o.product_id, o.quantity, o.status, o.version, o.created_at,
                            o.updated_at, o.failure_reason)::order_document)
                    FROM orders o WHERE o.id = $1";
                sqlx::query(text).bind(id).execute(&mut *transaction).await.expect("its event");
            }
            transaction.commit().await.expect("a commit");
        }
    });
    let start = Instant::now();
    for _ in 0..10 {
        let answers =
            futures_util::future::join_all((0..20).map(|_| post_and_wait(&api, "respond-async, wait=30"))).await;
        for answer in answers {
            assert_eq!((answer.status, answer.json()["status"].as_str()), (201, Some("Processed")), "{answer:?}");
            assert_eq!((answer.header("preference-applied"), answer.header("etag")), (Some("wait"), Some("\"2\"")));
            let id = answer.json()["ID"].as_i64().expect("an id");
            assert_eq!(answer.header("location"), Some(format!("/orders/{id}").as_str()));
        }
    }
    processor.abort();
    // One that was missed would have waited for its whole time.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    api.stop().await;
}

#[tokio::test]
async fn an_order_that_is_processed_before_anybody_waits_for_it_is_not_waited_for() {
    let database = TestDatabase::create("processed_before").await;
    // Processed by the very transaction that writes it: whoever waits from then on hears nothing more of it.
    let make = "CREATE FUNCTION at_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            UPDATE orders SET status = 'Processed', version = 2 WHERE id = NEW.order_id;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER at_once AFTER INSERT ON order_transitions DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.version = 1) EXECUTE FUNCTION at_once()";
    execute(&database, make).await;
    let api = Api::start(&database).await;
    let answer = timeout(Duration::from_secs(20), post_and_wait(&api, "wait=30")).await.expect("at once");
    assert_eq!((answer.status, answer.json()["status"].as_str()), (201, Some("Processed")));
    assert_eq!(answer.header("etag"), Some("\"2\""));
    api.stop().await;
}

#[tokio::test]
async fn when_the_time_is_up_the_order_is_answered_as_it_is() {
    let database = TestDatabase::create("time_is_up").await;
    let api = Api::with(&database, |limits| limits.watching.wait_max_secs = 2).await;
    for (prefer, applied, secs) in [("wait=1", Some("wait"), 1), ("wait=30", Some("wait=2"), 2), ("wait=0", None, 0)] {
        let start = Instant::now();
        let answer = post_and_wait(&api, prefer).await;
        assert_eq!((answer.status, answer.json()["status"].as_str()), (201, Some("Pending")));
        assert_eq!((answer.header("preference-applied"), answer.header("etag")), (applied, Some("\"1\"")));
        assert!(start.elapsed() >= Duration::from_secs(secs), "{prefer}: {:?}", start.elapsed());
    }
    api.stop().await;
}

#[tokio::test]
async fn a_timeline_says_what_is_known_and_nothing_else() {
    let database = TestDatabase::create("timeline").await;
    let api = Api::start(&database).await;
    let trace =
        "content-type: application/json\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    assert_eq!(send(api.address, request("POST", "/orders", trace, ORDER.as_bytes())).await.status, 201);
    assert_eq!(api.post(ORDER).await.status, 201);
    process(&database, 1).await;
    let answer = api.get("/orders/1/timeline").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let timeline = answer.json();
    assert_eq!(
        (&timeline["order_id"], &timeline["status"], &timeline["version"]),
        (&1.into(), &"Processed".into(), &2.into())
    );
    let changes = timeline["changes"].as_array().expect("a list");
    assert_eq!(changes.len(), 2);
    assert_eq!((&changes[0]["type"], &changes[1]["type"]), (&"order.created".into(), &"order.processed".into()));
    assert_eq!(
        (&changes[0]["trace_id"], &changes[1]["trace_id"]),
        (&"0af7651916cd43dd8448eb211c80319c".into(), &().into())
    );
    for change in changes {
        assert_eq!(
            (&change["published"]["state"], &change["committed"]["at"]),
            (&"waiting".into(), &().into()),
            "{change}"
        );
        assert!(change["published"]["outbox_id"].is_i64() && change["committed"]["note"].is_string(), "{change}");
        assert!(change["consumers"].as_array().expect("a list").is_empty(), "{change}");
    }
    assert_eq!(get(&api, "/orders/3/timeline", "").await.problem(), "/problems/order-not-found");
    api.stop().await;
}
