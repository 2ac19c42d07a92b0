//! The description of the API says what the API does: routes, methods, refusals, examples.

use std::collections::BTreeSet;

use api::problem::Kind;
use api::routes::{Resource, SURFACE};
use serde_json::Value;
use shared::testing::TestDatabase;

use crate::contract::{self, DESCRIPTION};
use crate::http::{Answer, request, send};
use crate::schema::{faults, target};
use crate::service::{Api, ORDER};
use crate::watcher::Watcher;

/// Each operation: its route, its method in lower case, what is said of it.
fn operations() -> impl Iterator<Item = (&'static Resource, String, &'static Value)> {
    SURFACE.iter().flat_map(|resource| {
        resource.methods().map(move |method| {
            let method = method.as_str().to_lowercase();
            let operation = &DESCRIPTION["paths"][resource.path][&method];
            assert!(operation.is_object(), "{method} {} is not described", resource.path);
            (resource, method, operation)
        })
    })
}

/// Asks, and holds the answer against the description; reads no more than the head of a stream without an end.
async fn ask(api: &Api, resource: &Resource, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
    if resource.is_endless() && method == "GET" {
        let bytes = request(method, target, headers, body);
        let watcher = Watcher::try_send(api.address, &bytes).await.expect("an answer");
        let answer = Answer { status: watcher.status, head: watcher.head, body: String::new() };
        assert_eq!(answer.status, 200, "{answer:?}");
        contract::check(&bytes, &answer);
        return answer;
    }
    send(api.address, request(method, target, headers, body)).await
}

#[test]
fn every_route_and_every_problem_is_in_the_description() {
    let described: BTreeSet<String> = DESCRIPTION["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().expect("an item").keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    let served: BTreeSet<String> =
        operations().map(|(resource, method, _)| format!("{method} {}", resource.path)).collect();
    assert_eq!(described, served);
    let ids: BTreeSet<&str> = operations().filter_map(|(_, _, operation)| operation["operationId"].as_str()).collect();
    assert_eq!(ids.len(), served.len(), "each operation has a name of its own: {ids:?}");

    let responses = operations().flat_map(|(_, _, operation)| operation["responses"].as_object().expect("responses"));
    let kinds = |(_, response): (&String, &'static Value)| response["x-problem-types"].as_array().into_iter().flatten();
    let named: BTreeSet<String> =
        responses.flat_map(kinds).filter_map(|kind| kind.as_str().map(str::to_owned)).collect();
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::MethodNotAllowed) {
        assert!(named.contains(kind.entry().uri), "no operation is said to answer {kind:?}");
    }
    let all = &DESCRIPTION["components"]["schemas"]["Problem"]["properties"]["type"]["x-extensible-enum"];
    assert_eq!(all.as_array().map(Vec::len), Some(Kind::ALL.len()));
    assert_eq!(DESCRIPTION["openapi"], "3.1.0");
}

#[test]
fn all_that_is_described_is_there_and_keeps_its_own_schema() {
    walk(&DESCRIPTION, &mut |value| {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            target(&DESCRIPTION, reference);
        }
        let Some(schema) = value.get("schema") else { return };
        let given = value["examples"].as_object().into_iter().flat_map(|examples| examples.values());
        let examples = given.map(|example| &example["value"]).chain(value.get("example"));
        for example in examples {
            assert_eq!(faults(&DESCRIPTION, schema, example), [""; 0], "{example}");
        }
    });
    for (name, schema) in DESCRIPTION["components"]["schemas"].as_object().expect("schemas") {
        if let Some(example) = schema.get("example") {
            assert_eq!(faults(&DESCRIPTION, schema, example), [""; 0], "{name}");
        }
    }
}

fn walk(value: &Value, look: &mut impl FnMut(&Value)) {
    look(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, look)),
        Value::Object(fields) => fields.values().for_each(|field| walk(field, look)),
        _ => {}
    }
}

#[tokio::test]
async fn every_method_of_a_route_is_served_and_no_other() {
    let database = TestDatabase::create("every_method").await;
    let api = Api::start(&database).await;
    for resource in SURFACE {
        let path = resource.path.replace("{id}", "7").replace("{slug}", "internal").replace("{file}", "start.js");
        let served: Vec<&str> = resource.methods().map(actix_web::http::Method::as_str).collect();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"] {
            if resource.path == "/orders/{id}/events" && method == "GET" {
                assert_eq!(api.get(&path).await.problem(), "/problems/order-not-found");
                continue;
            }
            let answer = ask(&api, resource, method, &path, "", b"").await;
            assert_eq!(answer.status != 405, served.contains(&method), "{method} {path}: {answer:?}");
            if answer.status == 405 {
                assert_eq!(answer.header("allow"), Some(served.join(", ").as_str()), "{method} {path}");
            }
        }
    }
    api.stop().await;
}

#[tokio::test]
async fn the_examples_run() {
    let database = TestDatabase::create("examples").await;
    let api = Api::start(&database).await;
    // The examples speak of order 1.
    assert_eq!(api.post(ORDER).await.status, 201);
    let mut all: Vec<_> = operations().collect();
    // What is cancelled or deleted can be read no more, or not in the same way.
    all.sort_by_key(|(resource, method, _)| match (resource.path, method.as_str()) {
        ("/orders/{id}/cancel", _) => 1,
        (_, "delete") => 2,
        _ => 0,
    });
    for (resource, method, operation) in all {
        let (target, headers) = example_of(resource.path, operation);
        let bodies = operation["requestBody"]["content"]["application/json"]["examples"].as_object();
        let bodies: Vec<Vec<u8>> = match bodies {
            Some(bodies) => bodies.values().map(|body| body["value"].to_string().into_bytes()).collect(),
            None => vec![Vec::new()],
        };
        for body in bodies {
            let media_type = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
            let headers = format!("{headers}{media_type}");
            let answer = ask(&api, resource, &method.to_uppercase(), &target, &headers, &body).await;
            assert!((200..300).contains(&answer.status), "{method} {target} {headers}: {answer:?}");
        }
    }
    api.stop().await;
}

/// The target and the headers that the examples of an operation's parameters make.
fn example_of(path: &str, operation: &Value) -> (String, String) {
    let (mut path, mut query, mut headers) = (path.to_owned(), Vec::new(), Vec::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().expect("a name");
        let example =
            [&parameter["example"], &parameter["schema"]["example"]].into_iter().find(|found| !found.is_null());
        let text = match example {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => continue,
        };
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), &text),
            Some("query") => query.push(format!("{name}={text}")),
            // Waiting for a processor, which there is none of here, is for other tests.
            _ => headers.push(format!("{name}: {}\r\n", text.replace("wait=5", "wait=0"))),
        }
    }
    let target = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    (target, headers.concat())
}

#[tokio::test]
async fn the_description_and_its_pages_are_served() {
    let database = TestDatabase::create("description").await;
    let api = Api::start(&database).await;
    assert_eq!(api.get("/openapi.json").await.json(), *DESCRIPTION);
    assert_eq!(api.get("/openapi-3.0.json").await.json(), api::description::older(DESCRIPTION.clone()));
    let page = api.get("/docs").await;
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.starts_with("default-src 'none'")));
    assert!(!page.body.contains("://"), "nothing is asked of another host: {}", page.body);
    for part in page.body.split("docs/").skip(1) {
        let file = part.split('"').next().expect("closed quotes");
        let answer = send(api.address, request("HEAD", &format!("/docs/{file}"), "", b"")).await;
        assert_eq!(answer.status, 200, "{file}: {answer:?}");
    }
    assert_eq!(api.get("/docs/swagger-ui.js").await.problem(), "/problems/not-found");
    api.stop().await;
}

#[tokio::test]
async fn the_type_of_every_problem_leads_to_a_page_about_it() {
    let database = TestDatabase::create("problem_pages").await;
    let api = Api::start(&database).await;
    let all = api.get("/problems").await.json();
    let listed = all["problems"].as_array().expect("a list");
    assert_eq!(listed.len(), Kind::ALL.len());
    for problem in listed {
        let uri = problem["type"].as_str().expect("a type");
        assert_eq!(api.get(uri).await.json(), *problem);
        let page = send(api.address, request("GET", uri, "accept: text/html,*/*;q=0.8\r\n", b"")).await;
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.body.contains(problem["meaning"].as_str().expect("a text")), "{page:?}");
    }
    assert_eq!(api.get("/problems/nothing").await.problem(), "/problems/not-found");
    api.stop().await;
}
