//! Which partitions of the outbox are dropped, which are made ahead, and what that costs its writers.

mod ahead;
mod dropping;
mod keeping;
mod stage;
mod writers;
