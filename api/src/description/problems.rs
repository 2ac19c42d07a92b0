//! Refusals in the description: a response for each status, with the types of problems that it may be.

use serde_json::{Map, Value, json};

use crate::problem::{Entry, Kind, MEDIA_TYPE, Retry};

/// Where the annotation of a handler names its problems, which the description itself does not have.
const NAMED: &str = "x-problems";

/// Where a response names the types of its problems. A schema of its own for each response, with an enum of these, is more exact; but a
/// generator of clients then makes a class of each, and nothing that all refusals have in common.
const TYPES: &str = "x-problem-types";

/// What may be answered to any request.
const OF_ALL: [Kind; 6] =
    [Kind::BadRequest, Kind::UriTooLong, Kind::HeadersTooLarge, Kind::Internal, Kind::Overloaded, Kind::Unavailable];

/// What may be answered to any request about orders besides.
const OF_ORDERS: [Kind; 4] = [Kind::Unauthorized, Kind::Forbidden, Kind::RateLimited, Kind::RequestTimeout];

/// Adds the responses for the problems that the operation names, and for those that all of its kind may have.
pub fn add_responses(operation: &mut Value, of_orders: bool) {
    let named = operation.as_object_mut().and_then(|operation| operation.remove(NAMED)).unwrap_or_default();
    let named = named.as_array().into_iter().flatten().filter_map(|slug| Kind::by_slug(slug.as_str()?));
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in named.chain(OF_ORDERS.into_iter().filter(|_| of_orders)).chain(OF_ALL) {
        // Some are named though they may be answered to any request.
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut statuses: Vec<u16> = kinds.iter().map(|kind| kind.entry().status.as_u16()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        let entries = kinds.iter().map(|kind| kind.entry()).filter(|entry| entry.status.as_u16() == status);
        let mut response = response(&entries.collect::<Vec<_>>(), status);
        match &mut operation["responses"][status.to_string()] {
            // What has been described of this status is an answer too: that the service is not ready.
            described @ Value::Object(_) => {
                described["content"][MEDIA_TYPE] = response["content"][MEDIA_TYPE].take();
                described[TYPES] = response[TYPES].take();
            }
            none => *none = response,
        }
    }
}

fn response(entries: &[Entry], status: u16) -> Value {
    let titles: Vec<&str> = entries.iter().map(|entry| entry.title).collect();
    let types: Vec<&str> = entries.iter().map(|entry| entry.uri).collect();
    let examples: Map<String, Value> = entries.iter().map(|entry| (entry.slug.to_owned(), example(entry))).collect();
    let mut headers = Map::new();
    if entries.iter().any(|entry| entry.retry == Retry::Later) {
        headers.insert("Retry-After".to_owned(), Value::Null);
    }
    if status == 401 || status == 403 {
        headers.insert("WWW-Authenticate".to_owned(), Value::Null);
    }
    json!({
        "description": format!("{}.", titles.join(", or: ")),
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        TYPES: types,
    })
}

fn example(entry: &Entry) -> Value {
    json!({
        "summary": entry.title,
        "value": {"type": entry.uri, "title": entry.title, "status": entry.status.as_u16(), "detail": entry.meaning},
    })
}
