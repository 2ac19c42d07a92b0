//! Bodies and queries in the description that have no type of their own in the program: an order's JSON is made by the database, and
//! bodies and queries are read with an eye to what is wrong with them. Tests hold them against real answers.

#![expect(dead_code, reason = "only their descriptions are used")]

use chrono::{DateTime, Utc};
use utoipa::{IntoParams, ToSchema};

use crate::problem::Document;

/// What is ordered. Numbers are written without a fraction or an exponent. Other fields are passed over.
#[derive(ToSchema)]
pub struct NewOrder {
    /// Who orders.
    #[schema(minimum = 1, example = 7)]
    user_id: i64,
    /// What is ordered.
    #[schema(minimum = 1, example = 42)]
    product_id: i64,
    /// How many.
    #[schema(minimum = 1, maximum = 10_000, example = 3)]
    quantity: i32,
}

/// Orders to be accepted or refused, each by itself.
#[derive(ToSchema)]
#[schema(min_items = 1, max_items = 1_000)]
pub struct NewOrderBatch(Vec<NewOrder>);

/// An order as it is.
#[derive(ToSchema)]
#[schema(example = json!({
    "ID": 1, "CreatedAt": "2026-11-24T12:00:00.000001Z", "UpdatedAt": "2026-11-24T12:00:00.054321Z", "DeletedAt": null,
    "user_id": 7, "product_id": 42, "quantity": 3, "status": "Processed", "version": 2, "failure_reason": null,
}))]
pub struct Order {
    /// Its identity.
    #[schema(rename = "ID", minimum = 1)]
    id: i64,
    /// When it was accepted.
    #[schema(rename = "CreatedAt")]
    created_at: DateTime<Utc>,
    /// When it changed last.
    #[schema(rename = "UpdatedAt")]
    updated_at: DateTime<Utc>,
    /// Always null: an order that is deleted is in no answer.
    #[schema(rename = "DeletedAt", required)]
    deleted_at: Option<DateTime<Utc>>,
    /// Who ordered.
    #[schema(minimum = 1)]
    user_id: i64,
    /// What was ordered.
    #[schema(minimum = 1)]
    product_id: i64,
    /// How many.
    #[schema(minimum = 1, maximum = 10_000)]
    quantity: i32,
    /// What has become of it.
    status: String,
    /// How many changes it has seen, the first being its creation. It is the `ETag`.
    #[schema(minimum = 1)]
    version: i64,
    /// Why it is Failed.
    #[schema(required)]
    failure_reason: Option<String>,
}

/// What orders can be asked for by. Pending: accepted, and nothing more yet. Processed: its event was applied. Failed: its event cannot be
/// applied. Cancelled: taken back by whoever ordered.
#[derive(ToSchema)]
#[schema(as = OrderStatus)]
pub enum Status {
    /// Accepted, and nothing more yet.
    Pending,
    /// Its event was applied.
    Processed,
    /// Its event cannot be applied.
    Failed,
    /// Taken back by whoever ordered.
    Cancelled,
}

/// A page of orders.
#[derive(ToSchema)]
pub struct OrderPage {
    /// The newest first.
    orders: Vec<Order>,
    /// The cursor of the next page; null on the last one.
    #[schema(required)]
    next: Option<String>,
}

/// What came of each order of a batch.
#[derive(ToSchema)]
pub struct BatchResults {
    /// In the order of the request.
    results: Vec<BatchResult>,
}

/// What came of one order of a batch: the order or the problem, and never both. A union of two shapes would say so, but what generators of
/// clients make of unions is of little use, or no code that compiles.
#[derive(ToSchema)]
#[schema(description = "What came of one order of a batch: the order or the problem, and never both.")]
pub struct BatchResult {
    /// 201 if it was accepted, or else the status that it would have had by itself.
    #[schema(minimum = 201, maximum = 599)]
    status: u16,
    /// The order, if it was accepted.
    #[schema(nullable = false)]
    order: Option<Order>,
    /// Why it was not accepted.
    #[schema(nullable = false)]
    problem: Option<Document<'static>>,
}

/// Which orders a list is to hold. A parameter of another name is refused.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only this user's.
    #[param(minimum = 1, example = 7)]
    user_id: Option<i64>,
    /// Only of this product.
    #[param(minimum = 1, example = 42)]
    product_id: Option<i64>,
    /// Only those with this status.
    #[param(value_type = Status, required = false, example = "Pending")]
    status: Option<Status>,
    /// Only those created at this time or later.
    #[param(example = "2026-11-24T12:00:00Z")]
    created_from: Option<DateTime<Utc>>,
    /// Only those created before this time.
    #[param(example = "2036-11-24T12:00:00Z")]
    created_before: Option<DateTime<Utc>>,
    /// Where the page begins: taken from the page before.
    #[param(pattern = "^[0-6][0-9a-f]{15}[0-7][0-9a-f]{15}$")]
    cursor: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 200, default = 50, example = 3)]
    limit: Option<i64>,
}

/// Which changes a stream is to bring. A parameter of another name is refused.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Only those of this user's orders.
    #[param(minimum = 1, example = 7)]
    user_id: Option<i64>,
    /// Only changes to this status.
    #[param(value_type = Status, required = false, example = "Processed")]
    status: Option<Status>,
    /// In place of the header `Last-Event-ID`, for clients that cannot set it.
    #[param(rename = "lastEventId")]
    last_event_id: Option<String>,
}

/// What a consumer group did with an event.
#[derive(ToSchema)]
pub struct Consumer {
    /// The group.
    group: String,
    /// `taken in` if it was applied or passed over; else how its key waits.
    state: String,
    /// When it was taken in.
    #[schema(required)]
    taken_in_at: Option<DateTime<Utc>>,
    /// The topic that the record was read from.
    #[schema(required)]
    topic: Option<String>,
    /// The partition.
    #[schema(required)]
    partition: Option<i64>,
    /// The record's offset.
    #[schema(required)]
    offset: Option<i64>,
    /// The record's time.
    #[schema(required)]
    record_time: Option<DateTime<Utc>>,
    /// How often it was tried, if it failed.
    #[schema(required)]
    attempts: Option<i64>,
    /// Why it failed.
    #[schema(required)]
    reason: Option<String>,
    /// When it failed first.
    #[schema(required)]
    first_failed_at: Option<DateTime<Utc>>,
    /// When it failed last.
    #[schema(required)]
    last_failed_at: Option<DateTime<Utc>>,
    /// When it is tried again.
    #[schema(required)]
    next_attempt_at: Option<DateTime<Utc>>,
}
