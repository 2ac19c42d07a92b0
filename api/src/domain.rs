//! What an order must be before anything is done with it. Pure: no HTTP and no SQL.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The highest quantity of one order.
pub const QUANTITY_MAX: i32 = 10_000;

/// An order that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewOrder {
    user_id: i64,
    product_id: i64,
    quantity: i32,
}

/// The identity of an order, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderId(i64);

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub detail: &'static str,
}

/// Why a body is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is no body.
    #[error("the body is missing")]
    Missing,
    /// It is not JSON. Line and column, from 1, are where it stops being that.
    #[error("the body is not JSON: line {line}, column {column}")]
    NotJson {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// It is JSON, but no object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// It is an object with these faults, all that there are.
    #[error("{} of its fields are missing or wrong", .0.len())]
    Fields(Vec<FieldError>),
}

impl NewOrder {
    /// Reads an order from a request's body. Fields that are not an order's own are passed over, whatever they hold: existing
    /// clients send `ID`, `CreatedAt` and `status` along, and those are not theirs to set.
    ///
    /// # Errors
    /// When the body is not JSON, or a field is missing, given twice or out of its bounds.
    pub fn from_json(body: &[u8]) -> Result<Self, OrderError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(OrderError::Missing);
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let fields =
            json.deserialize_map(FieldsVisitor).and_then(|fields| json.end().map(|()| fields)).map_err(|error| {
                match error.classify() {
                    // The visitor takes objects only; but what follows the start of something else may not be JSON either.
                    serde_json::error::Category::Data if serde_json::from_slice::<IgnoredAny>(body).is_ok() => {
                        OrderError::NotAnObject
                    }
                    _ => OrderError::NotJson { line: error.line(), column: error.column() },
                }
            })?;
        fields.check()
    }

    /// Who orders.
    #[must_use]
    pub const fn user_id(&self) -> i64 {
        self.user_id
    }

    /// What is ordered.
    #[must_use]
    pub const fn product_id(&self) -> i64 {
        self.product_id
    }

    /// How many, 1 to [`QUANTITY_MAX`].
    #[must_use]
    pub const fn quantity(&self) -> i32 {
        self.quantity
    }
}

impl OrderId {
    /// Reads the last segment of an order's path. Only the form that the API itself writes is one: no sign, no leading zero.
    #[must_use]
    pub fn from_path(segment: &str) -> Option<Self> {
        let canonical = segment.bytes().all(|byte| byte.is_ascii_digit()) && !segment.starts_with('0');
        if canonical { segment.parse().ok().map(Self) } else { None }
    }

    /// As a number, from 1.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// The fields of an order as they stand in the body. Values are kept as text, so that one that is no number, or one that no type
/// could hold, is the fault of its field and not of the whole body.
#[derive(Default)]
struct Fields<'a> {
    user_id: Field<'a>,
    product_id: Field<'a>,
    quantity: Field<'a>,
}

#[derive(Default, Clone, Copy)]
enum Field<'a> {
    #[default]
    Missing,
    Once(&'a str),
    Twice,
}

impl<'a> Field<'a> {
    const fn add(&mut self, value: &'a str) {
        *self = match self {
            Self::Missing => Self::Once(value),
            Self::Once(_) | Self::Twice => Self::Twice,
        };
    }

    /// The whole number from 1 to `max` that the field must hold.
    fn number(self, max: i64, out_of_bounds: &'static str) -> Result<i64, &'static str> {
        let text = match self {
            Self::Missing => return Err("is missing"),
            Self::Twice => return Err("is given more than once"),
            Self::Once(text) => text,
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("must be a whole number");
        }
        // JSON that is all digits fails to parse only when it is too large.
        text.parse().ok().filter(|number| (1..=max).contains(number)).ok_or(out_of_bounds)
    }
}

impl Fields<'_> {
    fn check(self) -> Result<NewOrder, OrderError> {
        const ID_BOUNDS: &str = "must be from 1 to 9223372036854775807";
        let user_id = self.user_id.number(i64::MAX, ID_BOUNDS);
        let product_id = self.product_id.number(i64::MAX, ID_BOUNDS);
        let quantity = self.quantity.number(QUANTITY_MAX.into(), "must be from 1 to 10000");
        if let (Ok(user_id), Ok(product_id), Ok(quantity)) = (user_id, product_id, quantity)
            && let Ok(quantity) = i32::try_from(quantity)
        {
            return Ok(NewOrder { user_id, product_id, quantity });
        }
        let checked = [("user_id", user_id), ("product_id", product_id), ("quantity", quantity)];
        let faults =
            checked.into_iter().filter_map(|(field, result)| Some(FieldError { field, detail: result.err()? }));
        Err(OrderError::Fields(faults.collect()))
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<Name>()? {
            let field = match name {
                Name::UserId => &mut fields.user_id,
                Name::ProductId => &mut fields.product_id,
                Name::Quantity => &mut fields.quantity,
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            field.add(map.next_value::<&'de RawValue>()?.get());
        }
        Ok(fields)
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    UserId,
    ProductId,
    Quantity,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(body: &str) -> Vec<(&'static str, &'static str)> {
        match NewOrder::from_json(body.as_bytes()) {
            Err(OrderError::Fields(faults)) => faults.into_iter().map(|fault| (fault.field, fault.detail)).collect(),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn an_order_is_read_and_what_is_not_its_own_is_passed_over() {
        let body = r#"{"ID": 7, "CreatedAt": "x", "DeletedAt": null, "status": "Processed", "deep": [[{"user_id": 9}]],
            "huge": 1e999, "user_id": 9223372036854775807, "product_id": 2, "quantity": 10000}"#;
        let order = NewOrder::from_json(body.as_bytes()).expect("an order");
        assert_eq!((order.user_id(), order.product_id(), order.quantity()), (i64::MAX, 2, QUANTITY_MAX));
    }

    #[test]
    fn all_faulty_fields_are_named_at_once() {
        assert_eq!(
            faults(r#"{"user_id": 0, "quantity": "1"}"#),
            [
                ("user_id", "must be from 1 to 9223372036854775807"),
                ("product_id", "is missing"),
                ("quantity", "must be a whole number")
            ]
        );
        assert_eq!(
            faults(r#"{"user_id": 1, "product_id": 2, "quantity": 1, "quantity": 1, "quantity": 1}"#),
            [("quantity", "is given more than once")]
        );
        // An escape in a name is still that name.
        assert_eq!(
            faults(r#"{"user_id": 1, "product_id": 2, "quantity": 1, "quantit\u0079": 1}"#),
            [("quantity", "is given more than once")]
        );
    }

    #[test]
    fn only_whole_numbers_within_bounds_are_taken() {
        for value in ["1.5", "1.0", "1e2", "\"1\"", "null", "true", "[1]", "{}"] {
            let body = format!(r#"{{"user_id": {value}, "product_id": 2, "quantity": 1}}"#);
            assert_eq!(faults(&body), [("user_id", "must be a whole number")], "{value}");
        }
        for value in ["0", "-0", "-1", "9223372036854775808", "-9223372036854775809", &"9".repeat(400)] {
            let body = format!(r#"{{"user_id": {value}, "product_id": {value}, "quantity": {value}}}"#);
            assert_eq!(faults(&body).len(), 3, "{value}");
        }
        assert_eq!(faults(r#"{"user_id": 1, "product_id": 2, "quantity": 10001}"#)[0].1, "must be from 1 to 10000");
    }

    #[test]
    fn what_is_not_json_is_told_apart_from_what_is_no_object() {
        for body in ["", " \n"] {
            assert_eq!(NewOrder::from_json(body.as_bytes()), Err(OrderError::Missing));
        }
        for body in ["[]", "1", "null", "\"{}\"", "true", "[{\"user_id\": 1}]"] {
            assert_eq!(NewOrder::from_json(body.as_bytes()), Err(OrderError::NotAnObject), "{body}");
        }
        let broken =
            ["{", "{]", "{\"user_id\": }", "[1,", "{} {}", "{\"user_id\": 01}", "nul", "{'user_id': 1}", "[] []"];
        for body in broken {
            let read = NewOrder::from_json(body.as_bytes());
            assert!(matches!(read, Err(OrderError::NotJson { .. })), "{body}: {read:?}");
        }
        assert!(matches!(NewOrder::from_json(b"{\"user_id\": \"\xff\"}"), Err(OrderError::NotJson { .. })));
    }

    #[test]
    fn an_id_has_one_form_only() {
        assert_eq!(OrderId::from_path("9223372036854775807").map(OrderId::get), Some(i64::MAX));
        for segment in ["", "0", "-1", "+1", "01", "1.0", "abc", " 1", "9223372036854775808", "\u{0661}"] {
            assert_eq!(OrderId::from_path(segment), None, "{segment}");
        }
    }
}
