//! Which orders a list is to hold, as a query string says it. Pure: no HTTP and no SQL.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::domain::FieldError;

/// Orders of a page when none are asked for.
pub const LIMIT_DEFAULT: i64 = 50;
/// Most orders of a page.
pub const LIMIT_MAX: i64 = 200;

/// The state of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted, and nothing more yet.
    Pending,
    /// Its event was applied.
    Processed,
    /// Its event cannot be applied.
    Failed,
    /// Taken back by whoever ordered.
    Cancelled,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Processed, Self::Failed, Self::Cancelled];

    /// As in `orders.status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Processed => "Processed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// The place of the last order of a page: the next page begins behind it. Lists go from the newest to the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// `orders.created_at`.
    pub created_at: DateTime<Utc>,
    /// `orders.id`.
    pub id: i64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}{:016x}", self.created_at.timestamp_micros(), self.id)
    }
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let part = |range| i64::from_str_radix(text.get(range)?, 16).ok();
        let created_at = DateTime::from_timestamp_micros(part(0..16)?)?;
        Some(Self { created_at, id: part(16..32)? })
    }
}

/// What a list is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only this user's.
    pub user_id: Option<i64>,
    /// Only of this product.
    pub product_id: Option<i64>,
    /// Only in this state.
    pub status: Option<Status>,
    /// Only those created at this time or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Only those created before this time.
    pub created_before: Option<DateTime<Utc>>,
    /// Only those behind this place.
    pub cursor: Option<Cursor>,
    /// How many at most, 1 to [`LIMIT_MAX`].
    pub limit: i64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            user_id: None,
            product_id: None,
            status: None,
            created_from: None,
            created_before: None,
            cursor: None,
            limit: LIMIT_DEFAULT,
        }
    }
}

impl Filter {
    /// Reads the parameters of a query string.
    ///
    /// # Errors
    /// All that is wrong with them. A parameter of another name is wrong too: a list that passes over a misspelt filter would hold what
    /// nobody asked for.
    pub fn from_query(pairs: &[(String, String)]) -> Result<Self, Vec<FieldError>> {
        let mut filter = Self::default();
        let mut errors = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in pairs {
            let Some(field) = FIELDS.iter().copied().find(|field| field == name) else {
                errors.push(FieldError { field: "(other)", detail: "is no parameter of a list of orders" });
                continue;
            };
            let read = if seen.contains(&field) { Err("is given more than once") } else { filter.set(field, value) };
            seen.push(field);
            if let Err(detail) = read {
                errors.push(FieldError { field, detail });
            }
        }
        if errors.is_empty() { Ok(filter) } else { Err(errors) }
    }

    fn set(&mut self, field: &str, value: &str) -> Result<(), &'static str> {
        const ID: &str = "must be a whole number from 1 to 9223372036854775807";
        const TIME: &str = "must be a time as in RFC 3339, for example 2026-11-24T12:00:00Z";
        const SPACE_IN_TIME: &str =
            "must be a time as in RFC 3339, and has a space in it: in a query string, write the + of an offset as %2B";
        let id = || value.parse().ok().filter(|id: &i64| *id >= 1).ok_or(ID);
        let time = || match DateTime::parse_from_rfc3339(value) {
            Ok(time) => Ok(time.to_utc()),
            // In a query string, a + stands for a space.
            Err(_) if value.contains(' ') => Err(SPACE_IN_TIME),
            Err(_) => Err(TIME),
        };
        match field {
            "user_id" => self.user_id = Some(id()?),
            "product_id" => self.product_id = Some(id()?),
            "created_from" => self.created_from = Some(time()?),
            "created_before" => self.created_before = Some(time()?),
            "status" => {
                let found = Status::ALL.into_iter().find(|status| status.name() == value);
                self.status = Some(found.ok_or("must be Pending, Processed, Failed or Cancelled")?);
            }
            "cursor" => self.cursor = Some(Cursor::parse(value).ok_or("must be taken from the list before")?),
            _ => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                self.limit = limit.ok_or("must be a whole number from 1 to 200")?;
            }
        }
        Ok(())
    }

    /// The query string of the page behind `cursor`.
    #[must_use]
    pub fn next(&self, cursor: Cursor) -> String {
        let time = |time: DateTime<Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
        let number = |number: i64| number.to_string();
        let parts = [
            ("user_id", self.user_id.map(number)),
            ("product_id", self.product_id.map(number)),
            ("status", self.status.map(|status| status.name().to_owned())),
            ("created_from", self.created_from.map(time)),
            ("created_before", self.created_before.map(time)),
            ("limit", (self.limit != LIMIT_DEFAULT).then(|| number(self.limit))),
            ("cursor", Some(cursor.to_string())),
        ];
        let parts = parts.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        parts.collect::<Vec<String>>().join("&")
    }
}

const FIELDS: [&str; 7] = ["user_id", "product_id", "status", "created_from", "created_before", "cursor", "limit"];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<Filter, Vec<FieldError>> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('='));
        Filter::from_query(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn the_query_of_the_next_page_says_the_same_and_where_to_go_on() {
        let query = "user_id=7&product_id=8&status=Failed&created_from=2026-11-24T12:00:00Z\
            &created_before=2026-11-24T13:00:00.000001Z&limit=3";
        let filter = of(query).expect("a filter");
        let cursor = Cursor { created_at: DateTime::from_timestamp_micros(1_700_000_000_000_001).unwrap(), id: 9 };
        let next = of(&filter.next(cursor)).expect("a filter");
        assert_eq!(next, Filter { cursor: Some(cursor), ..filter });
        assert_eq!(of("").expect("a filter").next(cursor), format!("cursor={cursor}"));
    }

    #[test]
    fn all_that_is_wrong_is_named() {
        let query = "user_id=0&product_id=x&status=pending&created_from=today&created_before=&cursor=7&limit=201&offset=3&user_id=1";
        let errors = of(query).expect_err("nothing of it is right");
        let fields: Vec<&str> = errors.iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "user_id",
                "product_id",
                "status",
                "created_from",
                "created_before",
                "cursor",
                "limit",
                "(other)",
                "user_id"
            ]
        );
        for cursor in ["", "7", &"g".repeat(32), &"f".repeat(32), &"é".repeat(16)] {
            assert_eq!(Cursor::parse(cursor), None, "{cursor}");
        }
    }
}
