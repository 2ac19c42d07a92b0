//! What an error of Postgres says to people: its message and its hint. Not the line of Postgres' own source that it comes from, which sqlx
//! shows as if it were one of ours; and not its detail, which may hold values.

use std::error::Error;
use std::fmt::Write as _;

use sqlx::postgres::PgDatabaseError;

/// The words of `error`, which may be one of Postgres.
#[must_use]
pub fn words(error: &(dyn Error + 'static)) -> String {
    let found = match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(found)) => found.try_downcast_ref::<PgDatabaseError>(),
        Some(_) => None,
        None => error.downcast_ref::<PgDatabaseError>(),
    };
    let Some(found) = found else { return error.to_string() };
    let mut words = format!("{} (SQLSTATE {})", found.message(), found.code());
    if let Some(hint) = found.hint() {
        let _ = write!(words, "; hint: {hint}");
    }
    words
}

/// The words of `error` and its causes, each once: an error that shows its cause has said it.
#[must_use]
pub fn chain(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let words = words(cause);
        if said.is_empty() {
            said = words;
        } else if !said.contains(&words) {
            let _ = write!(said, ": {words}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_shown_is_not_shown_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("Kafka: {0}")]
        struct Shows(#[from] std::io::Error);
        let error = anyhow::Error::from(Shows(std::io::Error::other("no broker"))).context("cannot publish");
        assert_eq!(chain(&error), "cannot publish: Kafka: no broker");
    }
}
