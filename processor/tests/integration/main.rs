//! Real Postgres, real Kafka.
