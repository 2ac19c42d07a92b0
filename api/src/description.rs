//! The description of the API, as `OpenAPI` 3.1: made from the annotations of the handlers, the catalogue of problems and the rules that
//! hold for all routes.

mod headers;
mod problems;
pub mod schemas;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::feed::event::Transition;
use crate::problem::{Document, DocumentError};
use crate::routes::{self, batch, changes, docs, events, health, listing, orders, problems as pages, timeline};

/// The name of the security scheme.
const BEARER: &str = "bearer";

/// Whether callers must say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Nobody is asked: credentials are passed over.
    Anybody,
    /// Everybody who wants something of orders is.
    Known,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Outrider", description = include_str!("description/about.md")),
    tags(
        (name = "orders", description = "Orders, and what becomes of them."),
        (name = "problems", description = "What refusals mean."),
        (name = "about", description = "This description."),
        (name = "health", description = "For load balancers."),
    ),
    paths(
        listing::list, orders::create, batch::create, events::all, orders::read, changes::delete, changes::cancel,
        events::of_order, timeline::read, pages::list, pages::read, docs::description, docs::page, docs::file,
        health::live, health::ready,
    ),
    components(schemas(Document, DocumentError, Transition)),
)]
struct Annotations;

/// The description as it is served.
#[must_use]
pub fn json(callers: Callers) -> Vec<u8> {
    document(callers).to_string().into_bytes()
}

/// The description.
#[must_use]
pub fn document(callers: Callers) -> Value {
    // What utoipa makes of the annotations are maps with names for keys: there is nothing in it that could fail to be written.
    let mut document = serde_json::to_value(Annotations::openapi()).unwrap_or_default();
    let components = &mut document["components"];
    components["headers"] = headers::components();
    components["schemas"]["Problem"]["properties"]["type"]["enum"] = problems::uris();
    components["securitySchemes"] = json!({
        BEARER: {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON Web Token."}
    });
    for (path, item) in members(&mut document["paths"]) {
        let of_orders = !routes::is_open(path);
        for (_, operation) in members(item) {
            complete(operation, of_orders, callers);
        }
        if !is_endless(path)
            && let Some(get) = item.get("get")
        {
            item["head"] = head_of(get);
        }
    }
    document
}

/// What the annotations leave out, since it is the same for all operations or follows from something else.
fn complete(operation: &mut Value, of_orders: bool, callers: Callers) {
    problems::add_responses(operation, of_orders);
    for (_, response) in members(&mut operation["responses"]) {
        headers::complete(response, of_orders);
    }
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        never_null(&mut parameter["schema"]);
    }
    if of_orders {
        operation["security"] = match callers {
            Callers::Anybody => json!([{ BEARER: [] }, {}]),
            Callers::Known => json!([{ BEARER: [] }]),
        };
    }
}

/// A parameter that is optional is there or not; null, as utoipa allows it, cannot be said in a URL or a header.
fn never_null(schema: &mut Value) {
    if let Some([kind, _]) = schema["type"].as_array().map(Vec::as_slice) {
        schema["type"] = kind.clone();
    }
}

/// The same without bodies.
fn head_of(get: &Value) -> Value {
    let mut head = get.clone();
    head["operationId"] = format!("{}Head", get["operationId"].as_str().unwrap_or_default()).into();
    for (_, response) in members(&mut head["responses"]) {
        if let Some(response) = response.as_object_mut() {
            response.remove("content");
            response.remove("links");
        }
    }
    head
}

fn is_endless(path: &str) -> bool {
    routes::SURFACE.iter().any(|resource| resource.path == path && resource.is_endless())
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(Map::iter_mut)
}
