//! Naming transactions that stay open.
