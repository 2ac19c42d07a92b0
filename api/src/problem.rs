//! What a client is told when its request cannot be served: problem details as in RFC 9457. Every error of the surface is one
//! of [`Kind`], and nothing else ever becomes an answer.

use std::borrow::Cow;
use std::fmt;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use crate::batcher::Refusal;
use crate::domain::{FieldError, OrderError};
use crate::idempotency::KeyError;
use crate::store::StoreError;

/// Seconds after which a client that met an overload or an outage may try again.
const RETRY_AFTER_SECS: u32 = 1;

/// The catalogue. `type` is stable: clients branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The body is not JSON, or not there.
    MalformedBody,
    /// The body is JSON, and no order.
    InvalidOrder,
    /// The body is JSON, and no list of orders.
    InvalidBatch,
    /// A parameter of the query is wrong.
    InvalidQuery,
    /// The header `Idempotency-Key` holds no key, or is not taken here.
    InvalidIdempotencyKey,
    /// The key has made another order.
    IdempotencyKeyReused,
    /// A request with the same key is under way.
    IdempotencyInProgress,
    /// `Last-Event-ID` is no id of an event.
    InvalidEventId,
    /// What comes after `Last-Event-ID` is not kept any more.
    EventsGone,
    /// The order is not Pending any more.
    OrderNotPending,
    /// The order is not at a version that `If-Match` names.
    PreconditionFailed,
    /// The body is longer than allowed.
    BodyTooLarge,
    /// The body is said not to be JSON, or is encoded.
    UnsupportedMediaType,
    /// The request says not, or not credibly, who sends it.
    Unauthorized,
    /// Whoever sends it may not do that.
    Forbidden,
    /// Whoever sends it has sent too many.
    RateLimited,
    /// There is no such order.
    OrderNotFound,
    /// There is nothing at that path.
    NotFound,
    /// There is something at that path, with other methods.
    MethodNotAllowed,
    /// More is asked than can be done, for now.
    Overloaded,
    /// Something that the API needs is away, for now.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl Kind {
    const fn describe(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::MalformedBody => (StatusCode::BAD_REQUEST, "/problems/malformed-body", "The body cannot be read"),
            Self::InvalidOrder => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/invalid-order", "The order is not valid")
            }
            Self::InvalidBatch => {
                (StatusCode::UNPROCESSABLE_ENTITY, "/problems/invalid-batch", "The list of orders is not valid")
            }
            Self::InvalidQuery => (StatusCode::BAD_REQUEST, "/problems/invalid-query", "The query is not valid"),
            Self::InvalidIdempotencyKey => {
                (StatusCode::BAD_REQUEST, "/problems/invalid-idempotency-key", "The idempotency key is not valid")
            }
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "/problems/idempotency-key-reused",
                "The idempotency key belongs to another request",
            ),
            Self::IdempotencyInProgress => (
                StatusCode::CONFLICT,
                "/problems/idempotency-in-progress",
                "A request with this idempotency key is under way",
            ),
            Self::InvalidEventId => {
                (StatusCode::BAD_REQUEST, "/problems/invalid-event-id", "The id of the last event is not valid")
            }
            Self::EventsGone => (StatusCode::GONE, "/problems/events-gone", "The events are not kept any more"),
            Self::OrderNotPending => {
                (StatusCode::CONFLICT, "/problems/order-not-pending", "The order is not Pending any more")
            }
            Self::PreconditionFailed => (
                StatusCode::PRECONDITION_FAILED,
                "/problems/precondition-failed",
                "The order is not at the expected version",
            ),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "/problems/body-too-large", "The body is too large"),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "/problems/unsupported-media-type",
                "The body is of a type that is not read here",
            ),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "/problems/unauthorized", "The credentials are not good"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "/problems/forbidden", "The credentials are not good for this"),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "/problems/rate-limited", "Too many requests"),
            Self::OrderNotFound => (StatusCode::NOT_FOUND, "/problems/order-not-found", "There is no such order"),
            Self::NotFound => (StatusCode::NOT_FOUND, "/problems/not-found", "There is nothing here"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "/problems/method-not-allowed", "The method is not allowed here")
            }
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "/problems/overloaded", "Too much at once"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "/problems/unavailable", "Not available for now"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "/problems/internal", "Something went wrong here"),
        }
    }
}

/// One problem, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    allow: Option<&'static str>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<DocumentError<'a>>,
}

#[derive(Serialize)]
struct DocumentError<'a> {
    field: &'a str,
    /// JSON pointer in URI fragment form, as in the example of RFC 9457; none for what is not in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    detail: &'a str,
}

impl Problem {
    /// A problem of `kind`; `detail` says what it was this time, in words that may leave the house.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), allow: None }
    }

    /// The methods that would have been right, as in the header `Allow`.
    #[must_use]
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(Kind::MethodNotAllowed, format!("Only {allow} can be used here.")) }
    }

    /// What is wrong with the parameters of a query.
    #[must_use]
    pub fn invalid_query(errors: Vec<FieldError>) -> Self {
        Self::of_fields(Kind::InvalidQuery, errors)
    }

    fn of_fields(kind: Kind, errors: Vec<FieldError>) -> Self {
        let faults: Vec<String> = errors.iter().map(|error| format!("{} {}", error.field, error.detail)).collect();
        Self { errors, ..Self::new(kind, format!("{}.", faults.join("; "))) }
    }

    /// As JSON: what is answered, or what is said of one order of a list.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and numbers only: there is nothing in it that could fail to be written.
        serde_json::to_vec(&self.document()).unwrap_or_default()
    }

    fn unavailable() -> Self {
        Self::new(Kind::Unavailable, "The database does not answer.")
    }

    fn document(&self) -> Document<'_> {
        let (status, r#type, title) = self.kind.describe();
        let errors = self.errors.iter().map(|error| DocumentError {
            field: error.field,
            pointer: (self.kind != Kind::InvalidQuery).then(|| format!("#/{}", error.field)),
            detail: error.detail,
        });
        Document { r#type, title, status: status.as_u16(), detail: &self.detail, errors: errors.collect() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.kind.describe().2, self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.describe().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        if let Some(allow) = self.allow {
            response.insert_header((header::ALLOW, allow));
        }
        if self.status_code() == StatusCode::SERVICE_UNAVAILABLE || self.kind == Kind::IdempotencyInProgress {
            response.insert_header((header::RETRY_AFTER, RETRY_AFTER_SECS));
        }
        response.body(self.to_json())
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Missing => {
                Self::new(Kind::MalformedBody, "The body is missing; send the order as a JSON object.")
            }
            OrderError::NotJson { line, column } => {
                Self::new(Kind::MalformedBody, format!("The body is not JSON: see line {line}, column {column}."))
            }
            OrderError::NotAnObject => Self::new(Kind::InvalidOrder, "The body must be a JSON object."),
            OrderError::Fields(errors) => Self::of_fields(Kind::InvalidOrder, errors),
        }
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let detail = match error {
            KeyError::Twice => "The header Idempotency-Key must be there once.",
            KeyError::Empty => "The header Idempotency-Key is empty; it must hold 1 to 255 characters.",
            KeyError::TooLong => "The header Idempotency-Key may hold 255 characters at most.",
            KeyError::Malformed => "The header Idempotency-Key must be printable ASCII, bare or in quotes.",
        };
        Self::new(Kind::InvalidIdempotencyKey, detail)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unreachable(_) | StoreError::Unavailable(_) | StoreError::InDoubt(_) => Self::unavailable(),
            StoreError::Refused(_) | StoreError::Key(_) | StoreError::Broken(_) => {
                tracing::error!(error = %error, "an order cannot be read");
                Self::new(Kind::Internal, "The order could not be read.")
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull | Refusal::QueueOld | Refusal::QueueSlow => {
                Self::new(Kind::Overloaded, "Too many orders are waiting to be written.")
            }
            Refusal::KeyRunning => Self::new(
                Kind::IdempotencyInProgress,
                "The first request with this key is not answered yet; the same request gets its answer afterwards.",
            ),
            Refusal::KeyReused => Self::new(
                Kind::IdempotencyKeyReused,
                "The key was used for another order; use a new key for a new order.",
            ),
            Refusal::ShuttingDown => Self::new(Kind::Unavailable, "This server is shutting down."),
            Refusal::Unavailable => Self::unavailable(),
            Refusal::InDoubt => Self::new(
                Kind::Unavailable,
                "The database went away meanwhile; the order may or may not have been accepted.",
            ),
            Refusal::Failed => Self::new(Kind::Internal, "The order could not be written; it was not accepted."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(problem.document()).expect("JSON")
    }

    #[test]
    fn a_problem_names_each_faulty_field() {
        let errors = vec![FieldError { field: "quantity", detail: "is missing" }];
        let problem = Problem::from(OrderError::Fields(errors));
        assert_eq!(
            body(&problem),
            serde_json::json!({
                "type": "/problems/invalid-order", "title": "The order is not valid", "status": 422,
                "detail": "quantity is missing.",
                "errors": [{"field": "quantity", "pointer": "#/quantity", "detail": "is missing"}],
            })
        );
    }

    #[test]
    fn what_is_only_for_now_says_when_to_come_back() {
        let [full, old, slow] = [Refusal::QueueFull, Refusal::QueueOld, Refusal::QueueSlow];
        for refusal in [full, old, slow, Refusal::ShuttingDown, Refusal::Unavailable, Refusal::InDoubt] {
            let response = Problem::from(refusal).error_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers().get(header::RETRY_AFTER).map(header::HeaderValue::as_bytes), Some(&b"1"[..]));
        }
        let response = Problem::from(Refusal::Failed).error_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let response = Problem::method_not_allowed("GET, HEAD").error_response();
        assert_eq!(response.headers().get(header::ALLOW).map(header::HeaderValue::as_bytes), Some(&b"GET, HEAD"[..]));
        let media_type = response.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
        assert_eq!(media_type, Some(&b"application/problem+json"[..]));
    }
}
