//! A caller that is bound to a user sees and changes only that user's orders, on every route.

use serde_json::Value;
use shared::testing::TestDatabase;

use crate::auth::{ask, bearer, key, start};
use crate::http::{Answer, request, send};
use crate::service::{Api, written};
use crate::watcher::Watcher;

const BOTH: &[&str] = &["orders:read", "orders:write"];

async fn post(api: &Api, path: &str, header: &str, body: &str) -> Answer {
    let headers = format!("content-type: application/json\r\n{header}");
    send(api.address, request("POST", path, &headers, body.as_bytes())).await
}

fn order_of(user: i64) -> String {
    format!(r#"{{"user_id": {user}, "product_id": 2, "quantity": 3}}"#)
}

/// Order 1 of user 1, order 2 of user 2, and the credentials of user 1 and of nobody in particular.
async fn stage(test: &str) -> (TestDatabase, Api, String, String) {
    let database = TestDatabase::create(test).await;
    let api = start(&database).await;
    let bound = bearer(&key(&database, BOTH, Some(1)).await);
    let free = bearer(&key(&database, BOTH, None).await);
    for user in [1, 2] {
        assert_eq!(post(&api, "/orders", &free, &order_of(user)).await.status, 201);
    }
    (database, api, bound, free)
}

#[tokio::test]
async fn another_users_order_is_not_there() {
    let (database, api, bound, free) = stage("not_there").await;
    let routes = [
        ("GET", ""),
        ("HEAD", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/events"),
        ("GET", "/timeline"),
        ("HEAD", "/timeline"),
    ];
    for (method, rest) in routes {
        let [others, none] = [
            ask(&api, method, &format!("/orders/2{rest}"), &bound).await,
            ask(&api, method, &format!("/orders/99{rest}"), &bound).await,
        ];
        assert_eq!(others.status, 404, "{method} {rest}");
        assert_eq!((others.status, &others.body), (none.status, &none.body), "{method} {rest}: as if there were none");
    }
    // Nor by what only an order that is there has.
    for headers in ["if-match: \"7\"\r\n", "if-none-match: \"1\"\r\n", "if-match: \"1\"\r\n"] {
        for (method, path) in [("GET", "/orders/2"), ("DELETE", "/orders/2"), ("POST", "/orders/2/cancel")] {
            assert_eq!(ask(&api, method, path, &format!("{headers}{bound}")).await.status, 404, "{method} {headers}");
        }
    }
    assert_eq!(written(&database).await, (2, 2, 2), "nothing was changed");
    assert_eq!(ask(&api, "GET", "/orders/1", &bound).await.status, 200);
    assert_eq!(ask(&api, "GET", "/orders/1/timeline", &bound).await.status, 200);
    assert_eq!(ask(&api, "POST", "/orders/1/cancel", &bound).await.status, 200);
    assert_eq!(ask(&api, "DELETE", "/orders/1", &bound).await.status, 204);
    assert_eq!(ask(&api, "DELETE", "/orders/2", &free).await.status, 204);
    api.stop().await;
}

#[tokio::test]
async fn orders_for_another_user_are_refused_one_by_one() {
    let (database, api, bound, _) = stage("for_another").await;
    let answer = post(&api, "/orders", &bound, &order_of(2)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (403, "/problems/forbidden"));
    assert_eq!(post(&api, "/orders", &bound, &order_of(1)).await.status, 201);
    let body = format!("[{}, {}, {{}}, {}]", order_of(2), order_of(1), order_of(2));
    let answer = post(&api, "/orders/batch", &bound, &body).await;
    let results = answer.json()["results"].as_array().cloned().expect("results");
    let statuses: Vec<Option<i64>> = results.iter().map(|result| result["status"].as_i64()).collect();
    assert_eq!(statuses, [Some(403), Some(201), Some(422), Some(403)], "{answer:?}");
    assert_eq!(results[0]["problem"]["type"], "/problems/forbidden");
    assert_eq!(written(&database).await.0, 4);
    api.stop().await;
}

#[tokio::test]
async fn lists_hold_the_callers_orders_only() {
    let (_database, api, bound, free) = stage("lists").await;
    let users = async |query: &str, header: &str| -> Vec<i64> {
        let answer = ask(&api, "GET", &format!("/orders{query}"), header).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.json()["next"].is_null() || query.contains("limit"));
        let orders: Vec<Value> = answer.json()["orders"].as_array().cloned().expect("orders");
        orders.iter().filter_map(|order| order["user_id"].as_i64()).collect()
    };
    assert_eq!(users("", &free).await, [2, 1]);
    assert_eq!(users("", &bound).await, [1]);
    assert_eq!(users("?user_id=1", &bound).await, [1]);
    assert_eq!(users("?user_id=2", &bound).await, Vec::<i64>::new());
    assert_eq!(users("?user_id=99", &bound).await, Vec::<i64>::new(), "and so for a user without orders");
    assert_eq!(users("?user_id=2", &free).await, [2]);
    // Pages go on within the caller's orders.
    assert_eq!(post(&api, "/orders", &free, &order_of(2)).await.status, 201);
    assert_eq!(post(&api, "/orders", &free, &order_of(1)).await.status, 201);
    let page = ask(&api, "GET", "/orders?limit=1", &bound).await;
    let next = page.json()["next"].as_str().expect("another page").to_owned();
    assert_eq!(users(&format!("?limit=1&cursor={next}"), &bound).await, [1]);
    api.stop().await;
}

#[tokio::test]
async fn event_streams_tell_of_the_callers_orders_only() {
    let (_database, api, bound, free) = stage("streams").await;
    let open = async |path: &str, last: Option<&str>| Watcher::open_as(api.address, path, &bound, last).await;
    let mut all = open("/orders/events", None).await;
    let mut others = open("/orders/events?user_id=2", None).await;
    let mut own = open("/orders/1/events", None).await;
    let beginning = all.next().await.expect("it begins").id.expect("an id");
    others.next().await.expect("it begins");
    for user in [2, 1, 2, 1] {
        assert_eq!(post(&api, "/orders", &free, &order_of(user)).await.status, 201);
    }
    // Whoever goes on from an earlier place is told no more than whoever has listened all the time.
    let mut again = open("/orders/events", Some(&beginning)).await;
    for stream in [&mut all, &mut again] {
        assert_eq!([stream.change().await.change(), stream.change().await.change()], [Some((4, 1)), Some((6, 1))]);
    }
    assert_eq!(own.change().await.change(), Some((1, 1)));
    assert_eq!(ask(&api, "DELETE", "/orders/2", &free).await.status, 204);
    assert_eq!(ask(&api, "DELETE", "/orders/1", &free).await.status, 204);
    assert_eq!(all.change().await.change(), Some((1, 2)));
    // By now it would have been told of five changes.
    api.shutdown.request();
    while let Some(message) = others.next().await {
        assert_eq!(message.data, None, "another user's stream is silent");
    }
    api.stop().await;
}
