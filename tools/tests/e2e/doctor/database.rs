//! What is planted in a database, found, and mended by the words that the command says.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use shared::testing::{eventually, kafka_brokers};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tools::stack::postgres::connect;

use super::{Finding, all_fine, doctor, examined, has};
use crate::private_postgres::PrivatePostgres;

/// A durable server of the test's own, with a database that has the schema.
struct Patient {
    url: String,
    connection: PgConnection,
    _server: PrivatePostgres,
}

impl Patient {
    async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let server = PrivatePostgres::durable(settings).await?;
        Ok(Self { url: server.url(), connection: server.connect().await?, _server: server })
    }

    async fn run(&mut self, statement: &str) -> Result<()> {
        let done = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))).await;
        done.map(drop).with_context(|| statement.to_owned())
    }

    /// What is found, but that no relay runs yet.
    fn examine(&self) -> Result<Vec<Finding>> {
        unexpected(doctor(&self.url, &kafka_brokers()))
    }

    /// Runs what a finding says is to be run.
    async fn mend(&mut self, found: &Finding) -> Result<()> {
        let words = found.advice.as_ref().unwrap_or(&found.found).clone();
        let mut ran = 0;
        for statement in words.split('`').skip(1).step_by(2) {
            self.run(&statement.replace("CONCURRENTLY ", "")).await?;
            ran += 1;
        }
        ensure!(ran > 0, "no statement: {found:?}");
        Ok(())
    }
}

/// What a run finds, but that no relay runs yet.
fn unexpected(mut command: Command) -> Result<Vec<Finding>> {
    let findings = examined(command.env("RELAY_HOLDER_AGE", "1s").env("PROCESSOR_GROUP", "doctored"))?;
    let is_expected = |found: &Finding| found.check == "relay.lanes" && found.verdict == "warning";
    Ok(findings.into_iter().filter(|found| !is_expected(found)).collect())
}

/// What to do to a database, which check finds it, how bad that is, and what it says.
type Plant = (&'static str, &'static str, &'static str, &'static str);

/// Each is mended by the statement that the finding names.
const MENDED_BY_ADVICE: &[Plant] = &[
    (
        "ALTER DATABASE shop SET default_transaction_isolation TO 'serializable'",
        "database.settings",
        "warning",
        "40001",
    ),
    (
        "ALTER DATABASE shop SET synchronous_commit TO 'off'",
        "database.settings",
        "warning",
        "synchronous_commit is off",
    ),
    ("ALTER DATABASE shop SET session_replication_role TO 'replica'", "database.settings", "wrong", "no trigger runs"),
    ("ALTER DATABASE shop SET statement_timeout TO '2s'", "database.settings", "warning", "statement_timeout is 2s"),
    ("ALTER ROLE clerk SET default_transaction_read_only TO on", "database.settings", "wrong", "ROLE clerk"),
    (
        "ALTER ROLE clerk IN DATABASE shop SET lock_timeout TO '10ms'",
        "database.settings",
        "warning",
        "lock_timeout is 10ms",
    ),
    ("ALTER DATABASE shop SET idle_session_timeout TO '30s'", "database.settings", "warning", "idle_session_timeout"),
    ("ALTER ROLE clerk CONNECTION LIMIT 2", "database.connections", "warning", "ROLE clerk has CONNECTION LIMIT 2"),
    (
        "ALTER DATABASE shop CONNECTION LIMIT 5",
        "database.connections",
        "warning",
        "DATABASE shop has CONNECTION LIMIT 5",
    ),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", "database.public", "warning", "every login may create"),
    ("REVOKE INSERT ON orders FROM outrider_api", "database.grants", "wrong", "outrider_api lacks 1"),
    (
        "REVOKE EXECUTE ON FUNCTION outbox_make_partitions FROM outrider_relay",
        "database.grants",
        "wrong",
        "outrider_relay lacks 1",
    ),
    (
        "REVOKE UPDATE (reason, applied) ON dead_letter_requests FROM outrider_processor",
        "database.grants",
        "wrong",
        "outrider_processor lacks 2",
    ),
    ("REVOKE SELECT ON relay_parked FROM outrider_operator", "database.grants", "wrong", "outrider_operator lacks 1"),
    ("GRANT UPDATE ON orders TO PUBLIC", "database.grants", "warning", "every role may update orders"),
    ("GRANT INSERT ON outbox TO outrider_writer", "database.grants", "warning", "outrider_writer may insert outbox"),
    (
        "GRANT EXECUTE ON FUNCTION outbox_drop_partitions TO PUBLIC",
        "database.grants",
        "warning",
        "every role may execute",
    ),
    (
        "ALTER TABLE api_keys DISABLE TRIGGER api_keys_logged",
        "database.objects",
        "wrong",
        "api_keys_logged of api_keys",
    ),
    ("ALTER TABLE inbox_groups SET UNLOGGED", "database.objects", "wrong", "inbox_groups is not there, or not logged"),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_user_idx'::regclass",
        "database.objects",
        "wrong",
        "orders_user_idx",
    ),
    (
        "UPDATE pg_constraint SET convalidated = false WHERE conname = 'orders_quantity_check'",
        "database.objects",
        "wrong",
        "orders_quantity_check",
    ),
    ("ALTER SEQUENCE outbox_id_seq CACHE 50", "outbox.sequence", "wrong", "CACHE 50"),
    ("DELETE FROM relay_lanes WHERE lane = 3", "relay.lanes", "wrong", "15 rows and not 16"),
    ("SELECT pg_create_physical_replication_slot('forgotten', true)", "database.slots", "warning", "slot forgotten"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_to_a_database_is_found_and_the_advice_mends_it() -> Result<()> {
    let mut patient = Patient::start(&[("max_prepared_transactions", "10")]).await?;
    all_fine(&patient.examine()?)?;
    // An operator sees as much.
    let mut command = doctor(&patient.url, &kafka_brokers());
    command.env("DB_ROLE", "outrider_operator");
    all_fine(&unexpected(command)?)?;
    patient.run("CREATE ROLE clerk LOGIN; GRANT outrider_relay TO clerk").await?;
    all_fine(&patient.examine()?)?;
    for (statement, ..) in MENDED_BY_ADVICE {
        patient.run(statement).await?;
    }
    let mut findings = patient.examine()?;
    for (_, check, verdict, words) in MENDED_BY_ADVICE {
        has(&findings, check, verdict, words)?;
    }
    // A session whose triggers do not run mends nothing by them.
    patient.connection = connect(&patient.url).await?;
    for found in findings.drain(..).filter(|found| !found.is_fine()) {
        patient.mend(&found).await.with_context(|| format!("{found:?}"))?;
    }
    all_fine(&patient.examine()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_in_a_database_is_found() -> Result<()> {
    let mut patient = Patient::start(&[("max_prepared_transactions", "10")]).await?;
    patient
        .run(
            "INSERT INTO relay_waiting (lane, aggregate_type, topic, reason, position) VALUES (0, 'thing', 'things', 'has no leader', 0);
            INSERT INTO blocked_keys (group_id, topic, record_key, partition, state, reason, fingerprint, attempts)
                VALUES ('doctored', 'orders', '\\x01', 0, 'parked', 'it is odd', 'odd', 1);
            INSERT INTO outbox_producers (role_name, aggregate_type, role_oid, system_identifier, granted_by)
                VALUES ('gone', 'parcel', 1, 1, 'alice');
            INSERT INTO relay_parked (id, lane, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
                VALUES (1, 0, gen_random_uuid(), 'thing', 'big', 1, 'thing.made', '{}', '{}', now());
            SELECT setval('outbox_id_seq', 15900000);
            DROP FUNCTION order_timeline;
            DROP INDEX orders_product_idx;
            ALTER TABLE outbox FORCE ROW LEVEL SECURITY;
            ALTER TABLE outbox ENABLE ROW LEVEL SECURITY",
        )
        .await?;
    let mut holder = connect(&patient.url).await?;
    holder.execute("BEGIN; SELECT pg_current_xact_id(); LOCK TABLE relay_routes").await?;
    let mut prepared = connect(&patient.url).await?;
    prepared.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'orphan'").await?;
    let mut waiting = connect(&patient.url).await?;
    waiting.execute("SET application_name TO 'outrider-relay'").await?;
    let waiting =
        tokio::spawn(async move { waiting.execute("BEGIN; LOCK TABLE relay_routes; COMMIT").await.map(drop) });
    let findings = eventually("the waits are old enough", async || {
        let findings = patient.examine().inspect_err(|error| eprintln!("{error:#}")).ok()?;
        let is_seen = |check, words| has(&findings, check, "warning", words).is_ok();
        let lock = has(&findings, "database.locks", "wrong", "waits for a lock");
        let lock = lock.inspect_err(|error| eprintln!("{error:#}")).is_ok();
        (lock && is_seen("database.transactions", "orphan")).then_some(findings)
    })
    .await;
    for (check, verdict, words) in [
        ("database.row_security", "wrong", "row-level security is on for the table outbox"),
        ("database.objects", "wrong", "the function order_timeline(bigint) is not there"),
        ("database.objects", "wrong", "orders_product_idx of orders"),
        ("database.transactions", "warning", "has been open for"),
        ("relay.waiting", "warning", "the topic things takes no records (has no leader)"),
        ("relay.parked", "warning", "1 keys wait because Kafka refuses"),
        ("outbox.routes", "warning", "could not be looked at"),
        ("processor.parked", "warning", "1 keys of the group doctored"),
        ("outbox.producers", "warning", "the grant of parcel to gone has no effect: no such role"),
        ("outbox.partitions", "wrong", "ids are left"),
    ] {
        has(&findings, check, verdict, words)?;
    }
    holder.close().await?;
    waiting.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_was_set_back_and_a_restored_copy_are_found() -> Result<()> {
    let mut patient = Patient::start(&[]).await?;
    patient.run("UPDATE relay_lanes SET position = 900, seen = '5:5:' WHERE lane = 7").await?;
    has(&patient.examine()?, "outbox.sequence", "wrong", "below the highest id 900")?;
    patient
        .run(
            "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
                VALUES (gen_random_uuid(), 'thing', '1', 1, 'thing.made', '{}');
            ALTER TABLE outbox DISABLE TRIGGER ALL; UPDATE outbox SET txid = 1000000; ALTER TABLE outbox ENABLE TRIGGER ALL",
        )
        .await?;
    has(&patient.examine()?, "outbox.cluster", "wrong", "restored from a dump")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_services_from_the_database_is_said_in_their_words() -> Result<()> {
    // Of its four places three are for superusers.
    let settings = [("max_connections", "8"), ("max_wal_senders", "0"), ("autovacuum", "off"), ("fsync", "off")];
    let mut patient = Patient::start(&settings).await?;
    let findings = patient.examine()?;
    has(&findings, "database.connections", "warning", "a service may want 10")?;
    has(&findings, "database.settings", "warning", "autovacuum is off (for the server)")?;
    has(&findings, "database.settings", "wrong", "fsync is off (for the server)")?;

    patient.run("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await?;
    has(&patient.examine()?, "database.schema", "wrong", "run `outrider migrate`")?;

    patient.run("CREATE DATABASE latin ENCODING 'SQL_ASCII' TEMPLATE template0").await?;
    let latin = patient.url.replace("/shop", "/latin");
    has(&examined(&mut doctor(&latin, &kafka_brokers()))?, "database.encoding", "wrong", "SQL_ASCII")?;
    let missing = patient.url.replace("/shop", "/missing");
    has(&examined(&mut doctor(&missing, &kafka_brokers()))?, "database.connection", "wrong", "missing")?;
    let away = "postgres://me@127.0.0.1:9/shop";
    has(&examined(&mut doctor(away, &kafka_brokers()))?, "database.connection", "wrong", "refused")?;
    Ok(())
}
