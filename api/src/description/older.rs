//! The description as `OpenAPI` 3.0.3, which says two things in another way: that a field may be null, and what is beside a reference.

use serde_json::{Value, json};

/// Values that are shown and not schemas, whatever their fields are called.
const SHOWN: [&str; 2] = ["example", "examples"];

/// The same description in the older form.
pub fn of(mut document: Value) -> Value {
    document["openapi"] = "3.0.3".into();
    if let Some(license) = document["info"]["license"].as_object_mut() {
        license.remove("identifier");
    }
    rewrite(&mut document);
    document
}

fn rewrite(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").cloned() {
                // What is beside a reference counts for nothing in 3.0, and some readers refuse it.
                *value = json!({ "$ref": reference });
                return;
            }
            if let Some(kind) = kind_or_null(members.get("type")) {
                members.insert("type".to_owned(), kind);
                members.insert("nullable".to_owned(), true.into());
            }
            for (_, member) in members.iter_mut().filter(|(name, _)| !SHOWN.contains(&name.as_str())) {
                rewrite(member);
            }
        }
        _ => {}
    }
}

/// The other of two types of which one is null.
fn kind_or_null(types: Option<&Value>) -> Option<Value> {
    let Some([kind, null]) = types?.as_array().map(Vec::as_slice) else { return None };
    (null == "null").then(|| kind.clone())
}
