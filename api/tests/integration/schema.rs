//! Checks values against the part of JSON Schema that the description of the API uses. A keyword that is not known here is a fault of the
//! description, and a field that it does not name one of the value; patterns alone are passed over.

use serde_json::Value;

/// What is wrong with `value`; nothing if the schema takes it. References lead into `document`.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut check = Check { document, faults: Vec::new() };
    check.whole(schema, value, "");
    check.faults
}

/// What a reference leads to.
pub fn target<'a>(document: &'a Value, reference: &str) -> &'a Value {
    let pointer = reference.strip_prefix('#').expect("a reference within the document");
    document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

struct Check<'a> {
    document: &'a Value,
    faults: Vec<String>,
}

impl Check<'_> {
    /// A value, with all of its fields.
    fn whole(&mut self, schema: &Value, value: &Value, at: &str) {
        self.part(schema, value, at);
        let known = self.properties(schema);
        if let Some(object) = value.as_object().filter(|_| !known.is_empty()) {
            for field in object.keys().filter(|field| !known.contains(field)) {
                self.faults.push(format!("{at}/{field} is not described"));
            }
        }
    }

    /// What one schema says of a value that others may say more of.
    fn part(&mut self, schema: &Value, value: &Value, at: &str) {
        for (keyword, rule) in schema.as_object().expect("a schema is an object") {
            match keyword.as_str() {
                "$ref" => self.part(target(self.document, rule.as_str().expect("a reference")), value, at),
                "allOf" => list(rule).iter().for_each(|schema| self.part(schema, value, at)),
                "oneOf" | "anyOf" => self.choice(keyword, list(rule), value, at),
                "properties" => {
                    for (name, schema) in rule.as_object().expect("properties are an object") {
                        if let Some(field) = value.get(name) {
                            self.whole(schema, field, &format!("{at}/{name}"));
                        }
                    }
                }
                "items" => {
                    for (place, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.whole(rule, item, &format!("{at}/{place}"));
                    }
                }
                _ if !holds(keyword, rule, value) => self.faults.push(format!("{at} is {value}: {keyword} {rule}")),
                _ => {}
            }
        }
    }

    fn choice(&mut self, keyword: &str, schemas: &[Value], value: &Value, at: &str) {
        let of_each: Vec<_> = schemas.iter().map(|schema| faults(self.document, schema, value)).collect();
        let fitting = of_each.iter().filter(|faults| faults.is_empty()).count();
        if fitting == 0 || (keyword == "oneOf" && fitting > 1) {
            self.faults.push(format!("{at} fits {fitting} of {keyword}: {of_each:?}"));
        }
    }

    /// The fields that are named anywhere in the schema itself.
    fn properties(&self, schema: &Value) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (keyword, rule) in schema.as_object().expect("a schema is an object") {
            match keyword.as_str() {
                "properties" => names.extend(rule.as_object().into_iter().flat_map(|object| object.keys().cloned())),
                "$ref" => names.extend(self.properties(target(self.document, rule.as_str().expect("a reference")))),
                "allOf" | "oneOf" | "anyOf" => {
                    names.extend(list(rule).iter().flat_map(|schema| self.properties(schema)));
                }
                _ => {}
            }
        }
        names
    }
}

/// Whether a value keeps one rule that is about it alone.
fn holds(keyword: &str, rule: &Value, value: &Value) -> bool {
    let bound = || rule.as_f64().expect("a bound is a number");
    let length = |count: Option<usize>| count.map(|count| f64::from(u32::try_from(count).expect("short")));
    let items = || length(value.as_array().map(Vec::len));
    let characters = || length(value.as_str().map(|text| text.chars().count()));
    match keyword {
        "type" => match rule {
            Value::Array(types) => types.iter().any(|kind| is_of(kind, value)),
            kind => is_of(kind, value),
        },
        // More values may be added for clients to come: a test knows all that there are.
        "enum" | "x-extensible-enum" => list(rule).contains(value),
        "const" => rule == value,
        "required" => list(rule).iter().all(|name| {
            value.as_object().is_none_or(|object| object.contains_key(name.as_str().expect("a field has a name")))
        }),
        "minimum" => value.as_f64().is_none_or(|number| number >= bound()),
        "maximum" => value.as_f64().is_none_or(|number| number <= bound()),
        "minItems" => items().is_none_or(|count| count >= bound()),
        "maxItems" => items().is_none_or(|count| count <= bound()),
        "minLength" => characters().is_none_or(|count| count >= bound()),
        "maxLength" => characters().is_none_or(|count| count <= bound()),
        "format" => value.is_null() || has_format(rule.as_str().expect("a format has a name"), value),
        "description" | "title" | "default" | "example" | "examples" | "pattern" => true,
        other => panic!("nobody checks the keyword {other}"),
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type has a name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("there is no type {other}"),
    }
}

fn has_format(format: &str, value: &Value) -> bool {
    let text = || value.as_str().unwrap_or_default();
    match format {
        "int32" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        "int64" => value.is_i64(),
        "date-time" => chrono::DateTime::parse_from_rfc3339(text()).is_ok(),
        "uuid" => uuid::Uuid::parse_str(text()).is_ok(),
        "binary" => value.is_string(),
        "uri-reference" => text().starts_with('/') && !text().contains(' '),
        other => panic!("nobody checks the format {other}"),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

#[test]
fn what_a_schema_does_not_take_is_named() {
    let document = serde_json::json!({
        "named": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}},
    });
    let schema = serde_json::json!({"allOf": [
        {"$ref": "#/named"}, {"type": "object", "properties": {"b": {"type": ["string", "null"], "format": "uuid"}}},
    ]});
    let of = |value: Value| faults(&document, &schema, &value).len();
    assert_eq!(of(serde_json::json!({"a": 1, "b": null})), 0);
    assert_eq!(of(serde_json::json!({"a": 0, "b": "x", "c": 1})), 3, "too small, no UUID, not described");
    assert_eq!(of(serde_json::json!({"b": "00000000-0000-0000-0000-000000000000"})), 1, "required");
    assert_eq!(of(serde_json::json!({"a": 1.5})), 1);
    let choice = serde_json::json!({"oneOf": [{"type": "null"}, {"$ref": "#/named"}]});
    assert!(faults(&document, &choice, &Value::Null).is_empty());
    assert_eq!(faults(&document, &choice, &serde_json::json!({"a": 0})).len(), 1);
}
