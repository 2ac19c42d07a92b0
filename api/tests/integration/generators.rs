//! What generators of clients need of the description. That they make clients that work is tried with the generators themselves, in
//! `tools/tests`; this names what went wrong in a second.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::contract::DESCRIPTION;
use crate::schema::target;

/// The keywords of schemas in `OpenAPI` 3.0 that are used, and the extension that says which values there are today.
const KEYWORDS: [&str; 17] = [
    "type",
    "nullable",
    "format",
    "description",
    "example",
    "default",
    "pattern",
    "enum",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "items",
    "$ref",
    "x-extensible-enum",
];

/// Calls `look` with each schema, and with where it is. Schemas within schemas come after the one around them.
fn each_schema<'a>(document: &'a Value, look: &mut impl FnMut(&str, &'a Map<String, Value>)) {
    fn below<'a>(schema: &'a Value, at: &str, look: &mut impl FnMut(&str, &'a Map<String, Value>)) {
        let schema = schema.as_object().expect("a schema is an object");
        look(at, schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            below(property, &format!("{at}/{name}"), look);
        }
        for (keyword, inner) in
            schema.iter().filter(|(keyword, _)| ["items", "allOf", "oneOf", "anyOf"].contains(&keyword.as_str()))
        {
            let several = inner.as_array().map_or_else(|| std::slice::from_ref(inner), Vec::as_slice);
            for schema in several {
                below(schema, &format!("{at}/{keyword}"), look);
            }
        }
    }
    fn outside<'a>(value: &'a Value, at: &str, look: &mut impl FnMut(&str, &'a Map<String, Value>)) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| outside(item, at, look)),
            Value::Object(members) => {
                for (name, member) in members.iter().filter(|(name, _)| !name.starts_with("example")) {
                    let at = format!("{at}/{name}");
                    if name == "schema" { below(member, &at, look) } else { outside(member, &at, look) }
                }
            }
            _ => {}
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        below(schema, name, look);
    }
    outside(&document["components"]["headers"], "", look);
    outside(&document["paths"], "", look);
}

#[test]
fn what_is_answered_has_no_closed_enum_and_no_choice_of_shapes() {
    let mut enums = BTreeMap::new();
    each_schema(&DESCRIPTION, &mut |at, schema| {
        for keyword in ["allOf", "oneOf", "anyOf", "const"] {
            assert!(!schema.contains_key(keyword), "{keyword} in {at}");
        }
        if let Some(values) = schema.get("enum") {
            assert!(enums.insert(at.to_owned(), values).is_none(), "{at}");
        }
    });
    // By this orders are asked for; it is in no answer, and what an old client asks for is still understood.
    let names: Vec<&str> = enums.keys().map(String::as_str).collect();
    assert_eq!(names, ["OrderStatus"]);
    let answers =
        json!([DESCRIPTION["components"]["schemas"]["Order"], DESCRIPTION["components"]["schemas"]["Timeline"]]);
    assert!(!answers.to_string().contains("schemas/OrderStatus"), "{answers}");
    let open = &DESCRIPTION["components"]["schemas"]["Order"]["properties"]["status"];
    assert_eq!(open["x-extensible-enum"], *enums["OrderStatus"]);
    assert!(open["description"].as_str().is_some_and(|text| text.contains("More values may be added")), "{open}");
}

#[test]
fn all_refusals_share_one_schema() {
    for (path, item) in DESCRIPTION["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an item") {
            for (status, response) in operation["responses"].as_object().expect("responses") {
                if let Some(content) = response["content"].get("application/problem+json") {
                    assert_eq!(
                        content["schema"],
                        json!({"$ref": "#/components/schemas/Problem"}),
                        "{method} {path} {status}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_older_description_says_the_same_in_words_of_openapi_3_0() {
    let older = api::description::older(DESCRIPTION.clone());
    assert_eq!(older["openapi"], "3.0.3");
    assert_eq!(older["info"]["license"], json!({"name": "MIT"}));
    let mut nullable = Vec::new();
    each_schema(&older, &mut |at, schema| {
        for (keyword, rule) in schema {
            assert!(KEYWORDS.contains(&keyword.as_str()), "{keyword} in {at}");
            match keyword.as_str() {
                "type" => assert!(rule.is_string() && rule != "null", "the type of {at} is {rule}"),
                "nullable" => nullable.push(at.to_owned()),
                "$ref" => {
                    assert_eq!(schema.len(), 1, "{at}: what is beside a reference is passed over");
                    target(&older, rule.as_str().expect("a reference"));
                }
                _ => {}
            }
        }
    });
    let mut expected = Vec::new();
    each_schema(&DESCRIPTION, &mut |at, schema| {
        expected.extend(schema.get("type").is_some_and(Value::is_array).then(|| at.to_owned()));
    });
    assert_eq!(nullable, expected);
    assert!(
        nullable.iter().any(|at| at == "Order/DeletedAt") && nullable.iter().any(|at| at == "Consumer/offset"),
        "{nullable:?}"
    );
    // Everything else is as it was: operations, parameters, statuses, examples.
    assert_eq!(older["paths"].to_string().replace(r#""nullable":true,"#, ""), DESCRIPTION["paths"].to_string());
    assert_eq!(
        older["components"]["schemas"]["Order"]["example"],
        DESCRIPTION["components"]["schemas"]["Order"]["example"]
    );
}

#[test]
fn clients_ask_where_the_description_was_read_unless_it_says_otherwise() {
    use api::description::{Callers, Deployment, document};
    assert_eq!(DESCRIPTION["servers"], json!([{"url": "/"}]));
    let elsewhere = Deployment { server_url: "https://orders.example".to_owned(), ..Deployment::of(Callers::Known) };
    assert_eq!(document(&elsewhere)["servers"], json!([{"url": "https://orders.example"}]));
}
