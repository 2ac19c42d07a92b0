//! An order's timeline, and waiting for an order, with the whole pipeline.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shared::testing::eventually;
use tools::http::client;
use tools::stack::Kind;

use super::pipeline::{RELAY_ENV, Stage};

async fn timeline(url: &str, order: i64) -> Result<Value> {
    let text = client()?.get(format!("{url}/orders/{order}/timeline")).send().await?.text().await?;
    Ok(serde_json::from_str(&text)?)
}

async fn post(url: &str, user: i64, wait: &str) -> Result<(Value, Option<String>)> {
    let answer = client()?
        .post(format!("{url}/orders"))
        .header("content-type", "application/json")
        .header("prefer", wait)
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(json!({"user_id": user, "product_id": 42, "quantity": 3}).to_string())
        .send()
        .await?;
    assert_eq!(answer.status().as_u16(), 201);
    let etag = answer.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    Ok((serde_json::from_str(&answer.text().await?)?, etag))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_timeline_tells_its_way_through_outbox_kafka_and_processor() -> Result<()> {
    let stage = Stage::new("an_orders_timeline").await?;
    // What user 2 orders cannot be processed, and says so at once.
    sqlx::query(
        "ALTER TABLE order_transitions ADD CONSTRAINT test_check CHECK (to_status <> 'Processed' OR order_id <> 2) NOT VALID",
    )
    .execute(&stage.database.pool)
    .await?;
    let mut api = stage.start(Kind::Api, "api", &[]).await?;
    let mut relay = stage.start(Kind::Relay, "relay", &RELAY_ENV).await?;
    let mut processor = stage.start(Kind::Processor, "processor", &[("PROCESSOR_SESSION_TIMEOUT_MS", "6000")]).await?;
    let url = api.api_url().context("the api has a URL")?;

    let (order, etag) = post(&url, 1, "wait=30").await?;
    assert_eq!((&order["status"], &order["version"], etag.as_deref()), (&"Processed".into(), &2.into(), Some("\"2\"")));
    let told = eventually("both events are known to be published", async || {
        let told = timeline(&url, 1).await.ok()?;
        let changes = told["changes"].as_array()?;
        changes.iter().all(|change| change["published"]["state"] == "published").then_some(told)
    })
    .await;
    let [created, processed] = told["changes"].as_array().context("a list")?.as_slice() else {
        panic!("two changes: {told}");
    };
    for change in [created, processed] {
        assert_eq!(change["trace_id"], "0af7651916cd43dd8448eb211c80319c", "{told}");
        assert!(change["accepted_at"].is_string() && change["published"]["outbox_id"].is_i64(), "{told}");
    }
    let published = &created["published"];
    assert_eq!((&published["topic"], &published["offset"]), (&"orders".into(), &0.into()), "{told}");
    assert!(published["partition"].is_i64() && published["at"].is_string(), "{told}");
    let consumer = &created["consumers"][0];
    assert_eq!((&consumer["group"], &consumer["state"]), (&"outrider-processor".into(), &"taken in".into()), "{told}");
    assert!(consumer["taken_in_at"].is_string(), "{told}");
    // Nobody has a handler for it, so nobody knows where it is.
    assert_eq!((&processed["published"]["topic"], &processed["consumers"]), (&Value::Null, &json!([])), "{told}");

    let (order, _) = post(&url, 2, "wait=30").await?;
    assert_eq!((&order["ID"], &order["status"]), (&2.into(), &"Failed".into()));
    let told = timeline(&url, 2).await?;
    assert_eq!((&told["status"], &told["changes"][0]["consumers"][0]["state"]), (&"Failed".into(), &"parked".into()));
    let waiting = &told["changes"][0]["consumers"][0];
    assert!(waiting["reason"].as_str().is_some_and(|reason| reason.contains("test_check")), "{told}");
    assert_eq!(
        (&waiting["topic"], &waiting["attempts"], &waiting["taken_in_at"]),
        (&"orders".into(), &1.into(), &Value::Null)
    );
    assert!(told["changes"][1]["reason"].is_string(), "{told}");
    for service in [&mut api, &mut relay, &mut processor] {
        assert!(service.stop().await?.success(), "{:?} ended well", service.kind());
    }
    Ok(())
}
