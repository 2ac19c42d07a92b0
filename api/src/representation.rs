//! What an order looks like over HTTP: the one place that names its fields.
//!
//! The first eight are those of the system that this one replaces. Its clients read `ID`, `CreatedAt`, `UpdatedAt` and `DeletedAt` by these
//! very names. Events have names of their own (`order_document` in the migrations), and so has the text that Postgres keeps for an
//! Idempotency-Key: an answer that was kept by an older version is shown with the names of this one.

use std::borrow::Cow;

use actix_web::web::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::problem::{Kind, Problem};

/// An order as Postgres writes it in JSON, byte for byte what its event carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderDocument(Bytes);

impl From<String> for OrderDocument {
    fn from(json: String) -> Self {
        Self(json.into())
    }
}

#[derive(Deserialize)]
struct Document<'a> {
    id: i64,
    user_id: i64,
    product_id: i64,
    quantity: i32,
    #[serde(borrow)]
    status: Cow<'a, str>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[serde(borrow)]
    failure_reason: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Representation<'a> {
    #[serde(rename = "ID")]
    id: i64,
    #[serde(rename = "CreatedAt")]
    created_at: DateTime<Utc>,
    #[serde(rename = "UpdatedAt")]
    updated_at: DateTime<Utc>,
    /// An order that is deleted is not shown.
    #[serde(rename = "DeletedAt")]
    deleted_at: Option<DateTime<Utc>>,
    user_id: i64,
    product_id: i64,
    quantity: i32,
    status: &'a str,
    version: i64,
    failure_reason: Option<&'a str>,
}

impl OrderDocument {
    /// Adds the order to a body, as clients see it.
    ///
    /// # Errors
    /// When the text is no order's.
    pub fn write(&self, body: &mut Vec<u8>) -> Result<(), Problem> {
        let document: Document<'_> = serde_json::from_slice(&self.0).map_err(|error| unreadable(&error))?;
        let representation = Representation {
            id: document.id,
            created_at: document.created_at,
            updated_at: document.updated_at,
            deleted_at: None,
            user_id: document.user_id,
            product_id: document.product_id,
            quantity: document.quantity,
            status: &document.status,
            version: document.version,
            failure_reason: document.failure_reason.as_deref(),
        };
        serde_json::to_writer(body, &representation).map_err(|error| unreadable(&error))
    }

    /// The order as clients see it.
    ///
    /// # Errors
    /// When the text is no order's.
    pub fn represent(&self) -> Result<Vec<u8>, Problem> {
        let mut body = Vec::with_capacity(256);
        self.write(&mut body)?;
        Ok(body)
    }
}

fn unreadable(error: &serde_json::Error) -> Problem {
    tracing::error!(error = %error, "an order's document in the database cannot be read");
    Problem::new(Kind::Internal, "The order cannot be shown.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(document: &str) -> String {
        String::from_utf8(OrderDocument::from(document.to_owned()).represent().unwrap()).unwrap()
    }

    #[test]
    fn an_order_has_the_replaced_systems_eight_fields_and_then_ours() {
        let document = r#"{"id":7,"user_id":123,"product_id":456,"quantity":2,"status":"Pending","version":1,"created_at":"2023-07-14T10:30:00+00:00","updated_at":"2023-07-14T12:30:00.000001+02:00","failure_reason":null}"#;
        assert_eq!(
            shown(document),
            r#"{"ID":7,"CreatedAt":"2023-07-14T10:30:00Z","UpdatedAt":"2023-07-14T10:30:00.000001Z","DeletedAt":null,"user_id":123,"product_id":456,"quantity":2,"status":"Pending","version":1,"failure_reason":null}"#
        );
    }

    #[test]
    fn texts_are_escaped_and_a_text_that_is_no_order_is_a_problem() {
        let document = r#"{"id":7,"user_id":1,"product_id":1,"quantity":1,"status":"Failed","version":2,"created_at":"2023-07-14T10:30:00+00:00","updated_at":"2023-07-14T10:30:00+00:00","failure_reason":"no \"stock\"\n"}"#;
        assert!(shown(document).ends_with(r#""status":"Failed","version":2,"failure_reason":"no \"stock\"\n"}"#));
        assert_eq!(OrderDocument::from("{}".to_owned()).represent().unwrap_err().kind(), Kind::Internal);
    }
}
