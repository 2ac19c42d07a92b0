//! The processor on a real Postgres and a real Kafka: every test has a database, a topic and a group of its own.

mod commits;
mod dead_letters;
mod effects;
mod empty_offsets;
mod failures;
mod fencing;
mod huge_records;
mod inbox;
mod inbox_race;
mod joint;
mod keeper;
mod kills;
mod lookups;
mod loyalty;
mod membership;
mod nobodys_fault;
mod odd_databases;
mod odd_records;
mod order_life;
mod parking;
mod previous_release;
mod proxy;
mod raw_records;
mod recreated;
mod retries;
mod support;
