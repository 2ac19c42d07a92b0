//! What the outbox takes, and what becomes of rows that are in it all the same.

mod arguments;
mod bounds;
mod parked_rows;
mod stage;
mod times;
mod upgrade;
