//! Who makes a request.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{Error, FromRequest, HttpMessage as _, HttpRequest};

/// Who makes a request: what was kept for one caller is never shown to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    user_id: Option<i64>,
}

impl Caller {
    /// A caller by its name, which is one and the same for all of its requests; bound to one user's orders, or to nobody's.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, user_id: Option<i64>) -> Self {
        Self { name: name.into(), user_id }
    }

    /// Everybody, where nobody is asked who they are.
    #[must_use]
    pub fn anybody() -> Self {
        Self::new("anybody", None)
    }

    /// The same for all requests of a caller, and for no other's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user whose orders are all that the caller may see and change; `None` for all users' orders.
    #[must_use]
    pub const fn user_id(&self) -> Option<i64> {
        self.user_id
    }
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    /// Whoever checked the request's credentials has put the caller into its extensions.
    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(request.extensions().get::<Self>().cloned().unwrap_or_else(Self::anybody)))
    }
}
