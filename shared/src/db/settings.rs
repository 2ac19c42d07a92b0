//! Settings of the server, the database and the roles that harm what the code, or other writers, rely on.

use sqlx::PgConnection;

use crate::findings::{Finding, Verdict};

const CHECK: &str = "database.settings";

/// A setting that may harm.
struct Rule {
    name: &'static str,
    harms: fn(&str) -> bool,
    verdict: Verdict,
    /// What it leads to.
    harm: &'static str,
    /// What it should be.
    good: &'static str,
}

const RULES: [Rule; 12] = [
    Rule {
        name: "fsync",
        harms: is_off,
        verdict: Verdict::Wrong,
        harm: "a crash of the machine can lose orders that were accepted, and damage the database",
        good: "on",
    },
    Rule {
        name: "full_page_writes",
        harms: is_off,
        verdict: Verdict::Wrong,
        harm: "a crash of the machine can damage the database",
        good: "on",
    },
    Rule {
        name: "synchronous_commit",
        harms: is_off,
        verdict: Verdict::Warning,
        harm: "our services turn it on for themselves, but a crash can lose what other writers were told is committed",
        good: "on",
    },
    Rule {
        name: "default_transaction_read_only",
        harms: |value| !is_off(value),
        verdict: Verdict::Wrong,
        harm: "no order is taken, and no event published or applied",
        good: "off",
    },
    Rule {
        name: "session_replication_role",
        harms: |value| value != "origin",
        verdict: Verdict::Wrong,
        harm: "no trigger runs: versions leap, and changes of API keys leave no entry in the log",
        good: "origin",
    },
    Rule {
        name: "default_transaction_isolation",
        harms: |value| value != "read committed" && value != "read uncommitted",
        verdict: Verdict::Warning,
        harm: "our services set their own, but outbox_append() of other writers can fail with 40001 and must then be tried again",
        good: "read committed",
    },
    Rule {
        name: "statement_timeout",
        harms: |value| is_shorter(value, 10_000),
        verdict: Verdict::Warning,
        harm: "the relay and the processor may be stopped in the middle of a large batch, again and again",
        good: "0",
    },
    Rule {
        name: "transaction_timeout",
        harms: |value| is_shorter(value, 60_000),
        verdict: Verdict::Warning,
        harm: "the processor may be stopped in the middle of a large batch, again and again",
        good: "0",
    },
    Rule {
        name: "lock_timeout",
        harms: |value| is_shorter(value, 1_000),
        verdict: Verdict::Warning,
        harm: "an order that waits a moment for its row is refused",
        good: "0",
    },
    Rule {
        name: "idle_session_timeout",
        harms: |value| is_shorter(value, 60_000),
        verdict: Verdict::Warning,
        harm: "connections end while they rest, and every burst begins with new ones",
        good: "0",
    },
    Rule {
        name: "autovacuum",
        harms: is_off,
        verdict: Verdict::Warning,
        harm: "the cursors of the relays and the positions of the processors become slow to write within hours",
        good: "on",
    },
    Rule {
        name: "track_counts",
        harms: is_off,
        verdict: Verdict::Warning,
        harm: "autovacuum does not run: the cursors of the relays become slow to write within hours",
        good: "on",
    },
];

fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0" | "f" | "n")
}

/// Whether a length of time, as Postgres writes it, is a limit, and one below `millis`.
fn is_shorter(value: &str, millis: u64) -> bool {
    let digits = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let Ok(number) = number.parse::<u64>() else { return false };
    let millis_each = match unit.trim() {
        "us" => return number > 0 && number / 1_000 < millis,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 1,
    };
    let given = number.saturating_mul(millis_each);
    given > 0 && given < millis
}

/// A value of a setting, and who has set it.
#[derive(sqlx::FromRow)]
struct Set {
    name: String,
    value: String,
    /// For the statement that sets another: `SYSTEM`, `DATABASE name`, `ROLE name`, or both of these.
    place: String,
}

/// Settings that harm: those that hold for this login, and those of logins that act for a role of ours.
pub(super) async fn check(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
    // What a connection has set itself is not what it was given, which is `reset_val`.
    let set: Vec<Set> = sqlx::query_as(
        "WITH stored AS (
            SELECT split_part(s.setting, '=', 1) AS name, substr(s.setting, strpos(s.setting, '=') + 1) AS value, d.setdatabase, d.setrole
            FROM pg_db_role_setting d CROSS JOIN unnest(d.setconfig) AS s (setting)
            WHERE d.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        )
        SELECT name, value, concat_ws(' IN ',
                CASE WHEN setrole <> 0 THEN 'ROLE ' || quote_ident(pg_get_userbyid(setrole))
                    WHEN setdatabase = 0 THEN 'ROLE ALL' END,
                CASE WHEN setdatabase <> 0 THEN 'DATABASE ' || quote_ident(current_database()) END) AS place
        FROM stored
        WHERE name = ANY ($1) AND (setrole = 0 OR setrole = session_user::regrole OR EXISTS (
            SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
            WHERE m.member = setrole AND r.rolname LIKE 'outrider\\_%'))
        UNION ALL
        SELECT g.name, g.reset_val, 'SYSTEM'
        FROM pg_settings g
        WHERE g.name = ANY ($1) AND NOT EXISTS (
            SELECT FROM stored s WHERE s.name = g.name AND s.setrole IN (0, session_user::regrole))
        ORDER BY 1, 3",
    )
    .bind(&names)
    .fetch_all(connection)
    .await?;
    let bad = set.iter().filter_map(|set| Some((set, RULES.iter().find(|rule| rule.name == set.name)?)));
    Ok(bad.filter(|(set, rule)| (rule.harms)(&set.value)).map(|(set, rule)| finding(set, rule)).collect())
}

fn finding(Set { name, value, place }: &Set, rule: &Rule) -> Finding {
    let good = rule.good;
    let advice = if place == "SYSTEM" {
        format!("run `ALTER SYSTEM SET {name} TO '{good}'` and `SELECT pg_reload_conf()`")
    } else {
        format!("run `ALTER {place} SET {name} TO '{good}'`, which new connections get")
    };
    let place = if place == "SYSTEM" { "for the server" } else { place };
    let found = format!("{name} is {value} ({place}): {}", rule.harm);
    Finding { check: CHECK, verdict: rule.verdict, found, advice: Some(advice) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_time_are_read_as_postgres_writes_them() {
        for (value, is_short) in [
            ("5s", true),
            ("9999", true),
            ("10s", false),
            ("1min", false),
            ("0", false),
            ("500us", true),
            ("1d", false),
        ] {
            assert_eq!(is_shorter(value, 10_000), is_short, "{value}");
        }
    }
}
