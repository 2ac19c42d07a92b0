//! Who makes a request, and what it may do.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use tokio::time::Instant;

use crate::auth::scopes::Scopes;
use crate::domain::NewOrder;
use crate::problem::{Kind, Problem};
use crate::server::State;

/// The name of everybody. Names of callers that were asked who they are have a colon in them.
const ANYBODY: &str = "anybody";

/// A user who has no orders: their ids begin at 1.
const NO_USER: i64 = 0;

/// Who makes a request: what was kept for one caller is never shown to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// None: everybody. Shared, since it goes with each request of the caller.
    name: Option<Arc<str>>,
    user_id: Option<i64>,
    scopes: Scopes,
    expires: Option<Instant>,
}

impl Caller {
    /// A caller by its name, which is one and the same for all of its requests; bound to one user's orders, or to nobody's.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, user_id: Option<i64>, scopes: Scopes) -> Self {
        Self { name: Some(name.into()), user_id, scopes, expires: None }
    }

    /// The same, for as long as its credentials are good.
    #[must_use]
    pub fn until(self, expires: Option<Instant>) -> Self {
        Self { expires, ..self }
    }

    /// Everybody, where nobody is asked who they are.
    #[must_use]
    pub const fn anybody() -> Self {
        Self { name: None, user_id: None, scopes: Scopes::ALL, expires: None }
    }

    /// The same for all requests of a caller, and for no other's.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(ANYBODY)
    }

    /// The name of a caller that was asked who it is.
    #[must_use]
    pub const fn known_name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// The user whose orders are all that the caller may see and change; `None` for all users' orders.
    #[must_use]
    pub const fn user_id(&self) -> Option<i64> {
        self.user_id
    }

    /// What it may do.
    #[must_use]
    pub const fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// When its credentials end, if they do.
    #[must_use]
    pub const fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// The user whose orders it is shown when it asks for those of `asked`, or of all: none stands for all. Whoever is bound to a user and
    /// asks for another's is shown what a user without orders has, and learns nothing.
    #[must_use]
    pub fn shown(&self, asked: Option<i64>) -> Option<i64> {
        match self.user_id {
            Some(own) if asked.is_some_and(|asked| asked != own) => Some(NO_USER),
            Some(own) => Some(own),
            None => asked,
        }
    }

    /// Checks that the caller may make this order.
    ///
    /// # Errors
    /// When the caller is bound to a user, and the order is another's.
    pub fn may_order(&self, order: &NewOrder) -> Result<(), Problem> {
        match self.user_id {
            Some(own) if own != order.user_id() => {
                Err(Problem::new(Kind::Forbidden, format!("These credentials may order for user {own} only.")))
            }
            _ => Ok(()),
        }
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    /// Whoever checked the request's credentials has put the caller into its extensions. Where nobody has although somebody should, there is no caller:
    /// a route that was left unguarded serves nobody, instead of everybody.
    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        if let Some(caller) = request.extensions().get::<Self>() {
            return ready(Ok(caller.clone()));
        }
        let state = request.app_data::<web::Data<State>>();
        ready(if state.is_some_and(|state| state.guard.lets_anybody_in()) {
            Ok(Self::anybody())
        } else {
            tracing::error!("a route is not guarded");
            Err(Problem::new(Kind::Internal, "It cannot be said who asks."))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_caller_is_shown_its_own_orders_or_none() {
        let bound = Caller::new("key:a", Some(7), Scopes::ALL);
        assert_eq!([None, Some(7), Some(8)].map(|asked| bound.shown(asked)), [Some(7), Some(7), Some(NO_USER)]);
        let free = Caller::new("key:b", None, Scopes::ALL);
        assert_eq!([None, Some(7)].map(|asked| free.shown(asked)), [None, Some(7)]);
        assert_eq!(Caller::anybody().shown(Some(7)), Some(7));
    }

    #[test]
    fn a_bound_caller_orders_for_its_user_only() {
        let order = NewOrder::from_json(br#"{"user_id": 7, "product_id": 1, "quantity": 1}"#).expect("an order");
        assert!(Caller::new("key:a", Some(7), Scopes::ALL).may_order(&order).is_ok());
        assert!(Caller::new("key:a", None, Scopes::ALL).may_order(&order).is_ok());
        assert!(Caller::new("key:a", Some(8), Scopes::ALL).may_order(&order).is_err());
    }
}
