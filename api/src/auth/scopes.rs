//! What a caller may do: a set of scopes.

use actix_web::http::Method;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Reading and watching orders.
    Read,
    /// Making, cancelling and deleting them.
    Write,
}

impl Scope {
    /// All that there are.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// As in tokens, keys and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "orders:read",
            Self::Write => "orders:write",
        }
    }

    /// The one with that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }

    /// What a request with this method needs. A method that is not known to be harmless needs the right to change.
    #[must_use]
    pub fn needed(method: &Method) -> Self {
        if matches!(*method, Method::GET | Method::HEAD) { Self::Read } else { Self::Write }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
        }
    }
}

/// A set of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self(Scope::Read.bit() | Scope::Write.bit());

    /// Those with these names. Names of others are passed over: tokens carry the scopes of other services too.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().filter_map(Scope::by_name).fold(Self::NONE, Self::with)
    }

    /// The same, and `scope`.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | scope.bit())
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `scope` is one of them.
    #[must_use]
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_known_by_their_whole_names() {
        let scopes = Scopes::named(["openid", "orders:read", "orders:writes", "Orders:write", ""]);
        assert!(scopes.has(Scope::Read) && !scopes.has(Scope::Write));
        assert_eq!(Scopes::named(Scope::ALL.map(Scope::name)), Scopes::ALL);
        assert_eq!(Scopes::named([]), Scopes::default());
    }

    #[test]
    fn what_may_change_something_needs_the_right_to() {
        let needed = [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS]
            .map(|method| Scope::needed(&method));
        assert_eq!(needed, [Scope::Read, Scope::Read, Scope::Write, Scope::Write, Scope::Write]);
    }
}
