//! Response headers in the description: what each means, once, and which every response has.

use serde_json::{Map, Value, json};

/// Name, schema, meaning, and whether a response that has it always has it.
type Header = (&'static str, fn() -> Value, &'static str, bool);

const HEADERS: [Header; 16] = [
    ("ETag", || json!({"type": "string", "pattern": "^\"[0-9]+\"$"}), "The order's version.", true),
    ("Location", || json!({"type": "string", "format": "uri-reference"}), "The path of the order.", true),
    ("Link", text, "Where the next page is, as `rel=\"next\"`; absent on the last one.", false),
    (
        "Idempotency-Replayed",
        || json!({"type": "string", "enum": ["true"]}),
        "There if this answer was given before, under the same key.",
        false,
    ),
    (
        "Preference-Applied",
        text,
        "Which preference was honoured: `wait`, with the seconds if it is less than was asked for.",
        false,
    ),
    ("Retry-After", whole, "After how many seconds to come back.", true),
    ("WWW-Authenticate", text, "What credentials are taken, and what is wrong with those that were sent.", true),
    ("Cache-Control", text, "How long this may be kept.", true),
    ("Content-Security-Policy", text, "What the page may load, for a page.", false),
    ("X-Accel-Buffering", text, "Asks proxies to pass the stream on as it comes.", true),
    ("Vary", text, "The request's headers that this answer depends on.", true),
    ("RateLimit-Limit", whole, "How many requests the caller may make in a window.", false),
    ("RateLimit-Remaining", whole, "How many of them are left.", false),
    ("RateLimit-Reset", whole, "In how many seconds there are more.", false),
    ("X-Request-Id", text, "Names the request in the logs; the request's own, if it brings a good one.", false),
    ("Allow", text, "The methods that the path has.", true),
];

/// What all responses may have.
const OF_ALL: [&str; 1] = ["X-Request-Id"];
/// What responses about orders may have.
const OF_ORDERS: [&str; 3] = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];

fn text() -> Value {
    json!({"type": "string"})
}

fn whole() -> Value {
    json!({"type": "integer", "minimum": 0})
}

/// Each header by its name.
pub fn components() -> Value {
    let headers = HEADERS.into_iter().map(|(name, schema, description, required)| {
        (name.to_owned(), json!({"description": description, "required": required, "schema": schema()}))
    });
    headers.collect::<Map<_, _>>().into()
}

/// Lets the headers that a response names lead to what they mean, and adds those that need not be named.
pub fn complete(response: &mut Value, of_orders: bool) {
    let named = response["headers"].as_object().cloned().unwrap_or_default();
    let more = OF_ALL.into_iter().chain(OF_ORDERS.into_iter().filter(|_| of_orders));
    let all = named.into_iter().map(|(name, _)| name).chain(more.map(str::to_owned));
    let headers = all.map(|name| {
        let target = json!({"$ref": format!("#/components/headers/{name}")});
        (name, target)
    });
    response["headers"] = headers.collect::<Map<_, _>>().into();
}
