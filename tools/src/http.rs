//! The HTTP client, and the part of the API that the tools speak.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

/// How long one request may take, from connecting to the last byte.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// A client that talks to the given host directly: a proxy in the environment is not for a server on loopback.
pub fn client() -> Result<reqwest::Client> {
    shared::crypto::install();
    reqwest::Client::builder().no_proxy().timeout(REQUEST_PATIENCE).build().context("cannot make an HTTP client")
}

/// An order as it is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NewOrder {
    /// Who orders.
    pub user_id: u64,
    /// What is ordered.
    pub product_id: u64,
    /// How many of them.
    pub quantity: u64,
}

/// What the tools read of an order; an answer holds more.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Order {
    /// Its number.
    #[serde(rename = "ID")]
    pub id: i64,
    /// Where it stands: `Pending`, `Processed`, or an end of another kind.
    pub status: String,
}

impl Order {
    /// Whether its event has had its effect.
    #[must_use]
    pub fn is_processed(&self) -> bool {
        self.status == "Processed"
    }

    /// Whether it waits for its event.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.status == "Pending"
    }
}

/// Why a request brought no order. Its text is short and holds no numbers of its own, so that failures can be counted
/// by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// What RFC 9457 calls a problem; the parts that are shown.
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

/// The orders behind one base URL.
#[derive(Debug, Clone)]
pub struct OrdersApi {
    client: reqwest::Client,
    orders: Url,
}

impl OrdersApi {
    /// The API at a base URL such as `http://localhost:8080`.
    pub fn new(mut base: Url) -> Result<Self> {
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let orders = base.join("orders").context("this URL has no paths")?;
        Ok(Self { client: client()?, orders })
    }

    /// Posts an order.
    pub async fn post(&self, order: &NewOrder) -> Result<Order, Refusal> {
        let body = serde_json::to_vec(order).map_err(|error| Refusal(error.to_string()))?;
        let request = self.client.post(self.orders.clone()).header("content-type", "application/json").body(body);
        read_order(request, StatusCode::CREATED).await
    }

    /// The id of the trace that an order was made in, if its event has one.
    pub async fn trace_id(&self, id: i64) -> Result<Option<String>> {
        let answer = self.client.get(format!("{}/{id}/timeline", self.orders)).send().await?.error_for_status()?;
        let timeline: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
        Ok(timeline["changes"][0]["trace_id"].as_str().map(str::to_owned))
    }

    /// Reads an order.
    pub async fn read(&self, id: i64) -> Result<Order, Refusal> {
        let url = format!("{}/{id}", self.orders);
        read_order(self.client.get(url), StatusCode::OK).await
    }
}

async fn read_order(request: reqwest::RequestBuilder, expected: StatusCode) -> Result<Order, Refusal> {
    let answer = request.send().await.map_err(|error| connection_refusal(&error))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|error| connection_refusal(&error))?;
    if status != expected {
        return Err(status_refusal(status, &body));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refusal(format!("HTTP {} without an order: {error}", status.as_u16())))
}

fn status_refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let code = status.as_u16();
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let (title, detail) = problem.map_or((None, None), |problem| (problem.title, problem.detail));
    let title = title.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().to_owned());
    match detail {
        Some(detail) if detail != title => Refusal(format!("HTTP {code} {title}: {detail}")),
        _ => Refusal(format!("HTTP {code} {title}")),
    }
}

/// The last cause says what happened (`Connection refused`); what stands before it repeats the URL.
fn connection_refusal(error: &reqwest::Error) -> Refusal {
    if error.is_timeout() {
        return Refusal(format!("no answer within {} s", REQUEST_PATIENCE.as_secs()));
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Refusal(format!("no connection: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_by_its_title_and_detail() {
        let told = |body: &str| status_refusal(StatusCode::BAD_REQUEST, body.as_bytes()).0;
        let whole = r#"{"type":"/problems/x","title":"Invalid order","detail":"quantity is 0"}"#;
        assert_eq!(told(whole), "HTTP 400 Invalid order: quantity is 0");
        assert_eq!(told(r#"{"title":"Invalid order"}"#), "HTTP 400 Invalid order");
        assert_eq!(told("<html>"), "HTTP 400 Bad Request");
    }

    #[test]
    fn the_base_url_may_have_a_path() -> Result<()> {
        for (base, orders) in [
            ("http://localhost:8080", "http://localhost:8080/orders"),
            ("http://localhost:8080/", "http://localhost:8080/orders"),
            ("https://shop.example/api", "https://shop.example/api/orders"),
        ] {
            assert_eq!(OrdersApi::new(base.parse()?)?.orders.as_str(), orders);
        }
        Ok(())
    }
}
