//! What every request and every answer passes, whatever its route: the request's id, the deadline of its body, the headers that
//! protect whoever reads the answer, and that every error is a problem.

use std::sync::Arc;
use std::time::Duration;

use actix_cors::CorsError;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, ResponseError as _};

use super::body;
use super::context::{self, Context};
use super::request_id::{self, X_REQUEST_ID};
use crate::problem::{Kind, Problem};

/// What it goes by.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Whether the API is reached over TLS.
    pub is_tls: bool,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// See [`Context::base_path`].
    pub base_path: Option<Arc<str>>,
}

/// Serves `request`, and sees to its answer.
///
/// # Errors
/// None that is not a problem.
pub async fn pass<B: MessageBody + 'static>(
    frame: Frame,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let request_id = request_id::of(request.headers());
    let context = Context { request_id, base_path: frame.base_path.clone() };
    let id = context.request_id.clone();
    context::within(context, serve(frame, request, id, next)).await
}

async fn serve<B: MessageBody + 'static>(
    frame: Frame,
    mut request: ServiceRequest,
    id: HeaderValue,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    body::limit(&mut request, frame.body_timeout);
    let mut response = match next.call(request).await {
        Ok(response) => match response.response().error().and_then(foreign) {
            None => response.map_into_left_body(),
            Some(problem) => response.into_response(problem.error_response()).map_into_right_body(),
        },
        Err(error) => {
            let error = foreign(&error).map_or(error, Error::from);
            // Made here, where it is known under which path the outside reaches us.
            let mut response = error.error_response();
            frame.put_headers(response.headers_mut(), false, id);
            return Err(InternalError::from_response(error, response).into());
        }
    };
    let is_read = matches!(*response.request().method(), Method::GET | Method::HEAD);
    frame.put_headers(response.headers_mut(), is_read, id);
    Ok(response)
}

/// What an error that is none of ours is told as: the framework's and its extractors', and those of a preflight.
fn foreign(error: &Error) -> Option<Problem> {
    if error.as_error::<Problem>().is_some() {
        return None;
    }
    if let Some(refusal) = error.as_error::<CorsError>() {
        return Some(Problem::new(Kind::BadRequest, format!("{refusal}.")));
    }
    let status = error.as_response_error().status_code();
    if status.is_client_error() {
        return Some(Problem::new(Kind::BadRequest, "The request cannot be understood."));
    }
    tracing::error!(http.request.id = context::request_id(), error = %error, "a request cannot be served");
    Some(Problem::new(Kind::Internal, "The request could not be served."))
}

impl Frame {
    /// Headers that the answer has already are left as they are: a page for people needs others.
    fn put_headers(&self, headers: &mut HeaderMap, is_read: bool, id: HeaderValue) {
        put(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        // Nothing that is answered is a page: whoever opens it as one runs nothing, and nobody puts it into a frame.
        put(headers, header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
        put(headers, header::X_FRAME_OPTIONS, "DENY");
        // What has an ETag may be kept by the caller alone, and only to ask each time whether it is still true: without a copy,
        // there would be no use for a 304. Everything else is true for its moment, or made for one request.
        let may_keep = is_read && headers.contains_key(header::ETAG);
        put(headers, header::CACHE_CONTROL, if may_keep { "private, no-cache" } else { "no-store" });
        if self.is_tls {
            put(headers, header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
        }
        headers.insert(X_REQUEST_ID, id);
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if !headers.contains_key(&name) {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
