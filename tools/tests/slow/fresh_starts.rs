//! The three services started together, many times: about one in eighty lost orders once.

use anyhow::Result;

use crate::harness::start::orders_of_a_fresh_start;
use crate::{setting, tell};

/// `FRESH_STARTS` in the environment changes it.
const STARTS: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_many_fresh_starts_are_all_processed() -> Result<()> {
    let starts = setting("FRESH_STARTS", STARTS);
    for start in 1..=starts {
        orders_of_a_fresh_start().await?;
        if start % 10 == 0 || start == starts {
            tell(&format!("{start} of {starts} starts"));
        }
    }
    Ok(())
}
