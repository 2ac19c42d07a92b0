//! A broker, or the way to it, that takes a megabyte a second. The slow tests do this with four times as much.

use std::time::Duration;

use anyhow::Result;

use crate::harness::quota::{Limit, a_backlog_under};

/// 19 MB: by far more than the broker takes in a record's time limit.
const EVENTS: u64 = 6_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_a_quota_slows_down_is_sent_once() -> Result<()> {
    a_backlog_under(Limit::Quota, EVENTS, Duration::from_mins(1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_a_slow_way_to_the_broker_slows_down_is_sent_once() -> Result<()> {
    a_backlog_under(Limit::Way, EVENTS, Duration::from_mins(1)).await
}
