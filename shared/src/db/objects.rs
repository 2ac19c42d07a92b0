//! Whether what the migrations have made is still there: tables, indexes, triggers, constraints, functions, and what roles may do with them.
//!
//! `schema.txt` beside this file says what a new database has; `outrider prepare` writes it. Whatever else is in the database is others' business,
//! and so is what a newer build has added.

use std::collections::HashSet;

use sqlx::PgConnection;

use crate::findings::Finding;

/// A line for each object, and for each right.
const SCHEMA: &str = include_str!("schema.txt");

const OBJECTS: &str = "database.objects";
const GRANTS: &str = "database.grants";

/// Objects of the schema `public` that do their work: a table that survives a crash, an index that is valid, a trigger that is enabled, a constraint
/// that holds for all rows. Partitions with a number come and go, and are left out.
const FOUND: &str = "
    WITH tables AS (
        SELECT c.oid, c.relname, c.relkind, c.relpersistence FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> '_sqlx_migrations'
            AND (NOT c.relispartition OR c.relname !~ '[0-9]$')
    )
    SELECT concat(CASE relkind WHEN 'v' THEN 'view ' WHEN 'S' THEN 'sequence ' ELSE 'table ' END, relname) AS line
    FROM tables WHERE relkind IN ('r', 'p', 'v', 'S') AND relpersistence = 'p'
    UNION ALL
    SELECT concat('index ', i.relname, ' ', t.relname)
    FROM pg_index x JOIN tables t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indisvalid AND NOT i.relispartition
    UNION ALL
    SELECT concat('trigger ', g.tgname, ' ', t.relname)
    FROM pg_trigger g JOIN tables t ON t.oid = g.tgrelid
    WHERE NOT g.tgisinternal AND g.tgenabled IN ('O', 'A') AND g.tgparentid = 0
    UNION ALL
    SELECT concat('constraint ', k.conname, ' ', t.relname)
    FROM pg_constraint k JOIN tables t ON t.oid = k.conrelid
    WHERE k.contype IN ('c', 'f', 'p', 'u', 'x') AND k.convalidated AND k.conparentid = 0
    UNION ALL
    SELECT concat('function ', p.proname, '(', oidvectortypes(p.proargtypes), ')')
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace";

/// What roles of ours, and everybody, may do with those objects.
const RIGHTS: &str = "
    WITH rights AS (
        SELECT a.grantee, lower(a.privilege_type) AS may, CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind,
            c.relname::text AS name, NULL AS of
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
        UNION ALL
        SELECT a.grantee, lower(a.privilege_type), 'column', t.attname::text, c.relname::text
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid CROSS JOIN aclexplode(t.attacl) a
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
        UNION ALL
        SELECT a.grantee, lower(a.privilege_type), 'function', concat(p.proname, '(', oidvectortypes(p.proargtypes), ')'), NULL
        FROM pg_proc p CROSS JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT m.member, 'member', 'role', g.rolname, NULL FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
        WHERE g.rolname LIKE 'pg\\_%'
    )
    SELECT concat_ws(' ', 'grant', coalesce(g.rolname, 'PUBLIC'), r.may, r.kind, r.name, r.of) AS line
    FROM rights r LEFT JOIN pg_roles g ON g.oid = r.grantee
    WHERE r.grantee = 0 OR g.rolname LIKE 'outrider\\_%'";

/// All lines of a database, in their order: `schema.txt` is that of a new one.
///
/// # Errors
/// What the database says.
pub async fn describe(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let mut lines: Vec<String> = sqlx::query_scalar(FOUND).fetch_all(&mut *connection).await?;
    lines.extend(sqlx::query_scalar::<_, String>(RIGHTS).fetch_all(connection).await?);
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.join("\n") + "\n")
}

/// Names of all tables of ours but partitions.
pub(super) fn tables() -> Vec<&'static str> {
    SCHEMA.lines().filter_map(|line| line.strip_prefix("table ")).collect()
}

/// What is missing of the objects.
pub(super) async fn missing(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let found: HashSet<String> = sqlx::query_scalar(FOUND).fetch_all(connection).await?.into_iter().collect();
    let ours = SCHEMA.lines().filter(|line| !line.starts_with("grant "));
    Ok(ours.filter(|line| !found.contains(*line)).map(missing_object).collect())
}

fn missing_object(line: &str) -> Finding {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, table) = rest.split_once(' ').unwrap_or((rest, ""));
    let (state, advice) = match kind {
        "table" => {
            ("not there, or not logged, so that a crash empties it", format!("run `ALTER TABLE {name} SET LOGGED`"))
        }
        "index" => ("not there or not valid", format!("run `REINDEX INDEX CONCURRENTLY {name}`")),
        "trigger" => ("not there or disabled", format!("run `ALTER TABLE {table} ENABLE TRIGGER {name}`")),
        "constraint" => ("not there or not validated", format!("run `ALTER TABLE {table} VALIDATE CONSTRAINT {name}`")),
        _ => ("not there", "have the database's owner look who dropped it".to_owned()),
    };
    let of = if table.is_empty() || kind == "function" { String::new() } else { format!(" of {table}") };
    let name = if kind == "function" { rest } else { name };
    let found = format!("the {kind} {name}{of} is {state}");
    Finding::wrong(OBJECTS, found, format!("{advice}; if it is gone, the migration that made it says how"))
}

/// A right that a line names.
struct Right<'a> {
    role: &'a str,
    may: &'a str,
    kind: &'a str,
    /// Of a column, its table.
    object: &'a str,
    column: Option<&'a str>,
}

impl<'a> Right<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.strip_prefix("grant ")?.splitn(4, ' ');
        let (role, may, kind, name) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (object, column) = match name.split_once(' ') {
            Some((column, table)) if kind == "column" => (table, Some(column)),
            _ => (name, None),
        };
        Some(Self { role, may, kind, object, column })
    }

    /// The statement that gives it.
    fn grant(&self) -> String {
        let Self { role, object, .. } = self;
        let may = self.may.to_uppercase();
        match (self.kind, self.column) {
            ("role", _) => format!("GRANT {object} TO {role}"),
            ("column", Some(column)) => format!("GRANT {may} ({column}) ON {object} TO {role}"),
            ("table", _) => format!("GRANT {may} ON {object} TO {role}"),
            (kind, _) => format!("GRANT {may} ON {} {object} TO {role}", kind.to_uppercase()),
        }
    }
}

/// Rights that our roles lack: one finding a role.
pub(super) async fn missing_grants(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let rights: Vec<Right<'_>> = SCHEMA.lines().filter_map(Right::parse).collect();
    let missing = not_held(connection, rights, None).await?;
    let mut roles: Vec<&str> = missing.iter().map(|right| right.role).collect();
    roles.dedup();
    let finding = |role: &str| {
        let grants: Vec<String> = missing.iter().filter(|right| right.role == role).map(Right::grant).collect();
        Finding::wrong(
            GRANTS,
            format!("the role {role} lacks {} of the rights that the migrations give it", grants.len()),
            format!("have the owner of the tables run `{}`", grants.join("; ")),
        )
    };
    Ok(roles.into_iter().map(finding).collect())
}

/// Rights of `role` that the connection's own role lacks.
pub(super) async fn missing_to_us(connection: &mut PgConnection, role: &str) -> Result<Option<Finding>, sqlx::Error> {
    let rights: Vec<Right<'_>> = SCHEMA.lines().filter_map(Right::parse).filter(|right| right.role == role).collect();
    let us: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *connection).await?;
    let missing = not_held(connection, rights, Some(&us)).await?;
    Ok((!missing.is_empty()).then(|| {
        let grants: Vec<String> = missing.iter().map(Right::grant).collect();
        let advice = if us == role {
            format!("have the owner of the tables run `{}`", grants.join("; "))
        } else {
            format!(
                "have an administrator run `GRANT {role} TO \"{us}\"`; if that was done, `outrider doctor` shows more"
            )
        };
        Finding::wrong(GRANTS, format!("the role {us} lacks {} of the rights of {role}", grants.len()), advice)
    }))
}

/// Those of `rights` that `holder`, or each right's own role, has not.
async fn not_held<'a>(
    connection: &mut PgConnection,
    rights: Vec<Right<'a>>,
    holder: Option<&str>,
) -> Result<Vec<Right<'a>>, sqlx::Error> {
    let texts = |of: fn(&Right<'_>) -> String| rights.iter().map(of).collect::<Vec<String>>();
    // A right may also come from a wider one, or from another role. What is not there gives no right: NULL.
    let held: Vec<bool> = sqlx::query_scalar(
        "SELECT coalesce(CASE kind
            WHEN 'table' THEN has_table_privilege(g.role, to_regclass(w.object)::oid, w.may)
            WHEN 'sequence' THEN has_sequence_privilege(g.role, to_regclass(w.object)::oid, w.may)
            WHEN 'column' THEN has_column_privilege(g.role, to_regclass(w.object)::oid,
                (SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = to_regclass(w.object) AND a.attname = w.col), w.may)
            WHEN 'function' THEN has_function_privilege(g.role, to_regprocedure(w.object)::oid, w.may)
            ELSE pg_has_role(g.role, (SELECT oid FROM pg_roles WHERE rolname = w.object), 'USAGE')
        END, false)
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS w (role, may, kind, object, col, place)
        LEFT JOIN LATERAL (
            SELECT r.oid AS role FROM pg_roles r WHERE r.rolname = coalesce($6, w.role)
            UNION ALL SELECT 0::oid WHERE w.role = 'PUBLIC'
        ) g ON true
        ORDER BY w.place",
    )
    .bind(texts(|right| right.role.to_owned()))
    .bind(texts(|right| right.may.to_owned()))
    .bind(texts(|right| right.kind.to_owned()))
    .bind(texts(|right| right.object.to_owned()))
    .bind(texts(|right| right.column.unwrap_or_default().to_owned()))
    .bind(holder)
    .fetch_all(connection)
    .await?;
    Ok(rights.into_iter().zip(held).filter(|(_, held)| !held).map(|(right, _)| right).collect())
}

/// Rights that roles of ours, or everybody, have beyond those of the migrations.
pub(super) async fn surplus_grants(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let found: Vec<String> = sqlx::query_scalar(RIGHTS).fetch_all(connection).await?;
    let known: HashSet<&str> = SCHEMA.lines().collect();
    let roles: HashSet<&str> = SCHEMA.lines().filter_map(Right::parse).map(|right| right.role).collect();
    let objects = ["table ", "view ", "sequence ", "function "];
    let ours = |object: &str| objects.iter().any(|kind| known.contains(format!("{kind}{object}").as_str()));
    let surplus = found.iter().filter(|line| !known.contains(line.as_str())).filter_map(|line| Right::parse(line));
    Ok(surplus.filter(|right| roles.contains(right.role) && ours(right.object)).map(|right| beyond(&right)).collect())
}

fn beyond(right: &Right<'_>) -> Finding {
    let Right { role, may, object, .. } = right;
    let grant = right.grant();
    let statement = grant.strip_prefix("GRANT ").and_then(|rest| rest.rsplit_once(" TO "));
    let statement = statement.map_or(grant.clone(), |(what, role)| format!("REVOKE {what} FROM {role}"));
    let who = if *role == "PUBLIC" { "every role".to_owned() } else { format!("the role {role}") };
    Finding::warning(
        GRANTS,
        format!("{who} may {may} {object}, and no service needs that"),
        format!("have the owner run `{statement}`"),
    )
}
