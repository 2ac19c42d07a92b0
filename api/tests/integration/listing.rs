//! Lists of orders.

use api::listing::Filter;
use api::store::list::statement;
use serde_json::{Value, json};
use shared::db::PooledConnection;
use shared::testing::TestDatabase;

use crate::http::Answer;
use crate::service::{Api, execute};

fn ids(answer: &Answer) -> Vec<i64> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = answer.json();
    let orders = list["orders"].as_array().expect("a list").clone();
    orders.iter().map(|order| order["ID"].as_i64().expect("an id")).collect()
}

/// Where the header `Link` says that the list goes on.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let path = link.strip_prefix('<')?.strip_suffix(">; rel=\"next\"")?;
    let cursor = answer.json()["next"].as_str().expect("the body has the cursor too").to_owned();
    assert!(path.ends_with(&format!("cursor={cursor}")), "{link}");
    Some(path.to_owned())
}

/// 100 orders of one minute each, some of them at the same time; users 1 to 4, products 1 to 3.
async fn filled(name: &str) -> TestDatabase {
    let database = TestDatabase::create(name).await;
    execute(
        &database,
        "INSERT INTO orders (user_id, product_id, quantity, status, failure_reason, created_at)
        SELECT 1 + n % 4, 1 + n % 3, 1, CASE n % 10 WHEN 0 THEN 'Failed' WHEN 1 THEN 'Pending' ELSE 'Processed' END,
            CASE n % 10 WHEN 0 THEN 'because' END, timestamptz '2026-01-01 00:00Z' + (n / 5) * interval '1 minute'
        FROM generate_series(0, 99) n;
        INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id)
        SELECT id, 2, 'Pending', 'Failed', gen_random_uuid() FROM orders WHERE status = 'Failed'",
    )
    .await;
    database
}

/// A connection as the API's own are set up.
async fn connection(database: &TestDatabase) -> PooledConnection {
    let config = api::store::configure(database.config("outrider_api"), &api::config::Limits::default());
    let opened = config.connect(&shared::shutdown::Shutdown::new()).await.expect("the database is there");
    opened.acquire().await.expect("a connection")
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_or_a_repeat_while_orders_are_added() {
    let database = filled("pages").await;
    let api = Api::start(&database).await;
    let mut found = Vec::new();
    let mut path = Some("/orders?limit=7".to_owned());
    while let Some(page) = path {
        let answer = api.get(&page).await;
        let ids = ids(&answer);
        assert!(ids.len() <= 7);
        found.extend(ids);
        path = next(&answer);
        // It is newer than every page that is still to come.
        execute(&database, "INSERT INTO orders (user_id, product_id, quantity) VALUES (1, 1, 1)").await;
    }
    assert_eq!(found, (1..=100).rev().collect::<Vec<i64>>());
    assert_eq!(ids(&api.get("/orders").await).len(), 50);
    let all = api.get("/orders?limit=200").await;
    assert_eq!(next(&all), None);
    assert_eq!(all.json()["next"], Value::Null);
    api.stop().await;
}

#[tokio::test]
async fn filters_hold_each_and_together() {
    let database = filled("filters").await;
    let api = Api::start(&database).await;
    let expected = async |condition: &str| -> Vec<i64> {
        let sql = format!("SELECT id FROM orders WHERE {condition} ORDER BY created_at DESC, id DESC LIMIT 200");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&database.pool).await.expect("a condition")
    };
    for (query, condition) in [
        ("user_id=2", "user_id = 2"),
        ("product_id=3", "product_id = 3"),
        ("status=Failed", "status = 'Failed'"),
        ("status=Pending", "status = 'Pending'"),
        ("created_from=2026-01-01T00:03:00Z", "created_at >= '2026-01-01 00:03Z'"),
        ("created_before=2026-01-01T01:03:00%2B01:00", "created_at < '2026-01-01 00:03Z'"),
        (
            "user_id=1&product_id=1&status=Processed&created_from=2026-01-01T00:01:00Z&created_before=2026-01-01T00:15:00Z",
            "user_id = 1 AND product_id = 1 AND status = 'Processed' AND created_at >= '2026-01-01 00:01Z' AND created_at < '2026-01-01 00:15Z'",
        ),
        ("user_id=9", "false"),
    ] {
        let found = ids(&api.get(&format!("/orders?limit=200&{query}")).await);
        assert_eq!(found, expected(condition).await, "{query}");
        // And page by page.
        let (mut paged, mut path) = (Vec::new(), Some(format!("/orders?limit=3&{query}")));
        while let Some(page) = path {
            let answer = api.get(&page).await;
            paged.extend(ids(&answer));
            path = next(&answer);
        }
        assert_eq!(paged, found, "{query}");
    }
    api.stop().await;
}

#[tokio::test]
async fn all_faults_of_a_query_are_named() {
    let database = TestDatabase::create("query_faults").await;
    let api = Api::start(&database).await;
    let answer = api.get("/orders?user_id=x&limit=0&status=Done&page=2&cursor=abc").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-query"));
    assert_eq!(answer.fields(), ["user_id", "limit", "status", "(other)", "cursor"]);
    assert_eq!(answer.json()["errors"][0].get("pointer"), None, "a parameter is nowhere in the body");
    api.stop().await;
}

#[tokio::test]
async fn a_list_of_a_deep_table_reads_its_page_only() {
    let database = TestDatabase::create("deep_list").await;
    execute(
        &database,
        "INSERT INTO orders (user_id, product_id, quantity, created_at)
        SELECT 1 + n % 1000, 1 + n % 100, 1, timestamptz '2026-01-01 00:00Z' + n * interval '1 second' FROM generate_series(1, 50000) n;
        ANALYZE orders",
    )
    .await;
    let connection = &mut *connection(&database).await;
    for query in [
        &[("user_id", "7")][..],
        &[("product_id", "7")],
        &[("created_before", "2026-01-01T05:00:00Z")],
        &[("created_from", "2026-01-01T05:00:00Z")],
        &[("cursor", "00064f3e8a5c4000000000000000c350")],
        &[("status", "Pending")],
        &[],
    ] {
        let pairs: Vec<_> = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let filter = Filter { limit: 20, ..Filter::from_query(&pairs).expect("a filter") };
        let mut explain = statement(&filter, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)\n");
        let plan: Vec<String> = explain.build_query_scalar().fetch_all(&mut *connection).await.expect("a plan");
        let plan = plan.join("\n");
        assert!(plan.contains("Index Scan Backward") && plan.contains("rows=21 "), "{query:?}: {plan}");
        assert!(!plan.contains("Sort") && !plan.contains("Rows Removed"), "{query:?}: {plan}");
    }
}

/// The pool is shared with the look-ups of API keys: no list may walk a table of millions in one go.
#[tokio::test]
async fn what_few_orders_have_is_found_page_by_page_and_each_page_walks_a_bounded_part() {
    let database = TestDatabase::create("bounded_walk").await;
    execute(
        &database,
        "INSERT INTO orders (user_id, product_id, quantity, status, created_at)
        SELECT 1, 1 + n % 100, 1, CASE WHEN n <= 3 THEN 'Pending' ELSE 'Processed' END,
            timestamptz '2026-01-01 00:00Z' + n * interval '1 second'
        FROM generate_series(1, 25000) n;
        ANALYZE orders",
    )
    .await;
    let api = Api::start(&database).await;
    for (query, expected) in [
        ("status=Pending", vec![3, 2, 1]),
        ("user_id=1&status=Pending", vec![3, 2, 1]),
        ("user_id=1&product_id=4&created_before=2026-01-01T00:01:00Z", vec![3]),
        ("user_id=1&product_id=101", vec![]),
    ] {
        let (mut found, mut pages, mut path) = (Vec::new(), 0, Some(format!("/orders?limit=2&{query}")));
        while let Some(page) = path {
            let answer = api.get(&page).await;
            found.extend(ids(&answer));
            pages += 1;
            path = next(&answer);
        }
        assert_eq!(found, expected, "{query}");
        assert!((1..=4).contains(&pages), "{query}: {pages} pages");
    }
    let filter = Filter::from_query(&[("status".to_owned(), "Pending".to_owned())]).expect("a filter");
    let connection = &mut *connection(&database).await;
    let mut explain = statement(&filter, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)\n");
    let plan: Vec<String> = explain.build_query_scalar().fetch_all(&mut *connection).await.expect("a plan");
    let plan = plan.join("\n");
    assert!(plan.contains("rows=10000 ") && !plan.contains("Sort") && !plan.contains("Seq Scan"), "{plan}");
    api.stop().await;
}

#[tokio::test]
async fn lists_leave_connections_for_others() {
    let database = TestDatabase::create("lists_leave").await;
    // So that lists give up neither their connections nor their turns meanwhile.
    let patient = |limits: &mut api::config::Limits| {
        (limits.connect_timeout_ms, limits.statement_timeout_ms) = (5_000, 20_000);
    };
    let api = Api::with(&database, patient).await;
    assert_eq!(api.post(crate::service::ORDER).await.status, 201);
    // Whoever lists orders waits for the lock; whoever reads one does not.
    let mut held = database.pool.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE order_transitions IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("locked");
    let list = || api.get("/orders?status=Failed");
    let read = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        for _ in 0..20 {
            assert_eq!(api.get("/orders/1").await.status, 200);
        }
        drop(held);
    };
    let lists = futures_util::future::join_all((0..60).map(|_| list()));
    let (lists, ()) = tokio::join!(lists, read);
    for answer in lists {
        assert!([200, 503].contains(&answer.status), "{answer:?}");
    }
    assert_eq!(ids(&list().await), Vec::<i64>::new());
    api.stop().await;
}

#[tokio::test]
async fn a_time_whose_plus_became_a_space_is_told_so() {
    let database = TestDatabase::create("plus_in_time").await;
    let api = Api::start(&database).await;
    let answer = api.get("/orders?created_from=2026-01-01T01:00:00+01:00").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "/problems/invalid-query"));
    assert!(answer.body.contains("%2B"), "{answer:?}");
    api.stop().await;
}

#[tokio::test]
async fn each_order_of_a_batch_is_accepted_or_refused_by_itself() {
    let database = TestDatabase::create("batch").await;
    let api = Api::start(&database).await;
    let body = json!([
        {"user_id": 1, "product_id": 2, "quantity": 3},
        {"user_id": 1, "product_id": 2, "quantity": 0},
        7,
        {"user_id": 4, "product_id": 5, "quantity": 6},
    ]);
    let answer = post_batch(&api, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].as_array().expect("results").clone();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().expect("a status")).collect();
    assert_eq!(statuses, [201, 422, 422, 201]);
    assert_eq!((&results[0]["order"]["user_id"], &results[3]["order"]["quantity"]), (&json!(1), &json!(6)));
    assert_eq!(results[1]["problem"]["errors"][0]["field"], "quantity");
    assert_eq!(api.get(&format!("/orders/{}", results[3]["order"]["ID"])).await.json(), results[3]["order"]);

    let thousand: Vec<Value> =
        (1..=1_000).map(|user| json!({"user_id": user, "product_id": 2, "quantity": 3})).collect();
    let answer = post_batch(&api, &Value::from(thousand.clone()).to_string()).await;
    let results = answer.json()["results"].as_array().expect("results").clone();
    let orders = results.iter().map(|result| result["order"]["user_id"].as_i64().expect("a user"));
    assert!(orders.eq(1..=1_000), "in the order of the request");

    let more: Vec<Value> = thousand.into_iter().chain([json!({})]).collect();
    for (body, status, problem) in [
        ("[]", 422, "/problems/invalid-batch"),
        (Value::from(more).to_string().as_str(), 422, "/problems/invalid-batch"),
        ("{}", 422, "/problems/invalid-batch"),
        ("[1", 400, "/problems/malformed-body"),
        ("", 400, "/problems/malformed-body"),
        (format!("[\"{}\"]", "x".repeat(1024 * 1024)).as_str(), 413, "/problems/body-too-large"),
    ] {
        let answer = post_batch(&api, body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem));
    }
    api.stop().await;
}

async fn post_batch(api: &Api, body: &str) -> Answer {
    let headers = "content-type: application/json\r\n";
    crate::http::send(api.address, crate::http::request("POST", "/orders/batch", headers, body.as_bytes())).await
}
