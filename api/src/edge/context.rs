//! What is known of the request that is being served, wherever in its handling. A task-local value, since a span for it costs more.

use std::borrow::Cow;
use std::sync::Arc;

use actix_web::http::header::HeaderValue;

tokio::task_local! {
    static CURRENT: Context;
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Context {
    /// The request's id.
    pub request_id: HeaderValue,
    /// The path below which the outside reaches the API, as in `/shop`; without one, at the root.
    pub base_path: Option<Arc<str>>,
}

/// Serves a request in its context.
pub async fn within<T>(context: Context, serving: impl Future<Output = T>) -> T {
    CURRENT.scope(context, serving).await
}

/// The request's id, for the log.
#[must_use]
pub fn request_id() -> Option<String> {
    CURRENT.try_with(|context| context.request_id.to_str().ok().map(str::to_owned)).ok().flatten()
}

/// A path of ours, as the outside reaches it.
#[must_use]
pub fn public_path<'a>(path: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let path = path.into();
    let base = CURRENT.try_with(|context| context.base_path.clone()).ok().flatten();
    base.map_or_else(|| path.clone(), |base| format!("{base}{path}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_has_the_base_in_front_of_it_if_there_is_one() {
        let context = |base_path: Option<&str>| Context {
            request_id: HeaderValue::from_static("1"),
            base_path: base_path.map(Arc::from),
        };
        assert_eq!(public_path("/orders/1"), "/orders/1");
        assert_eq!(within(context(None), async { public_path("/orders/1") }).await, "/orders/1");
        assert_eq!(within(context(Some("/shop")), async { public_path("/orders/1") }).await, "/shop/orders/1");
    }
}
