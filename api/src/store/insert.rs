//! SQL of new orders: all that wait go into one statement, each with its first transition, its event and its idempotency key.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::types::chrono::NaiveDate;
use uuid::Uuid;

use crate::domain::NewOrder;
use crate::idempotency::IdempotencyKey;
use crate::representation::OrderDocument;

/// An order that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The order.
    pub id: i64,
    /// What its event carries.
    pub document: OrderDocument,
    /// Whether it was written before, under the same idempotency key; then `document` is what was answered then.
    pub replayed: bool,
}

impl Written {
    fn now(id: i64, document: String) -> Self {
        Self { id, document: document.into(), replayed: false }
    }
}

/// Orders to write, as columns: one array a column is one statement, however many orders.
#[derive(Debug, Default)]
pub struct NewOrders {
    user_ids: Vec<i64>,
    product_ids: Vec<i64>,
    quantities: Vec<i32>,
    event_ids: Vec<Uuid>,
    headers: Vec<Option<String>>,
    pub(super) keys: Vec<Option<Uuid>>,
    pub(super) fingerprints: Vec<Option<i64>>,
}

impl NewOrders {
    /// Adds one, whose event will be `event_id` with `headers`, a JSON object, if there are any.
    pub fn push(&mut self, order: NewOrder, event_id: Uuid, headers: Option<String>, key: Option<IdempotencyKey>) {
        self.user_ids.push(order.user_id());
        self.product_ids.push(order.product_id());
        self.quantities.push(order.quantity());
        self.event_ids.push(event_id);
        self.headers.push(headers);
        self.keys.push(key.map(|key| key.key));
        self.fingerprints.push(key.map(|key| key.fingerprint));
    }

    /// Forgets all of them and keeps the room.
    pub fn clear(&mut self) {
        self.user_ids.clear();
        self.product_ids.clear();
        self.quantities.clear();
        self.event_ids.clear();
        self.headers.clear();
        self.keys.clear();
        self.fingerprints.clear();
    }

    /// The headers of each one's event.
    pub fn headers(&self) -> impl Iterator<Item = Option<&str>> {
        self.headers.iter().map(Option::as_deref)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.user_ids.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.user_ids.is_empty()
    }

    /// The one at `place`, alone.
    #[must_use]
    pub fn one(&self, place: usize) -> Self {
        Self {
            user_ids: vec![self.user_ids[place]],
            product_ids: vec![self.product_ids[place]],
            quantities: vec![self.quantities[place]],
            event_ids: vec![self.event_ids[place]],
            headers: vec![self.headers[place].clone()],
            keys: vec![self.keys[place]],
            fingerprints: vec![self.fingerprints[place]],
        }
    }

    pub(super) fn have_keys(&self) -> bool {
        self.keys.iter().any(Option::is_some)
    }
}

/// What a statement has written.
pub(super) struct Inserted {
    /// The day on which the keys were asked for.
    pub(super) day: NaiveDate,
    /// For each order what was written; nothing if its key was taken.
    pub(super) written: Vec<Option<Written>>,
}

// Order, transition and event are one statement and so one transaction. The parts of a WITH run in no order that one may rely on but
// where one reads the other; the append rule holds all the same, since nobody else can know an order whose id was drawn a moment ago,
// let alone change it, before this commits. All tables are only appended to: no lock is waited for but those of a migration, and,
// for a key, the transaction that is writing it.
//
// now() is the time of the transaction, the same in every place: created_at = updated_at = occurred_at.
//
// fetch_all, because it reads up to ReadyForQuery: Postgres sends the rows before it commits, so that whoever stops at a row can take
// an order for accepted whose commit then fails.

pub(super) async fn insert_orders(connection: &mut PgConnection, orders: &NewOrders) -> Result<Inserted, sqlx::Error> {
    // What insert_keyed_orders does, without its keys: for those who send none, that would cost time.
    let rows = sqlx::query!(
        r#"-- insert_orders
        WITH new AS MATERIALIZED (
            SELECT place, nextval('orders_id_seq') AS id, user_id, product_id, quantity, event_id, headers
            FROM UNNEST($1::bigint[], $2::bigint[], $3::integer[], $4::uuid[], $5::text[]) WITH ORDINALITY
                AS given (user_id, product_id, quantity, event_id, headers, place)
        ), drawn AS MATERIALIZED (
            SELECT new.*,
                row_to_json(ROW(id, user_id, product_id, quantity, 'Pending', 1, now(), now(), NULL)::order_document) AS document
            FROM new
        ), inserted_orders AS (
            INSERT INTO orders (id, user_id, product_id, quantity, status, version, created_at, updated_at)
            SELECT id, user_id, product_id, quantity, 'Pending', 1, now(), now() FROM drawn
        ), inserted_transitions AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id, occurred_at)
            SELECT id, 1, NULL, 'Pending', event_id, now() FROM drawn
        ), inserted_events AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
            SELECT event_id, 'order', id::text, 1, 'order.created', document, coalesce(headers::jsonb, '{}'), now()
            FROM drawn ORDER BY place
        )
        SELECT id AS "id!", document::text AS "document!" FROM drawn ORDER BY place"#,
        &orders.user_ids,
        &orders.product_ids,
        &orders.quantities,
        &orders.event_ids,
        &orders.headers as &[Option<String>],
    )
    .fetch_all(connection)
    .await?;
    let written = rows.into_iter().map(|row| Some(Written::now(row.id, row.document)));
    Ok(Inserted { day: NaiveDate::default(), written: written.collect() })
}

pub(super) async fn insert_keyed_orders(
    connection: &mut PgConnection,
    orders: &NewOrders,
    retention: Duration,
) -> Result<Inserted, sqlx::Error> {
    // A key that is new to the day is claimed: of all that insert it at the same time, here or in other transactions, one has its row
    // in the unique index, and the others wait until that one has committed and then do nothing. Only claimed rows become orders.
    //
    // Then the key takes its place in the later days of its retention (see the migration). These have no ON CONFLICT: there is a row of a
    // later day and none of this one only if this transaction began before midnight and another one, begun after it, was
    // faster. That fails the statement as a whole (23505), nothing is written, and the next try is of the new day.
    //
    // Both insert in one order, first by day and then by key, the sort being a barrier between them: transactions with the same keys
    // cannot wait for each other in a circle.
    //
    // An id that was drawn for a key that is taken is used by nobody.
    let rows = sqlx::query!(
        r#"-- insert_keyed_orders
        WITH given AS MATERIALIZED (
            SELECT place, nextval('orders_id_seq') AS id, user_id, product_id, quantity, event_id, headers, key, fingerprint
            FROM UNNEST($1::bigint[], $2::bigint[], $3::integer[], $4::uuid[], $5::text[], $6::uuid[], $7::bigint[]) WITH ORDINALITY
                AS given (user_id, product_id, quantity, event_id, headers, key, fingerprint, place)
        ), drawn AS MATERIALIZED (
            SELECT given.*,
                row_to_json(ROW(id, user_id, product_id, quantity, 'Pending', 1, now(), now(), NULL)::order_document) AS document
            FROM given
        ), claimed AS (
            INSERT INTO idempotency_keys (order_id, fingerprint, key, day, document)
            SELECT id, fingerprint, key, idempotency_day(now()), document::text
            FROM drawn WHERE key IS NOT NULL ORDER BY key, place
            ON CONFLICT (key, day) DO NOTHING
            RETURNING order_id, fingerprint, key, day, document
        ), kept AS (
            INSERT INTO idempotency_keys (order_id, fingerprint, key, day, document)
            SELECT c.order_id, c.fingerprint, c.key, c.day + later.days, c.document
            FROM claimed c CROSS JOIN
                generate_series(1, idempotency_day(now() + make_interval(secs => $8)) - idempotency_day(now())) later (days)
            ORDER BY later.days, c.key
        ), settled AS MATERIALIZED (
            SELECT drawn.*, key IS NULL OR id IN (SELECT order_id FROM claimed) AS is_new FROM drawn
        ), inserted_orders AS (
            INSERT INTO orders (id, user_id, product_id, quantity, status, version, created_at, updated_at)
            SELECT id, user_id, product_id, quantity, 'Pending', 1, now(), now() FROM settled WHERE is_new
        ), inserted_transitions AS (
            INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id, occurred_at)
            SELECT id, 1, NULL, 'Pending', event_id, now() FROM settled WHERE is_new
        ), inserted_events AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
            SELECT event_id, 'order', id::text, 1, 'order.created', document, coalesce(headers::jsonb, '{}'), now()
            FROM settled WHERE is_new ORDER BY place
        )
        SELECT id AS "id!", CASE WHEN is_new THEN document::text END AS document, idempotency_day(now()) AS "day!"
        FROM settled ORDER BY place"#,
        &orders.user_ids,
        &orders.product_ids,
        &orders.quantities,
        &orders.event_ids,
        &orders.headers as &[Option<String>],
        &orders.keys as &[Option<Uuid>],
        &orders.fingerprints as &[Option<i64>],
        retention.as_secs_f64(),
    )
    .fetch_all(connection)
    .await?;
    let day = rows.first().map(|row| row.day).unwrap_or_default();
    let written = rows.into_iter().map(|row| row.document.map(|document| Written::now(row.id, document)));
    Ok(Inserted { day, written: written.collect() })
}
