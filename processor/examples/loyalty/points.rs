//! `order.processed`: the member who ordered gets points, ten for each piece.

use std::collections::HashMap;

use processor::handler::{EventHandler, Failure, FailureKind, Handled, HandlerError};
use processor::record::Event;
use serde::Deserialize;
use sqlx::{PgConnection, PgExecutor};

/// The event that [`Points`] handles.
pub const ORDER_PROCESSED: &str = "order.processed";

/// Makes the handler's table where it is missing. In production this is a migration, and the processor's role is granted what it needs.
///
/// # Errors
/// When the database refuses.
pub async fn create_tables(database: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS loyalty_members (
            user_id bigint PRIMARY KEY,
            points  bigint NOT NULL DEFAULT 0,
            closed  boolean NOT NULL DEFAULT false
        )",
    )
    .execute(database)
    .await?;
    Ok(())
}

/// Gives points for orders: 10 for each piece.
///
/// - A user who is no member may become one: the event is tried again, later and later. Meanwhile only its order waits.
/// - A membership that is closed will not be opened for this: the event is refused for good, and waits for an operator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Points;

/// What is read of an order's document.
#[derive(Deserialize)]
struct Order {
    user_id: i64,
    quantity: i64,
}

impl EventHandler for Points {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let orders = read(events)?;
        let user_ids: Vec<i64> = orders.iter().map(|order| order.user_id).collect();
        // Two statements, however many events there are. The lock comes in the order of the ids, so that two partitions with the same
        // users wait for each other, and do not lock each other out.
        let members: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT user_id, closed FROM loyalty_members WHERE user_id = ANY ($1) ORDER BY user_id FOR UPDATE",
        )
        .bind(&user_ids)
        .fetch_all(&mut *connection)
        .await?;
        let failed = failures(&orders, &members.into_iter().collect());
        if !failed.is_empty() {
            // Nothing is written yet. The others come again at once, without these.
            return Err(HandlerError::events(failed));
        }
        let points: Vec<i64> = orders.iter().map(|order| 10 * order.quantity).collect();
        sqlx::query(
            "UPDATE loyalty_members AS m SET points = m.points + new.points
            FROM (SELECT user_id, sum(points)::bigint AS points FROM UNNEST($1::bigint[], $2::bigint[]) AS o (user_id, points)
                GROUP BY user_id) AS new
            WHERE m.user_id = new.user_id",
        )
        .bind(&user_ids)
        .bind(&points)
        .execute(connection)
        .await?;
        Ok(Handled::default())
    }
}

/// The order of each event. One that cannot be read will not get better: refused for good.
fn read(events: &[Event<'_>]) -> Result<Vec<Order>, HandlerError> {
    let mut refused = Vec::new();
    let mut orders = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        match event.json() {
            Ok(order) => orders.push(order),
            Err(error) => refused.push((index, error.to_string())),
        }
    }
    if refused.is_empty() { Ok(orders) } else { Err(HandlerError::refused(refused)) }
}

/// The orders without points, by their index, and why.
fn failures(orders: &[Order], closed: &HashMap<i64, bool>) -> Vec<(usize, Failure)> {
    let failure = |(index, order): (usize, &Order)| match closed.get(&order.user_id) {
        Some(false) => None,
        Some(true) => Some((index, Failure::new(FailureKind::Permanent, "the membership is closed"))),
        None => Some((index, Failure::new(FailureKind::Retryable, "the user is no member yet"))),
    };
    orders.iter().enumerate().filter_map(failure).collect()
}
