//! How much a caller may ask for.

use api::auth::settings::{AuthConfig, RateConfig};
use shared::testing::TestDatabase;
use std::time::Duration;

use crate::auth::{ask, bearer, key, with_keys};
use crate::http::{Answer, request, send};
use crate::service::{Api, ORDER, written};

const BOTH: &[&str] = &["orders:read", "orders:write"];

fn number(answer: &Answer, header: &str) -> i64 {
    answer.header(header).unwrap_or_else(|| panic!("{header} is not in {answer:?}")).parse().expect("a number")
}

/// The first answer that is 429, and how many were not.
async fn until_refused(ask: impl AsyncFn() -> Answer) -> (Answer, usize) {
    for count in 0..1_000 {
        let answer = ask().await;
        assert_eq!(number(&answer, "ratelimit-limit"), 5);
        if answer.status == 429 {
            return (answer, count);
        }
        assert!((0..5).contains(&number(&answer, "ratelimit-remaining")), "{answer:?}");
        assert!((1..=5).contains(&number(&answer, "ratelimit-reset")), "{answer:?}");
    }
    panic!("never refused");
}

#[tokio::test]
async fn a_caller_that_sends_too_much_is_told_when_to_go_on() {
    let database = TestDatabase::create("rate").await;
    let rate = Some(RateConfig { limit: 1, burst: 5 });
    let auth = AuthConfig { rate, ..with_keys(Duration::from_hours(1)) };
    let api = Api::guarded(database.config("outrider_api"), auth, |_| ()).await;
    let [greedy, modest] = [bearer(&key(&database, BOTH, None).await), bearer(&key(&database, BOTH, None).await)];
    let (answer, served) = until_refused(async || ask(&api, "GET", "/orders", &greedy).await).await;
    assert!(served >= 5, "{served}");
    assert_eq!(answer.problem(), "/problems/rate-limited");
    assert_eq!(number(&answer, "ratelimit-remaining"), 0);
    assert!((1..=5).contains(&number(&answer, "retry-after")), "{answer:?}");
    assert_eq!(api.metric("api_rate_limited_total").await, 1);
    assert_eq!(ask(&api, "GET", "/orders", &modest).await.status, 200, "each caller has its own quota");
    // Who is not let in costs nobody's quota, and health none at all.
    assert_eq!(ask(&api, "GET", "/orders", "").await.header("ratelimit-limit"), None);
    assert_eq!(api.get("/readyz").await.header("ratelimit-limit"), None);
    api.stop().await;
}

#[tokio::test]
async fn a_batch_counts_as_many_as_it_has_orders() {
    let database = TestDatabase::create("rate_batch").await;
    let rate = Some(RateConfig { limit: 1, burst: 5 });
    let api = Api::guarded(database.config("outrider_api"), AuthConfig { rate, required: None }, |_| ()).await;
    let batch = async |count: usize| {
        let body = format!("[{}]", vec![ORDER; count].join(","));
        send(api.address, request("POST", "/orders/batch", "content-type: application/json\r\n", body.as_bytes())).await
    };
    let answer = batch(6).await;
    assert_eq!((answer.status, answer.problem().as_str()), (422, "/problems/invalid-batch"), "never");
    let (answer, served) = until_refused(async || batch(4).await).await;
    assert_eq!(answer.problem(), "/problems/rate-limited");
    let served = i64::try_from(4 * served).expect("few");
    assert_eq!(written(&database).await.0, served, "a refused batch makes no order");
    api.stop().await;
}

#[tokio::test]
async fn without_credentials_an_address_is_a_caller_and_without_a_limit_nobody_counts() {
    let database = TestDatabase::create("rate_address").await;
    let rate = Some(RateConfig { limit: 1, burst: 5 });
    let limited = Api::guarded(database.config("outrider_api"), AuthConfig { rate, required: None }, |_| ()).await;
    until_refused(async || limited.get("/orders").await).await;
    let free = Api::start(&database).await;
    assert_eq!(free.get("/orders").await.header("ratelimit-limit"), None);
    limited.stop().await;
    free.stop().await;
}
