//! JSON objects in which no name stands twice, at any depth.
//!
//! RFC 7519, section 4, lets a reader either refuse such a token or take the last of the two. Two programs that read one token must not see two
//! different tokens in it, so here it is refused.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object, read strictly. The reader bounds its depth (128), and the limit of a request's headers its size.
#[derive(Debug)]
pub struct StrictObject(pub Map<String, Value>);

impl<'de> Deserialize<'de> for StrictObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match StrictValue::deserialize(deserializer)?.0 {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(D::Error::custom("it is no object")),
        }
    }
}

struct StrictValue(Value);

impl<'de> Deserialize<'de> for StrictValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON without a name that stands twice")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(StrictValue(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        // Compared as they are read and not as they are written: an escape does not make another name.
        while let Some((name, StrictValue(value))) = members.next_entry::<String, _>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Value> {
        serde_json::from_str::<StrictObject>(text).ok().map(|object| object.0.into())
    }

    #[test]
    fn what_has_each_name_once_is_read_as_usual() {
        for text in [
            "{}",
            r#"{"a": null, "b": true, "c": -1, "d": 18446744073709551615, "e": 1.5, "f": "text", "g": "\u00e9"}"#,
            r#"{"a": {"a": {"a": [1, "a", {"a": 1}, {"a": 2}]}}, "A": 1}"#,
        ] {
            assert_eq!(read(text), serde_json::from_str(text).ok(), "{text}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth() {
        for text in [
            r#"{"a": 1, "a": 2}"#,
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": null, "a": null}"#,
            r#"{"a": 1, "b": 2, "\u0061": 3}"#,
            r#"{"a": {"b": 1, "b": 2}}"#,
            r#"{"a": [1, {"b": 1, "b": 2}]}"#,
        ] {
            assert!(serde_json::from_str::<Value>(text).is_ok(), "{text} is JSON");
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_object_or_nested_too_deeply_is_refused() {
        for text in ["", "[]", "1", "null", "\"a\"", "{} {}", "\u{feff}{}", r#"{"a": NaN}"#, r#"{"a": 1e999}"#] {
            assert_eq!(read(text), None, "{text}");
        }
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(read(&nested(100)).is_some());
        assert_eq!(read(&nested(30_000)), None);
    }
}
