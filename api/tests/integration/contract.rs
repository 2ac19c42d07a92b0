//! Holds answers against the description of the API. Every test does so with every answer that it gets by [`crate::http::send`].

use std::sync::LazyLock;

use api::description::{self, Callers, Deployment};
use api::routes::{Resource, SURFACE};
use serde_json::{Value, json};

use crate::http::Answer;
use crate::schema::{faults, target};

/// The description.
pub static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| description::document(&Deployment::of(Callers::Anybody)));

/// Headers of HTTP itself, which are not described.
const OF_HTTP: [&str; 5] = ["content-type", "content-length", "connection", "date", "transfer-encoding"];

/// The route that a path leads to.
pub fn route(path: &str) -> Option<&'static Resource> {
    SURFACE.iter().find(|resource| {
        let (mut wanted, mut given) = (resource.path.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(wanted), Some(given)) if wanted == given || (wanted.starts_with('{') && !given.is_empty()) => {}
                _ => return false,
            }
        }
    })
}

/// Fails unless the answer is one that the description has for this request. Paths that lead nowhere are not described, nor are preflights,
/// nor what the HTTP server answers by itself, before there is a request, nor the health of the admin port.
pub fn check(request: &[u8], answer: &Answer) {
    let request = String::from_utf8_lossy(request);
    let mut line = request.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (line.next(), line.next()) else { return };
    let path = target.split('?').next().unwrap_or_default();
    let Some(resource) = route(path) else { return };
    let is_bare = answer.header("x-request-id").is_none();
    let is_admins = is_bare && ["/livez", "/readyz"].contains(&path);
    if method == "OPTIONS" || is_admins || (is_bare && [400, 408, 431].contains(&answer.status)) {
        return;
    }
    if !resource.methods().any(|served| served.as_str() == method) {
        // Whoever shows no good credentials is not told what there is.
        if [401, 403].contains(&answer.status) {
            return;
        }
        assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
        if method != "HEAD" {
            assert_eq!(answer.problem(), "/problems/method-not-allowed", "{method} {path}");
        }
        return;
    }
    let operation = &DESCRIPTION["paths"][resource.path][method.to_lowercase()];
    let response = &operation["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{method} {path}: {} is not described: {answer:?}", answer.status);
    let mut found = wrong_headers(response, answer);
    found.extend(wrong_body(response, answer));
    assert!(found.is_empty(), "{method} {path}: {found:?}: {answer:?}");
}

fn wrong_headers(response: &Value, answer: &Answer) -> Vec<String> {
    let described = response["headers"].as_object().expect("each response has headers");
    let mut found = Vec::new();
    for (name, reference) in described {
        let header = target(&DESCRIPTION, reference["$ref"].as_str().expect("a reference"));
        match answer.header(&name.to_lowercase()) {
            None if header["required"] == true => found.push(format!("{name} is missing")),
            None => {}
            Some(text) => {
                let value = if header["schema"]["type"] == "integer" {
                    text.parse::<u64>().map_or(Value::Null, Value::from)
                } else {
                    text.into()
                };
                found.extend(faults(&DESCRIPTION, &header["schema"], &value));
            }
        }
    }
    let others = answer.header_names().into_iter().filter(|name| !OF_HTTP.contains(&name.as_str()));
    let others = others.filter(|name| !described.keys().any(|described| described.eq_ignore_ascii_case(name)));
    found.extend(others.map(|name| format!("{name} is not described")));
    found
}

fn wrong_body(response: &Value, answer: &Answer) -> Vec<String> {
    let Some(content) = response.get("content") else {
        return if answer.body.is_empty() { vec![] } else { vec!["a body is not described".to_owned()] };
    };
    let media_type = answer.header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
    let Some(body) = content.get(media_type) else { return vec![format!("'{media_type}' is not described")] };
    let value = if media_type.ends_with("json") { answer.json() } else { json!(answer.body) };
    let mut found = faults(&DESCRIPTION, &body["schema"], &value);
    if media_type == "application/problem+json" {
        // That the response is for these types its schema does not say, for the sake of clients that are generated from it.
        let types = response["x-problem-types"].as_array().expect("the types of the response's problems");
        if !types.contains(&value["type"]) || value["status"] != answer.status {
            found.push(format!("a problem {} with status {} is not described", value["type"], value["status"]));
        }
    }
    found
}
