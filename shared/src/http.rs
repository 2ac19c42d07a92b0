//! A port that speaks HTTP, for the API and for each service's admin port: whatever its clients do, each costs itself, within a bound.

mod clocks;
mod exchange;
pub mod listener;
mod stream;
