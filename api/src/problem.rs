//! What a client is told when its request cannot be served: problem details as in RFC 9457. Every error of the surface is one
//! of [`Kind`], and nothing else ever becomes an answer.

pub mod catalogue;

use std::borrow::Cow;
use std::fmt;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use shared::throttle::Throttle;
use utoipa::ToSchema;

use crate::batcher::Refusal;
use crate::domain::{FieldError, OrderError};
use crate::edge::context::{self, public_path};
use crate::idempotency::KeyError;
use crate::store::StoreError;

pub use catalogue::{Entry, Kind, Retry};

/// The media type of problems.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Seconds after which a client that met an overload or an outage may try again.
const RETRY_AFTER_SECS: u32 = 1;

/// Every request may fail alike.
static UNREAD: Throttle = Throttle::new();

/// One problem, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    allow: Option<String>,
}

/// Why a request was not served: problem details as in RFC 9457.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document<'a> {
    /// A stable URI of the type of problem, relative to the API. A page about it is there.
    #[schema(value_type = String, format = "uri-reference")]
    r#type: Cow<'a, str>,
    /// The type in a few words, always the same.
    title: &'a str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What it was this time.
    detail: &'a str,
    /// Which fields of the body, or parameters of the query, are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<DocumentError<'a>>,
}

/// What is wrong with one field or parameter.
#[derive(Serialize, ToSchema)]
#[schema(as = ProblemError)]
pub(crate) struct DocumentError<'a> {
    /// Its name; `(other)` for a parameter that there is not.
    field: &'a str,
    /// Where it is in the body, as a JSON pointer in the form of a URI fragment; absent for what is not in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pointer: Option<String>,
    /// What is wrong with it, and what would be right.
    detail: &'a str,
}

impl Problem {
    /// A problem of `kind`; `detail` says what it was this time, in words that may leave the house.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), allow: None }
    }

    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The methods that would have been right, as in the header `Allow`.
    #[must_use]
    pub fn method_not_allowed(allow: String) -> Self {
        let detail = format!("Only {allow} can be used here.");
        Self { allow: Some(allow), ..Self::new(Kind::MethodNotAllowed, detail) }
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
        let Entry { status, uri, title, .. } = self.kind.entry();
        let errors = self.errors.iter().map(|error| DocumentError {
            field: error.field,
            pointer: (self.kind != Kind::InvalidQuery).then(|| format!("#/{}", error.field)),
            detail: error.detail,
        });
        Document {
            r#type: public_path(uri),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            errors: errors.collect(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.kind.entry().title, self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.kind.entry().status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((header::CONTENT_TYPE, MEDIA_TYPE));
        if let Some(allow) = &self.allow {
            response.insert_header((header::ALLOW, allow.as_str()));
        }
        if self.kind.entry().retry == Retry::Later {
            response.insert_header((header::RETRY_AFTER, RETRY_AFTER_SECS));
        }
        let mut response = response.body(self.to_json());
        // For whoever counts.
        response.extensions_mut().insert(self.kind);
        response
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
                if let Some(others) = UNREAD.pass("order") {
                    tracing::error!(
                        http.request.id = context::request_id(),
                        error = %error,
                        others_since_the_last = others,
                        "an order cannot be read"
                    );
                }
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
        let response = Problem::method_not_allowed("GET, HEAD".to_owned()).error_response();
        assert_eq!(response.headers().get(header::ALLOW).map(header::HeaderValue::as_bytes), Some(&b"GET, HEAD"[..]));
        let media_type = response.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
        assert_eq!(media_type, Some(MEDIA_TYPE.as_bytes()));
    }
}
