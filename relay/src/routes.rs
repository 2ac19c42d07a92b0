//! Which topic the events of an aggregate type go to. Pure.
//!
//! Four rules, the first that applies decides: a route of the type itself in the environment (`RELAY_ROUTES`), one in the table
//! `relay_routes`, the route of all other types (`*`) in the environment, the one in the table. Without any, the topic is the
//! type and an "s".

use std::collections::BTreeMap;

use shared::config::ConfigError;

/// The variable with the routes of the environment.
pub const VARIABLE: &str = "RELAY_ROUTES";

/// Stands for all types that have no route of their own, and in that route's topic for the type.
const WILDCARD: &str = "*";

/// Longest name that Kafka allows, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// Routes of the environment and of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    environment: BTreeMap<String, String>,
    table: BTreeMap<String, String>,
}

/// A type whose events no broker will ever take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the aggregate type makes the topic name '{topic}', which Kafka does not allow: give the type a route")]
pub struct IllegalTopic {
    /// The name that it makes.
    pub topic: String,
}

impl Routes {
    /// The routes of the environment: `type=topic`, separated by commas, for example `order=shop.orders,*=outbox.event.*`.
    ///
    /// # Errors
    /// When it is not of that form, a topic's name is not legal, or a type is named twice.
    pub fn parse(text: Option<&str>) -> Result<Self, ConfigError> {
        let bad = |problem: String| Err(ConfigError::new(VARIABLE, problem));
        let mut environment = BTreeMap::new();
        for route in text.into_iter().flat_map(|text| text.split(',')) {
            let Some((aggregate_type, topic)) = route.split_once('=') else {
                return bad(format!(
                    "'{route}' is not of the form type=topic, as in order=shop.orders,payment=billing"
                ));
            };
            let (aggregate_type, topic) = (aggregate_type.trim(), topic.trim());
            if aggregate_type.is_empty() {
                return bad(format!("'{route}' names no aggregate type before the '='"));
            }
            if aggregate_type == WILDCARD && topic.matches(WILDCARD).count() != 1 {
                return bad(format!("the topic of '{route}' must have one '*', which stands for the aggregate type"));
            }
            let example = if aggregate_type == WILDCARD { topic.replace(WILDCARD, "x") } else { topic.to_owned() };
            if !is_legal_topic(&example) {
                return bad(format!("'{topic}' is no topic name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"));
            }
            if environment.insert(aggregate_type.to_owned(), topic.to_owned()).is_some() {
                return bad(format!("names '{aggregate_type}' twice"));
            }
        }
        Ok(Self { environment, table: BTreeMap::new() })
    }

    /// The same routes of the environment with those of the table, as pairs of type and topic.
    #[must_use]
    pub fn with_table(&self, table: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { environment: self.environment.clone(), table: table.into_iter().collect() }
    }

    /// The aggregate types that have a route of their own.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        let types = self.environment.keys().chain(self.table.keys()).map(String::as_str);
        types.filter(|aggregate_type| *aggregate_type != WILDCARD)
    }

    /// The topic for an aggregate type.
    ///
    /// # Errors
    /// When the name that comes out is none that Kafka allows.
    pub fn resolve(&self, aggregate_type: &str) -> Result<String, IllegalTopic> {
        let sources = [&self.environment, &self.table];
        let own = sources.iter().find_map(|routes| routes.get(aggregate_type).cloned());
        let topic = own
            .or_else(|| {
                let pattern = sources.iter().find_map(|routes| routes.get(WILDCARD))?;
                Some(pattern.replace(WILDCARD, aggregate_type))
            })
            .unwrap_or_else(|| format!("{aggregate_type}s"));
        // Asked here, since for an illegal name the producer takes the record first and refuses it later, when its elders and its
        // youngers are under way.
        if is_legal_topic(&topic) { Ok(topic) } else { Err(IllegalTopic { topic }) }
    }
}

/// Whether Kafka allows a topic of that name (`org.apache.kafka.common.internals.Topic`).
fn is_legal_topic(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= TOPIC_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Routes::parse(Some(text)).expect_err("refused").to_string()
    }

    fn table(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(aggregate_type, topic)| ((*aggregate_type).to_owned(), (*topic).to_owned())).collect()
    }

    #[test]
    fn a_type_without_a_route_goes_to_its_name_and_an_s() {
        assert_eq!(Routes::parse(None).unwrap().resolve("order"), Ok("orders".to_owned()));
    }

    #[test]
    fn the_environment_wins_over_the_table_and_a_route_of_its_own_over_that_of_all_others() {
        let routes = Routes::parse(Some("order=shop.orders, *=env.*")).unwrap();
        let routes = routes.with_table(table(&[("order", "t.order"), ("payment", "billing"), ("*", "t.*")]));
        for (aggregate_type, topic) in [("order", "shop.orders"), ("payment", "billing"), ("parcel", "env.parcel")] {
            assert_eq!(routes.resolve(aggregate_type), Ok(topic.to_owned()));
        }
        let routes = Routes::default().with_table(table(&[("*", "outbox.event.*")]));
        assert_eq!(routes.resolve("Order"), Ok("outbox.event.Order".to_owned()));
        assert_eq!(routes.with_table([]).resolve("Order"), Ok("Orders".to_owned()));
    }

    #[test]
    fn a_name_that_kafka_does_not_allow_is_refused_unless_a_route_makes_it_legal() {
        let routes = Routes::default();
        let error = routes.resolve("no topic/name").unwrap_err();
        assert_eq!(error.topic, "no topic/names");
        assert!(error.to_string().contains("give the type a route"), "{error}");
        let routes = routes.with_table(table(&[("no topic/name", "odd")]));
        assert_eq!(routes.resolve("no topic/name"), Ok("odd".to_owned()));
        // The route of all others is as good as the type that it is filled with.
        assert!(Routes::parse(Some("*=a.*")).unwrap().resolve("b/c").is_err());
    }

    #[test]
    fn topic_names_are_checked_by_kafkas_rules() {
        assert!(["orders", "a.b_c-1", &"x".repeat(249)].into_iter().all(is_legal_topic));
        assert!(!["", ".", "..", "no topic", "a/b", "é", "*", &"x".repeat(250)].into_iter().any(is_legal_topic));
    }

    #[test]
    fn bad_forms_name_the_variable() {
        assert_eq!(
            refused("orders"),
            "RELAY_ROUTES: 'orders' is not of the form type=topic, as in order=shop.orders,payment=billing"
        );
        for (text, problem) in [
            ("=topic", "names no aggregate type"),
            ("order=a b", "'a b' is no topic name"),
            ("order=", "'' is no topic name"),
            ("order=a,", "'' is not of the form"),
            ("order=a,order=b", "names 'order' twice"),
            ("*=everything", "must have one '*'"),
            ("*=*.*", "must have one '*'"),
            ("*=a/*", "'a/*' is no topic name"),
            ("order=a*", "'a*' is no topic name"),
        ] {
            let error = refused(text);
            assert!(error.starts_with("RELAY_ROUTES: ") && error.contains(problem), "{text}: {error}");
        }
    }
}
