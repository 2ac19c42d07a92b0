//! `.env.example` names every variable of the services, with its default.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Context, Result};
use shared::config::Env;

/// Variables of `.env.example`, those that are commented out included.
fn example() -> BTreeMap<String, String> {
    let text = include_str!("../../../.env.example");
    let assignments = text.lines().filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='));
    let is_name = |name: &str| name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
    let assignments = assignments.filter(|(name, _)| is_name(name));
    assignments.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The fields of a struct, by its `{:#?}`.
fn fields(value: &impl Debug) -> Vec<String> {
    let text = format!("{value:#?}");
    let names = text.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    let names = names.map(|(name, _)| name).filter(|name| !name.starts_with(' '));
    names.map(str::to_owned).collect()
}

#[test]
fn the_example_names_every_variable_with_its_default() -> Result<()> {
    let example = example();
    let only = |names: &[&str]| Env::from_pairs(example.iter().filter(|(name, _)| names.contains(&name.as_str())));
    let defaults = only(&["DATABASE_URL", "KAFKA_BROKERS"]);
    let all = Env::from_pairs(example.iter().filter(|(name, _)| *name != "ADMIN_BIND"));

    let (api, api_example) = (api::Config::from_env(&defaults)?, api::Config::from_env(&all)?);
    assert_eq!(format!("{:?}", api.limits), format!("{:?}", api_example.limits));
    assert_eq!(api.bind, api_example.bind);
    let (relay, relay_example) = (relay::RelayConfig::from_env(&defaults)?, relay::RelayConfig::from_env(&all)?);
    assert_eq!(format!("{:?}", relay.limits), format!("{:?}", relay_example.limits));
    assert_eq!(relay.routes, relay_example.routes);
    example.get(relay::routes::VARIABLE).context("the routes are in .env.example")?;
    assert_eq!(format!("{:?}", relay.kafka), format!("{:?}", relay_example.kafka));
    let mut processor = processor::config::ProcessorConfig::from_env(&defaults)?;
    // Unset is not the same as its default: with the other protocol it must be unset.
    processor.settings.assignment.get_or_insert_default();
    let processor_example = processor::config::ProcessorConfig::from_env(&all)?;
    assert_eq!(format!("{:?}", processor.settings), format!("{:?}", processor_example.settings));

    let tokens = ["ALGORITHM", "JWKS_URL", "JWKS_FILE", "SECRET", "ISSUER", "AUDIENCE", "SCOPES_CLAIM", "SCOPE_MAP"];
    let tokens = tokens.into_iter().chain(["REQUIRED_CLAIMS", "USER_CLAIM"]).map(|name| format!("API_JWT_{name}"));
    let unset = ["API_TLS_CERT", "API_TLS_KEY", "API_CORS_ORIGINS"].map(str::to_owned).into_iter().chain(tokens);
    for name in unset {
        assert_eq!(example.get(&name).map(String::as_str), Some(""), "{name} is in .env.example, and not set");
    }
    // With a default of its own: it asks for no tokens.
    assert_eq!(example.get("API_JWT_AUDIENCE_CLAIM").map(String::as_str), Some("aud"));
    let named = [
        ("API_", fields(&api.limits)),
        ("API_", fields(&api.limits.watching)),
        ("RELAY_", fields(&relay.limits)),
        ("PROCESSOR_", fields(&processor.settings)),
        ("KAFKA_", fields(&relay.kafka)),
    ];
    for (prefix, fields) in named {
        assert!(fields.len() > 3, "the fields of {prefix} are found");
        for field in fields.iter().filter(|field| !["drain_secs", "watching"].contains(&field.as_str())) {
            let name = format!("{prefix}{}", field.to_uppercase());
            example.get(&name).with_context(|| format!("{name} is not in .env.example"))?;
        }
    }
    Ok(())
}
