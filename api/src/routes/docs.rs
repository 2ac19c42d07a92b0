//! The description of the API, and pages that show it: Swagger UI, whose files are part of the program.

use std::borrow::Cow;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::{self, Bytes};

use crate::problem::{Kind, Problem};
use crate::server::State;

const PAGE: &str = include_str!("docs/index.html");
const START: &str = include_str!("docs/start.js");

/// What the page needs of Swagger UI, and no more.
const FILES: [&str; 3] = ["swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"];

/// Swagger UI sets styles on its elements. All else that it needs is its own files and this API.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Files change with the program only, and a new one may run within the hour.
const CACHE: &str = "max-age=3600";

/// Read this description
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "readDescription", tag = "about",
    responses((status = 200, description = "This description, as OpenAPI 3.1.", body = Object, content_type = "application/json"))
)]
pub async fn description(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok().content_type(header::ContentType::json()).body(state.description.clone())
}

/// Read this description in the older form
///
/// For generators of clients that know nothing newer. It says the same, but that the fields of a null are marked otherwise.
#[utoipa::path(
    get, path = "/openapi-3.0.json", operation_id = "readOlderDescription", tag = "about",
    responses((status = 200, description = "This description, as OpenAPI 3.0.", body = Object, content_type = "application/json"))
)]
pub async fn older_description(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok().content_type(header::ContentType::json()).body(state.older_description.clone())
}

/// Look at this description, and try it
#[utoipa::path(
    get, path = "/docs", operation_id = "readDocs", tag = "about",
    responses((status = 200, description = "A page for people.", body = String, content_type = "text/html", headers(("Content-Security-Policy"))))
)]
pub async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .content_type(header::ContentType::html())
        .body(PAGE)
}

/// Read a file that the page needs
#[utoipa::path(
    get, path = "/docs/{file}", operation_id = "readDocsFile", tag = "about",
    params(("file" = String, Path, description = "Its name.", example = "start.js")),
    responses((status = 200, description = "The file.", headers(("Cache-Control")), content(
        (String = "text/css"), (String = "text/javascript"), (String = "image/png"),
    ))),
    extensions(("x-problems" = json!([Kind::NotFound])))
)]
pub async fn file(name: web::Path<String>) -> Result<HttpResponse, Problem> {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, CACHE));
    if name.as_str() == "start.js" {
        return Ok(response.content_type("text/javascript").body(START));
    }
    let none = || Problem::new(Kind::NotFound, "The page has no such file.");
    let known = FILES.into_iter().find(|file| *file == name.as_str()).ok_or_else(none)?;
    let config = Arc::new(utoipa_swagger_ui::Config::default());
    let file = utoipa_swagger_ui::serve(known, config).ok().flatten().ok_or_else(none)?;
    if file.gzpipped {
        response.insert_header(header::ContentEncoding::Gzip);
    }
    let body = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Ok(response.content_type(file.content_type).body(body))
}
