//! Who may append events of which aggregate type.

use shared::db::MIGRATOR;
use shared::testing::unique;
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use crate::support::{Fixture, refused};

/// A login of a producer, and a connection of it.
struct Login {
    name: String,
    connection: PgConnection,
}

impl Login {
    /// A login with nothing but `outrider_writer`.
    async fn writer(fixture: &Fixture) -> Self {
        let name = unique("producer");
        let run = async |sql: String| {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&fixture.database.pool).await.expect("the superuser may");
        };
        run(format!("CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret' IN ROLE outrider_writer")).await;
        let options = fixture.database.pool.connect_options();
        let options = (*options).clone().username(&name).password("secret");
        Self { connection: options.connect().await.expect("the login may connect"), name }
    }

    async fn append(&mut self, aggregate_type: &str) -> Result<i64, Box<PgDatabaseError>> {
        let appended = sqlx::query_scalar("SELECT aggregate_version FROM outbox_append($1, 'k', 't', '1')")
            .bind(aggregate_type)
            .fetch_one(&mut self.connection)
            .await;
        appended.map_err(|error| error.into_database_error().expect("the server refuses it").downcast())
    }

    /// Appends an event of the type, or else must be told how to come by the right.
    async fn must_not_append(&mut self, aggregate_type: &str) {
        let error = self.append(aggregate_type).await.expect_err("it was not granted the type");
        let name = &self.name;
        assert_eq!(error.code(), "42501", "{error}");
        assert_eq!(
            error.message(),
            format!("outbox_append: role {name} may not append events of type {aggregate_type}")
        );
        let command = format!("Let an operator run: outrider producers grant \"{name}\" \"{aggregate_type}\"");
        assert_eq!(error.hint(), Some(command.as_str()));
    }

    async fn leave(self, fixture: &Fixture) {
        self.connection.close().await.expect("the connection closes");
        run(&fixture.database.pool, format!("DROP ROLE \"{}\"", self.name)).await;
    }
}

async fn run(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("the owner may");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_appends_the_types_that_it_was_granted_and_no_others() {
    let fixture = Fixture::new("a_producer_appends_the_types").await;
    let pool = &fixture.database.pool;
    let (mine, other) = (unique("mine"), unique("other"));
    let (mut first, mut second) = (Login::writer(&fixture).await, Login::writer(&fixture).await);
    first.must_not_append(&mine).await;
    fixture.grant(&first.name, &mine).await;
    assert_eq!(first.append(&mine).await.unwrap(), 1);
    first.must_not_append(&other).await;
    second.must_not_append(&mine).await;

    // By way of Debezium's view it is the same.
    let insert = |aggregate_type: &str| {
        format!(
            "INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ('{aggregate_type}', 'k', 't', '1')"
        )
    };
    assert_eq!(refused(&mut first.connection, &insert(&other)).await.0, "42501");
    sqlx::query(AssertSqlSafe(insert(&mine))).execute(&mut first.connection).await.unwrap();

    // Who is granted the same type shares its aggregates, by itself or as a member of a group.
    let group = unique("group");
    run(pool, format!("CREATE ROLE \"{group}\"; GRANT \"{group}\" TO \"{}\"", second.name)).await;
    fixture.grant(&group, &mine).await;
    assert_eq!(second.append(&mine).await.unwrap(), 3);

    // A membership that counts only after SET ROLE counts only then, and a role that was taken counts alone.
    run(pool, format!("ALTER ROLE \"{}\" NOINHERIT; GRANT outrider_writer TO \"{group}\"", second.name)).await;
    run(
        pool,
        format!("REVOKE outrider_writer FROM \"{0}\"; GRANT EXECUTE ON FUNCTION outbox_append TO \"{0}\"", second.name),
    )
    .await;
    second.must_not_append(&mine).await;
    run(&fixture.database.pool, format!("GRANT \"{group}\" TO \"{}\"", first.name)).await;
    for login in [&mut first, &mut second] {
        sqlx::query(AssertSqlSafe(format!("SET ROLE \"{group}\""))).execute(&mut login.connection).await.unwrap();
    }
    assert_eq!((second.append(&mine).await.unwrap(), first.append(&mine).await.unwrap()), (4, 5));
    run(pool, format!("DELETE FROM outbox_producers WHERE role_name = '{group}'")).await;
    let (state, message) =
        refused(&mut first.connection, &format!("SELECT outbox_append('{mine}', 'k', 't', '1')")).await;
    assert_eq!(state, "42501");
    assert!(message.contains(&group), "{message}");

    run(pool, format!("DROP OWNED BY \"{0}\", \"{1}\"; DROP ROLE \"{0}\"", group, second.name)).await;
    first.leave(&fixture).await;
    second.leave(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_of_the_role_that_had_the_name_then() {
    let fixture = Fixture::new("a_grant_is_of_the_role").await;
    let pool = &fixture.database.pool;
    let mine = unique("mine");
    let mut login = Login::writer(&fixture).await;
    fixture.grant(&login.name, &mine).await;
    let name = login.name.clone();
    login.append(&mine).await.unwrap();
    login.leave(&fixture).await;

    // Another role of that name, in the same cluster.
    let mut again = Login::writer(&fixture).await;
    run(pool, format!("ALTER ROLE \"{}\" RENAME TO \"{name}\"; ALTER ROLE \"{name}\" PASSWORD 'secret'", again.name))
        .await;
    name.clone_into(&mut again.name);
    again.must_not_append(&mine).await;
    // After a dump and restore, oids are others, and names alone count.
    run(pool, "UPDATE outbox_producers SET system_identifier = 1".to_owned()).await;
    assert_eq!(again.append(&mine).await.unwrap(), 2);
    run(pool, "UPDATE outbox_producers SET role_name = 'no such role'".to_owned()).await;
    again.must_not_append(&mine).await;
    again.leave(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_appends_events_of_orders() {
    let fixture = Fixture::new("no_role_appends_events_of_orders").await;
    let mut owner = fixture.database.pool.acquire().await.unwrap();
    // The owner and superusers may append any other type.
    sqlx::query("SELECT outbox_append('thing', 'k', 't', '1')").execute(&mut *owner).await.unwrap();
    for sql in [
        "SELECT outbox_append('order', '1', 'order.deleted', '{}')",
        "INSERT INTO outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ('order', '1', 't', '1')",
    ] {
        let (state, message) = refused(&mut owner, sql).await;
        assert_eq!(state, "42501", "{message}");
        assert!(message.contains("reserved for the api and the processor"), "{message}");
    }
    let granting = "INSERT INTO outbox_producers VALUES ('outrider_writer', 'order', 0, 0, now(), 'test')";
    assert_eq!(refused(&mut owner, granting).await.0, "23514");
}

/// All the ways that a login with nothing but `outrider_writer` might try.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_cannot_reach_orders_by_any_way() {
    let fixture = Fixture::new("a_writer_cannot_reach_orders").await;
    let mut login = Login::writer(&fixture).await;
    fixture.grant(&login.name, "thing").await;
    // Objects of its own, of the names that the functions use, before and after the real ones.
    let temporary = "CREATE TEMP TABLE outbox_producers (role_name name, aggregate_type text, role_oid oid, system_identifier bigint);
        INSERT INTO outbox_producers SELECT rolname, t, oid, 1 FROM pg_roles, unnest(ARRAY['order', 'other']) t WHERE rolname = session_user;
        CREATE TEMP TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY, event_id uuid, aggregate_type text, aggregate_id text,
            aggregate_version bigint, type text, payload json, headers jsonb);
        CREATE TEMP TABLE outbox_versions (aggregate_type text, aggregate_id text, version bigint,
            CONSTRAINT outbox_versions_pkey PRIMARY KEY (aggregate_type, aggregate_id));
        CREATE FUNCTION pg_temp.outbox_is_producer(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE FUNCTION pg_temp.outbox_refuse_producer(text) RETURNS void LANGUAGE sql AS 'SELECT';
        SET search_path = pg_temp, public";
    let connection = &mut login.connection;
    sqlx::raw_sql(temporary).execute(&mut *connection).await.unwrap();
    for sql in [
        "SELECT public.outbox_append('order', '1', 'order.deleted', '{}')",
        "SELECT public.outbox_append('other', '1', 't', '{}')",
        "INSERT INTO public.outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ('order', '1', 't', '1')",
        "INSERT INTO public.outbox_debezium (aggregatetype, aggregateid, type, payload) VALUES ('thing', '1', 't', '1');
            UPDATE public.outbox_debezium SET aggregatetype = 'order'",
        "INSERT INTO public.outbox (aggregate_type, aggregate_id, aggregate_version, type, payload) VALUES ('order', '1', 1, 't', '1')",
        "INSERT INTO public.outbox_p1 (id, event_id, aggregate_type, aggregate_id, aggregate_version, type, payload)
            VALUES (1, gen_random_uuid(), 'order', '1', 1, 't', '1')",
        "UPDATE public.outbox SET aggregate_type = 'order'",
        "INSERT INTO public.outbox_versions VALUES ('order', '1', 9223372036854775807)",
        "INSERT INTO public.outbox_producers SELECT rolname, 'other', oid, 0, now(), 'me' FROM pg_roles WHERE rolname = session_user",
        "UPDATE public.outbox_producers SET aggregate_type = 'other'",
        "SELECT nextval('public.outbox_id_seq')",
        "SELECT setval('public.outbox_id_seq', 1)",
        "SELECT public.outbox_is_producer(session_user, 'order')",
        "SELECT public.outbox_refuse_producer('order')",
        "SELECT public.outbox_make_partitions(3)",
        "SELECT public.outbox_drop_partitions('0')",
        "SELECT public.relay_reanchor_step(1)",
        "CALL public.relay_reanchor()",
        "SELECT * FROM public.orders",
        "DELETE FROM public.orders",
        "SET ROLE outrider_api",
        "SELECT set_config('role', 'outrider_api', false)",
        "SET SESSION AUTHORIZATION outrider_api",
        "CREATE FUNCTION public.outbox_is_producer(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "ALTER FUNCTION public.outbox_append SECURITY INVOKER",
        "CREATE OR REPLACE VIEW public.outbox_debezium AS SELECT 1",
        "CREATE TRIGGER mine BEFORE INSERT ON public.outbox EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    ] {
        let (state, message) = refused(connection, sql).await;
        assert!(["42501", "0A000"].contains(&state.as_str()), "{sql}: {state} {message}");
    }
    for table in ["outbox", "outbox_versions"] {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let reached: i64 = sqlx::query_scalar(sql).fetch_one(&fixture.database.pool).await.unwrap();
        assert_eq!(reached, 0, "{table}");
    }
    sqlx::raw_sql("DISCARD TEMP").execute(connection).await.unwrap();
    login.leave(&fixture).await;
}

/// A login whose first rights came from the release before.
#[tokio::test(flavor = "multi_thread")]
async fn types_that_were_written_before_grants_were_needed_stay_granted() {
    let fixture = Fixture::new("types_that_were_written_before").await;
    let name = unique("before");
    run(&fixture.database.pool, format!("CREATE DATABASE \"{name}\"")).await;
    let options = (*fixture.database.pool.connect_options()).clone().database(&name);
    let mut owner = options.connect().await.unwrap();
    // The migrations grant rights on sqlx's own table.
    sqlx::raw_sql("CREATE TABLE _sqlx_migrations (version bigint, success boolean)").execute(&mut owner).await.unwrap();
    for migration in MIGRATOR.iter() {
        if migration.version == 20_261_129_000_021 {
            let written =
                "SELECT outbox_append(t, 'k', 't', '1') FROM unnest(ARRAY['thing', 'thing', 'other', 'order']) t";
            sqlx::query(written).execute(&mut owner).await.unwrap();
        }
        let mut transaction = owner.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(migration.sql.as_str().to_owned())).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let granted: Vec<(String, String)> =
        sqlx::query_as("SELECT role_name::text, aggregate_type FROM outbox_producers ORDER BY 2")
            .fetch_all(&mut owner)
            .await
            .unwrap();
    let expected = ["other", "thing"].map(|aggregate_type| ("outrider_writer".to_owned(), aggregate_type.to_owned()));
    assert_eq!(granted, expected);
    sqlx::query("SET ROLE outrider_writer").execute(&mut owner).await.unwrap();
    sqlx::query("SELECT outbox_append('thing', 'k', 't', '1')").execute(&mut owner).await.unwrap();
    assert_eq!(refused(&mut owner, "SELECT outbox_append('new', 'k', 't', '1')").await.0, "42501");
    owner.close().await.unwrap();
    run(&fixture.database.pool, format!("DROP DATABASE \"{name}\"")).await;
}
