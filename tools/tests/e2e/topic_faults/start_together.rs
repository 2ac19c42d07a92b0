//! See [`orders_of_a_fresh_start`]. The slow tests do this many times more.

use anyhow::Result;

use crate::harness::start::orders_of_a_fresh_start;

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_services_that_start_all_at_once_are_all_processed() -> Result<()> {
    for _ in 0..2 {
        orders_of_a_fresh_start().await?;
    }
    Ok(())
}
