//! Response headers in the description: what each means, once, and which every response has.

use serde_json::{Map, Value, json};

/// Name, schema, meaning, and whether a response that has it always has it.
type Header = (&'static str, fn() -> Value, &'static str, bool);

const HEADERS: [Header; 21] = [
    ("ETag", || json!({"type": "string", "pattern": "^\"[0-9]+\"$"}), "The order's version.", true),
    ("Location", || json!({"type": "string", "format": "uri-reference"}), "The path of the order.", true),
    ("Link", text, "Where the next page is, as `rel=\"next\"`; absent on the last one.", false),
    (
        "Idempotency-Replayed",
        || json!({"type": "string", "pattern": "^true$"}),
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
    ("WWW-Authenticate", text, "What credentials are taken, and what is wrong with those that were sent.", false),
    ("Cache-Control", text, "How long this may be kept.", true),
    ("Content-Security-Policy", text, "What a page may load: nothing, where there is none.", true),
    ("X-Accel-Buffering", text, "Asks proxies to pass the stream on as it comes.", true),
    ("Vary", text, "The request's headers that this answer depends on.", false),
    ("RateLimit-Limit", whole, "How many requests the caller may make in a window.", false),
    ("RateLimit-Remaining", whole, "How many of them are left.", false),
    ("RateLimit-Reset", whole, "In how many seconds there are more.", false),
    ("X-Request-Id", text, "Names the request in the logs; the request's own, if it brings a good one.", true),
    ("X-Content-Type-Options", text, "The media type is as it is said to be.", true),
    ("X-Frame-Options", text, "Nobody puts this into a frame.", true),
    ("Strict-Transport-Security", text, "Over TLS: come by TLS from now on.", false),
    ("Access-Control-Allow-Origin", text, "Whose pages may read this, if the request comes from one that may.", false),
    ("Access-Control-Expose-Headers", text, "Which headers such a page may read.", false),
    ("Allow", text, "The methods that the path has.", true),
];

/// What all responses may have.
const OF_ALL: [&str; 9] = [
    "X-Request-Id",
    "Cache-Control",
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "Strict-Transport-Security",
    "Vary",
    "Access-Control-Allow-Origin",
    "Access-Control-Expose-Headers",
];
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
    let named = response["headers"].as_object().map(|headers| headers.keys().cloned().collect()).unwrap_or_default();
    let more = OF_ALL.into_iter().chain(OF_ORDERS.into_iter().filter(|_| of_orders));
    let all: Vec<String> = Vec::into_iter(named).chain(more.map(str::to_owned)).collect();
    let headers = all.into_iter().map(|name| {
        let target = json!({"$ref": format!("#/components/headers/{name}")});
        (name, target)
    });
    response["headers"] = headers.collect::<Map<_, _>>().into();
}
