//! The catalogue of problem types: what each means, and what a client should do. Answers, the pages under `/problems`, the description
//! of the API and the table in the README are all made or checked from it.

use actix_web::http::StatusCode;
use serde::{Serialize, Serializer};

/// Whether the same request may be sent again as it is: yes, no, or later, after the seconds in the header Retry-After.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// It would be answered in the same way, or nobody knows how.
    No,
    /// At once.
    Yes,
    /// After the seconds in the header `Retry-After`.
    Later,
}

impl Retry {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::No, Self::Yes, Self::Later];

    /// As it stands in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::Later => "later",
        }
    }
}

/// What is said of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The status that it is answered with.
    pub status: StatusCode,
    /// A URI, relative to the API: stable, since clients branch on it; a page about the type is there.
    pub uri: &'static str,
    /// The last segment of the URI.
    pub slug: &'static str,
    /// In a few words.
    pub title: &'static str,
    /// When it is answered.
    pub meaning: &'static str,
    /// What the client should do.
    pub advice: &'static str,
    /// Whether the same request may be sent again.
    pub retry: Retry,
}

macro_rules! catalogue {
    ($($kind:ident $status:ident $retry:ident $slug:literal $title:literal $meaning:literal $advice:literal;)+) => {
        /// A type of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = $meaning] $kind,)+
        }

        impl Kind {
            /// All of them, by status.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// What is said of it.
            #[must_use]
            pub const fn entry(self) -> Entry {
                match self {
                    $(Self::$kind => Entry {
                        status: StatusCode::$status,
                        uri: concat!("/problems/", $slug),
                        slug: $slug,
                        title: $title,
                        meaning: $meaning,
                        advice: $advice,
                        retry: Retry::$retry,
                    },)+
                }
            }
        }
    };
}

catalogue! {
    MalformedBody BAD_REQUEST No "malformed-body" "The body cannot be read"
        "The body is not JSON, is missing, or ended early."
        "Send one whole JSON text, as UTF-8. The detail names the line and the column.";
    BadRequest BAD_REQUEST No "bad-request" "The request cannot be understood"
        "The request is none that HTTP or this API knows, or a preflight asks for what pages of other origins may not do."
        "Mend what the detail names.";
    InvalidQuery BAD_REQUEST No "invalid-query" "The query is not valid"
        "A parameter of the query string is unknown, is given twice, or has a value that it cannot have."
        "Mend what errors names. Unknown parameters are refused, so that a misspelt filter does not widen a list.";
    InvalidIdempotencyKey BAD_REQUEST No "invalid-idempotency-key" "The idempotency key is not valid"
        "The header Idempotency-Key is there twice, is empty, too long or not printable ASCII, or is sent where none is taken."
        "Send one key of 1 to 255 printable ASCII characters, bare or in quotes, and only with POST /orders.";
    InvalidEventId BAD_REQUEST No "invalid-event-id" "The id of the last event is not valid"
        "The header Last-Event-ID is not the id of an event of this stream."
        "Send the id of the last event as it was received, or no such header to watch from now on.";
    Unauthorized UNAUTHORIZED No "unauthorized" "Nobody is known by these credentials"
        "The header Authorization is missing, or holds no key or token that is valid now."
        "Send a valid API key or token as a bearer; the header WWW-Authenticate says what is wrong with the one that was sent.";
    Forbidden FORBIDDEN No "forbidden" "The credentials do not allow this"
        "The caller is known and has no scope for this request."
        "Ask whoever gives out credentials for the scope that the detail names.";
    OrderNotFound NOT_FOUND No "order-not-found" "There is no such order"
        "No order has this id, the order is deleted, or it is not one of the caller's."
        "Look at the id. A deleted order does not come back.";
    NotFound NOT_FOUND No "not-found" "There is nothing here"
        "No route of the API has this path, or it leads to nothing that the caller may see."
        "Look at the path; /openapi.json lists all that there are.";
    MethodNotAllowed METHOD_NOT_ALLOWED No "method-not-allowed" "The method is not allowed here"
        "The path is served, with other methods."
        "Use one of the methods in the header Allow.";
    RequestTimeout REQUEST_TIMEOUT Yes "request-timeout" "The request took too long to arrive"
        "The body did not arrive whole in time. Nothing was written."
        "Send it again, faster.";
    IdempotencyInProgress CONFLICT Later "idempotency-in-progress" "A request with this idempotency key is under way"
        "The first request with this key is not answered yet."
        "Send the same request again later: it gets the answer of the first.";
    OrderNotPending CONFLICT No "order-not-pending" "The order is not Pending any more"
        "Only a Pending order can be cancelled, and this one is Processed, Failed or Cancelled."
        "Read the order: what was asked for is not possible any more, or was done before.";
    EventsGone GONE No "events-gone" "The events are not kept any more"
        "What came after the event in Last-Event-ID is not kept any more, or was never there."
        "Read the orders anew, and watch from now on without Last-Event-ID.";
    PreconditionFailed PRECONDITION_FAILED No "precondition-failed" "The order is not at the expected version"
        "The order has changed since the version that If-Match names."
        "Read the order again and decide anew.";
    BodyTooLarge PAYLOAD_TOO_LARGE No "body-too-large" "The body is too large"
        "The body has more bytes than this path takes."
        "Send fewer orders at a time; the detail says how many bytes are taken.";
    UriTooLong URI_TOO_LONG No "uri-too-long" "The URI is too long"
        "The path and the query string have more bytes than are looked at."
        "Ask for less at a time; the detail says how many bytes are taken.";
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE No "unsupported-media-type" "The body is of a type that is not read here"
        "The header Content-Type is not application/json, or there is a Content-Encoding."
        "Send JSON as application/json, and not compressed.";
    InvalidOrder UNPROCESSABLE_ENTITY No "invalid-order" "The order is not valid"
        "The body is JSON and no order: a field is missing, given twice, of another type or out of its bounds."
        "Mend what errors names; all faults are named at once.";
    InvalidBatch UNPROCESSABLE_ENTITY No "invalid-batch" "The list of orders is not valid"
        "The body is JSON and no array, or has no order or too many."
        "Send an array of 1 to 1,000 orders. An order in it that is not valid is answered by itself.";
    IdempotencyKeyReused UNPROCESSABLE_ENTITY No "idempotency-key-reused" "The idempotency key belongs to another request"
        "The key was used for another order."
        "Use a new key for a new order.";
    RateLimited TOO_MANY_REQUESTS Later "rate-limited" "Too many requests of this caller"
        "The caller has made as many requests as it may for now."
        "Come back after Retry-After; the headers RateLimit-* say how much is left.";
    HeadersTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE No "headers-too-large" "The headers are too large"
        "All headers together have more bytes than are taken."
        "Send fewer or shorter headers; the detail says how many bytes are taken.";
    Internal INTERNAL_SERVER_ERROR No "internal" "Something went wrong here"
        "A fault of the service. An order that the request brought was not accepted."
        "Tell whoever runs the service, with the time and the X-Request-Id. Repeating the request is likely to fail in the same way.";
    Overloaded SERVICE_UNAVAILABLE Later "overloaded" "Too much at once"
        "More is asked than can be done for now. Nothing was written."
        "Send it again after Retry-After, and less at once.";
    Unavailable SERVICE_UNAVAILABLE Later "unavailable" "Not available for now"
        "The database is away, the request took too long, or this server is shutting down. If the detail says so, an order may or may not have been accepted."
        "Send it again after Retry-After; under an Idempotency-Key that makes no second order.";
}

impl Kind {
    /// The one with this slug.
    #[must_use]
    pub fn by_slug(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.entry().slug == slug)
    }
}

/// As its slug, so that the annotations of handlers can name it.
impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.entry().slug)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_uri_of_its_own_and_a_status_of_an_error() {
        for kind in Kind::ALL {
            let entry = kind.entry();
            assert_eq!(Kind::by_slug(entry.slug), Some(*kind), "{}", entry.slug);
            assert_eq!(entry.uri, format!("/problems/{}", entry.slug));
            assert!(entry.status.is_client_error() || entry.status.is_server_error());
        }
        assert_eq!(Kind::by_slug("nothing"), None);
    }

    #[test]
    fn the_readme_lists_them_all() {
        let rows = Kind::ALL.iter().map(|kind| {
            let Entry { status, uri, meaning, retry, .. } = kind.entry();
            format!("| `{uri}` | {} | {meaning} | {} |\n", status.as_u16(), retry.name())
        });
        let table: String = rows.collect();
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        let text = std::fs::read_to_string(readme).expect("the README is there");
        assert!(text.contains(&table), "the table of problems in the README must be\n{table}");
    }
}
