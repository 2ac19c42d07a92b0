//! The backlog that was seen in the field: 76 MB against a megabyte a second.

use std::time::Duration;

use anyhow::Result;

use crate::harness::quota::{Limit, a_backlog_under};

#[tokio::test(flavor = "multi_thread")]
async fn a_large_backlog_that_a_quota_slows_down_is_sent_once() -> Result<()> {
    a_backlog_under(Limit::Quota, 23_357, Duration::from_mins(4)).await
}
