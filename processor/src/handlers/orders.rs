//! `order.created`: the order goes from Pending to Processed; to Failed, if its event is given up, and from there to Processed, if an
//! operator has it applied after all.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use shared::outbox::{self, NewEvent, NewEvents};
use sqlx::PgConnection;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::handler::{EventHandler, Handled, HandlerError};
use crate::record::Event;
use crate::store::orders::{Changes, Processed, fail, process, versions};

/// The event that [`OrderCreated`] handles.
pub const ORDER_CREATED: &str = "order.created";
/// The event that [`OrderCreated`] appends for each order whose processing is given up.
pub const ORDER_FAILED: &str = "order.failed";

/// Makes a created order Processed: status, version + 1, one transition and one event `order.processed`. An order whose event is given
/// up becomes Failed, with the reason, in the same way; if the event is applied later, the order becomes Processed from there.
///
/// Refused for good: a payload that is no order, one whose id is not the key, an order that is not in the database. An order
/// that is past the event's version has been processed or cancelled otherwise: then the event has no effect.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrderCreated;

/// What is read of an order's document.
#[derive(Deserialize)]
struct Order {
    id: i64,
    version: i64,
}

impl EventHandler for OrderCreated {
    async fn handle(&self, events: &[Event<'_>], connection: &mut PgConnection) -> Result<Handled, HandlerError> {
        let orders = read(events)?;
        // Below the batch's span, since it is one statement for all of them.
        let span = tracing::info_span!(
            "UPDATE orders",
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = "UPDATE",
            db.collection.name = "orders",
            db.operation.batch.size = i64::try_from(orders.len()).unwrap_or(i64::MAX),
        );
        let processed = process(connection, &changes(events, &orders)).instrument(span).await?;
        let missed = missed(&orders, &processed);
        if !missed.is_empty() {
            check_missed(&orders, &missed, connection).await?;
        }
        Ok(Handled { superseded: missed.len() })
    }

    async fn on_parked(
        &self,
        event: &Event<'_>,
        reason: &str,
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        // By the key: it may be the payload that cannot be read.
        let Ok(order_id) = event.aggregate_id().parse::<i64>() else { return Ok(()) };
        let failed = fail(connection, order_id, event.aggregate_version(), (Uuid::now_v7(), reason)).await?;
        // None: it is not there, or has gone on otherwise.
        let Some(failed) = failed else { return Ok(()) };
        let mut new = NewEvents::with_capacity(1);
        new.push(NewEvent {
            event_id: failed.event_id,
            aggregate_id: failed.id.to_string(),
            aggregate_version: failed.version,
            event_type: ORDER_FAILED,
            payload: failed.document,
            trace: event.trace(),
        });
        Ok(outbox::append(connection, "order", &new).await?)
    }
}

/// The order of each event.
fn read(events: &[Event<'_>]) -> Result<Vec<Order>, HandlerError> {
    let mut refused = Vec::new();
    let mut orders = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        match event.json::<Order>() {
            Err(error) => refused.push((index, error.to_string())),
            Ok(order) if order.id.to_string() != event.aggregate_id() => {
                refused.push((index, "the order's id in the payload is not the record's key".to_owned()));
            }
            Ok(order) if order.version != event.aggregate_version() => {
                refused.push((index, "the order's version in the payload is not the event's".to_owned()));
            }
            Ok(order) => orders.push(order),
        }
    }
    if refused.is_empty() { Ok(orders) } else { Err(HandlerError::refused(refused)) }
}

fn changes(events: &[Event<'_>], orders: &[Order]) -> Changes {
    let mut sorted: Vec<(&Order, &Event<'_>)> = orders.iter().zip(events).collect();
    sorted.sort_unstable_by_key(|(order, _)| order.id);
    Changes {
        order_ids: sorted.iter().map(|(order, _)| order.id).collect(),
        versions: sorted.iter().map(|(order, _)| order.version).collect(),
        event_ids: sorted.iter().map(|_| Uuid::now_v7()).collect(),
        headers: sorted.iter().map(|(_, event)| event.trace().to_json()).collect(),
    }
}

/// Places of the orders that did not change through their event.
fn missed(orders: &[Order], processed: &[Processed]) -> Vec<usize> {
    // Of two events for one order and version, the first made the change.
    let mut made: HashSet<(i64, i64)> = processed.iter().map(|order| (order.id, order.event_version)).collect();
    let by_event = |order: &Order| made.remove(&(order.id, order.version));
    let by_event: Vec<bool> = orders.iter().map(by_event).collect();
    (0..orders.len()).filter(|place| !by_event[*place]).collect()
}

/// Refuses the events of orders that are not in the database, or not yet at the event's version: order and event were written
/// in one transaction, so this is another database than the event's.
async fn check_missed(orders: &[Order], missed: &[usize], connection: &mut PgConnection) -> Result<(), HandlerError> {
    let ids: Vec<i64> = missed.iter().map(|place| orders[*place].id).collect();
    let present: HashMap<i64, i64> = versions(connection, &ids).await?.into_iter().collect();
    let refusal = |place: &usize| match present.get(&orders[*place].id) {
        None => Some((*place, "the order is not in the database".to_owned())),
        Some(version) if *version < orders[*place].version => {
            Some((*place, format!("the order in the database is only at version {version}")))
        }
        Some(_) => None,
    };
    let refused: Vec<_> = missed.iter().filter_map(refusal).collect();
    if refused.is_empty() { Ok(()) } else { Err(HandlerError::refused(refused)) }
}
