use serde_json::json;

use super::*;

fn claims(value: Value) -> Claims {
    match value {
        Value::Object(claims) => claims,
        other => panic!("no claims: {other}"),
    }
}

fn rules(scopes: &str, map: &str) -> ClaimRules {
    ClaimRules {
        scopes: ClaimPath::parse_list(scopes).expect("paths"),
        scope_map: ScopeMap::parse(map).expect("a map"),
        ..ClaimRules::default()
    }
}

const READ: Scopes = Scopes::NONE.with(Scope::Read);
const WRITE: Scopes = Scopes::NONE.with(Scope::Write);

#[test]
fn a_whole_name_comes_before_a_path_and_the_longest_part_before_others() {
    let token = claims(json!({
        "a": { "b": 1, "b.c": 2, "d": { "e": 3 }, "list": [{ "b": 0 }] },
        "a.d": { "f": 4 },
        "x": { "y": 5 },
        "x.y": 6,
        "https://example.com/roles": 7,
        "https://example.com/app": { "roles": 8 },
        "resource_access": { "orders.example.com": { "roles": 9 }, "orders": { "roles": 10 } },
    }));
    for (path, expected) in [
        ("a.b", Some(1)),
        ("a.b.c", Some(2)),
        ("a.d.e", Some(3)),
        ("a.d.f", Some(4)),
        ("x.y", Some(6)),
        ("https://example.com/roles", Some(7)),
        ("https://example.com/app.roles", Some(8)),
        ("resource_access.orders.example.com.roles", Some(9)),
        ("resource_access.orders.roles", Some(10)),
        (" x.y ", Some(6)),
        ("b", None),
        ("a.b.x", None),
        ("a.list.b", None),
        ("a.list.0", None),
        ("X.y", None),
        ("resource_access.example.com.roles", None),
    ] {
        let found = ClaimPath::parse(path).expect("a path").find(&token).and_then(Value::as_i64);
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn without_a_setting_scopes_come_as_text_or_as_a_list_from_all_usual_claims() {
    let rules = ClaimRules::default();
    for (value, expected) in [
        (json!({ "scope": "openid orders:read" }), READ),
        (json!({ "scp": ["orders:read", 7] }), READ),
        (json!({ "scp": "orders:read" }), READ),
        (json!({ "scopes": ["orders:read"], "scope": 7 }), READ),
        (json!({ "scope": "orders:read", "scp": ["orders:write"] }), Scopes::ALL),
        (json!({ "scope": "orders:read\torders:write" }), Scopes::NONE),
        (json!({ "scope": "orders:read,orders:write" }), Scopes::NONE),
        (json!({ "roles": ["orders:write"], "permissions": ["orders:write"] }), Scopes::NONE),
        (json!({ "scope": { "orders:write": true } }), Scopes::NONE),
        (json!({}), Scopes::NONE),
    ] {
        assert_eq!(rules.scopes(&claims(value.clone())), expected, "{value}");
    }
}

#[test]
fn of_several_claims_the_first_that_a_token_has_counts() {
    let rules = rules("scp,roles", "Order.Writer=orders:write");
    for (value, expected) in [
        (json!({ "scp": "orders:read" }), READ),
        (json!({ "roles": ["Order.Writer"] }), WRITE),
        (json!({ "scp": "orders:read", "roles": ["Order.Writer"] }), READ),
        (json!({ "scp": "", "roles": ["Order.Writer"] }), Scopes::NONE),
        (json!({ "scp": null, "roles": ["Order.Writer"] }), Scopes::NONE),
        (json!({ "scp": 7, "roles": ["Order.Writer"] }), Scopes::NONE),
        (json!({ "scope": "orders:write" }), Scopes::NONE),
    ] {
        assert_eq!(rules.scopes(&claims(value.clone())), expected, "{value}");
    }
}

#[test]
fn names_of_the_issuer_stand_for_ours_and_ours_for_themselves() {
    let map = "https://x.example/?a=b=orders:read , order writer=orders:write,admin=orders:read,admin=orders:write";
    let rules = rules("roles", map);
    for (roles, expected) in [
        (json!(["https://x.example/?a=b"]), READ),
        (json!(["order writer"]), WRITE),
        (json!("order writer"), Scopes::NONE),
        (json!("admin"), Scopes::ALL),
        (json!(["orders:write"]), WRITE),
        (json!(["Admin", "admins", "order", "writer", "", "=", "orders:all"]), Scopes::NONE),
        (json!([["admin"], { "admin": 1 }, null, 7]), Scopes::NONE),
    ] {
        assert_eq!(rules.scopes(&claims(json!({ "roles": roles }))), expected, "{roles}");
    }
}

#[test]
fn a_required_claim_is_a_text_a_number_a_boolean_or_one_of_a_list() {
    let token = claims(json!({
        "token_use": "access", "version": 2, "verified": true, "groups": ["a", "b"], "null": null,
        "cnf": { "jkt": "x=y" }, "empty": "",
    }));
    for met in [
        "token_use=access",
        "token_use",
        "version=2",
        "verified=true",
        "groups=b",
        "cnf",
        "cnf.jkt=x=y",
        "empty",
        " token_use = access , version",
    ] {
        let required = RequiredClaim::parse_list(met).expect("claims");
        assert!(required.iter().all(|required| required.is_met(&token)), "{met}");
    }
    for missed in ["token_use=id", "token_use=acces", "version=2.0", "groups=c", "null", "null=null", "cnf=x", "azp"] {
        let required = RequiredClaim::parse_list(missed).expect("claims");
        assert!(!required.iter().all(|required| required.is_met(&token)), "{missed}");
    }
}
