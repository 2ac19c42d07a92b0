//! The description of the API, as `OpenAPI` 3.1: made from the annotations of the handlers, the catalogue of problems and the rules that
//! hold for all routes.

mod headers;
mod older;
mod problems;
pub mod schemas;

use std::sync::Arc;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::feed::event::Transition;
use crate::listing::Status;
use crate::problem::{Document, DocumentError, Kind, Retry};
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

/// What a description depends on besides the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Who is let in.
    pub callers: Callers,
    /// Where clients send requests unless they are told otherwise: a URL, or a path at the host that the description was read from.
    pub server_url: String,
    /// The path below which the outside reaches the API.
    pub base_path: Option<Arc<str>>,
}

impl Deployment {
    /// One that need not know the address that clients see: they go on where they have read the description.
    #[must_use]
    pub fn of(callers: Callers) -> Self {
        Self { callers, server_url: "/".to_owned(), base_path: None }
    }
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
        events::of_order, timeline::read, pages::list, pages::read, docs::description, docs::older_description,
        docs::page, docs::file, health::live, health::ready,
    ),
    components(schemas(Document, DocumentError, Transition, schemas::Status)),
)]
struct Annotations;

/// The same description as `OpenAPI` 3.0: many generators of clients know nothing newer.
#[must_use]
pub fn older(document: Value) -> Value {
    older::of(document)
}

/// The description.
#[must_use]
pub fn document(deployment: &Deployment) -> Value {
    // What utoipa makes of the annotations are maps with names for keys: there is nothing in it that could fail to be written.
    let mut document = serde_json::to_value(Annotations::openapi()).unwrap_or_default();
    document["servers"] = json!([{ "url": deployment.server_url }]);
    let components = &mut document["components"];
    components["headers"] = headers::components();
    let kinds = Kind::ALL.iter().map(|kind| kind.entry().uri);
    may_grow(&mut components["schemas"]["Problem"]["properties"]["type"], kinds);
    may_grow(&mut components["schemas"]["ProblemType"]["properties"]["retry"], Retry::ALL.map(Retry::name));
    may_grow(&mut components["schemas"]["Order"]["properties"]["status"], Status::ALL.map(Status::name));
    components["securitySchemes"] = json!({
        BEARER: {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON Web Token."}
    });
    for (path, item) in members(&mut document["paths"]) {
        let of_orders = !routes::is_open(path);
        for (_, operation) in members(item) {
            complete(operation, of_orders, deployment.callers);
        }
        if !is_endless(path)
            && let Some(get) = item.get("get")
        {
            item["head"] = head_of(get);
        }
    }
    if let Some(base) = &deployment.base_path {
        put_base(&mut document, base);
    }
    document
}

/// Puts the base path in front of the types of problems, as it is in answers.
fn put_base(value: &mut Value, base: &str) {
    match value {
        Value::String(text) if text.starts_with("/problems/") => text.insert_str(0, base),
        Value::Array(list) => list.iter_mut().for_each(|value| put_base(value, base)),
        Value::Object(object) => object.values_mut().for_each(|value| put_base(value, base)),
        _ => {}
    }
}

/// What the annotations leave out, since it is the same for all operations or follows from something else.
fn complete(operation: &mut Value, of_orders: bool, callers: Callers) {
    problems::add_responses(operation, of_orders);
    for (_, response) in members(&mut operation["responses"]) {
        headers::complete(response, of_orders);
        for (media_type, content) in response.get_mut("content").into_iter().flat_map(members) {
            // Generators that know nothing of pages and streams hand them over as bytes, as they come.
            if !media_type.ends_with("json") && media_type != "text/plain" {
                content["schema"]["format"] = "binary".into();
            }
        }
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

/// The values that a text of an answer may have today. Clients that were generated from an enum would refuse the first new one, as if the
/// whole answer could not be read.
fn may_grow<'a>(schema: &mut Value, values: impl IntoIterator<Item = &'a str>) {
    let said = schema["description"].as_str().unwrap_or_default();
    schema["description"] = format!("{said} More values may be added: be ready for one that you do not know.").into();
    schema["x-extensible-enum"] = values.into_iter().collect();
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
