//! Pages about the types of problems: where the `type` of a problem leads to.

use std::borrow::Cow;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::edge::context::public_path;
use crate::problem::{Entry, Kind, Problem, Retry};

/// What is said of a type of problem.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProblemType {
    /// A stable URI of the type, relative to the API.
    #[schema(value_type = String, format = "uri-reference", example = "/problems/order-not-found")]
    r#type: Cow<'static, str>,
    /// The status that it is answered with.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// In a few words.
    title: &'static str,
    /// When it is answered.
    meaning: &'static str,
    /// What to do.
    advice: &'static str,
    /// Whether the same request may be sent again as it is: yes, no, or later, after the seconds in the header Retry-After.
    #[schema(value_type = String)]
    retry: Retry,
}

/// All types of problems.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProblemTypes {
    /// By status.
    problems: Vec<ProblemType>,
}

impl ProblemType {
    fn of(kind: Kind) -> Self {
        let Entry { status, uri, title, meaning, advice, retry, .. } = kind.entry();
        Self { r#type: public_path(uri), status: status.as_u16(), title, meaning, advice, retry }
    }

    fn html(&self) -> String {
        let Self { r#type, status, title, meaning, advice, retry } = self;
        let retry = match retry {
            Retry::No => "Do not send the same request again as it is.",
            Retry::Yes => "The same request may be sent again.",
            Retry::Later => "The same request may be sent again after the seconds in the header Retry-After.",
        };
        format!(
            "<h2>{title}</h2><p><code>{type}</code>, status {status}</p><p>{meaning}</p><p>{advice}</p><p>{retry}</p>"
        )
    }
}

/// List the types of problems
///
/// Every refusal is one of these, with media type `application/problem+json`.
#[utoipa::path(
    get, path = "/problems", operation_id = "listProblems", tag = "problems",
    responses((status = 200, description = "All of them, by status.", headers(("Vary")), content(
        (ProblemTypes = "application/json"), (String = "text/html"),
    )))
)]
pub async fn list(request: HttpRequest) -> HttpResponse {
    let problems: Vec<_> = Kind::ALL.iter().map(|kind| ProblemType::of(*kind)).collect();
    if wants_html(&request) {
        return page("Problems", &problems.iter().map(ProblemType::html).collect::<String>());
    }
    json(&ProblemTypes { problems })
}

/// Read what a type of problem means
///
/// The `type` of a problem leads here.
#[utoipa::path(
    get, path = "/problems/{slug}", operation_id = "readProblem", tag = "problems",
    params(("slug" = String, Path, description = "The last segment of the type.", example = "order-not-found")),
    responses((status = 200, description = "What it means, and what to do.", headers(("Vary")), content(
        (ProblemType = "application/json"), (String = "text/html"),
    ))),
    extensions(("x-problems" = json!([Kind::NotFound])))
)]
pub async fn read(request: HttpRequest, slug: web::Path<String>) -> Result<HttpResponse, Problem> {
    let kind = Kind::by_slug(&slug).ok_or_else(|| Problem::new(Kind::NotFound, "There is no such type of problem."))?;
    let problem = ProblemType::of(kind);
    Ok(if wants_html(&request) { page(problem.title, &problem.html()) } else { json(&problem) })
}

/// Browsers name HTML among what they take; programs that do, and would have JSON rather, are not known.
fn wants_html(request: &HttpRequest) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    accepted.into_iter().any(|value| value.to_ascii_lowercase().contains("text/html"))
}

fn json(body: &impl Serialize) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::VARY, "accept")).json(body)
}

/// All that stands in it is our own and has no character that HTML would take for something else.
fn page(title: &str, body: &str) -> HttpResponse {
    let head = format!("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>");
    HttpResponse::Ok()
        .insert_header((header::VARY, "accept"))
        .content_type(header::ContentType::html())
        .body(format!("{head}<body>{body}</body></html>\n"))
}
