//! The API on a real Postgres.
