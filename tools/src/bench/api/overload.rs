//! What becomes of orders when three times as many come as can be written.

use anyhow::{Context, Result, ensure};

use super::generator::Load;
use super::stage::Stage;
use super::{CONNECTIONS, Scale, all_accepted, whole};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;

/// Times the capacity.
const OVERLOAD: f64 = 3.0;

/// How often the capacity is measured, if its multiple was no overload.
const ATTEMPTS: u32 = 3;

/// The load is worth its name while it is not less than this of what was asked for.
const OFFERED_MIN: f64 = 2.7;

/// The capacity before and after, and in between an overload, whose connections are more than there may be orders in the queue.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut stage = Stage::open(ground, "overload", scale, &[("API_QUEUE_MAX", scale.queue_max)]).await?;
    let capacity_load = Load::closed(CONNECTIONS, scale.seconds);
    let mut attempt = 1;
    let (before, report) = loop {
        let before = all_accepted(&stage.drive(ground, capacity_load).await?)?.rate();
        let load = Load::open(scale.overload_connections, scale.overload_secs, whole(before * OVERLOAD));
        let report = stage.drive(ground, load).await?;
        // On a machine that was busy with something else, the capacity looks smaller than it is.
        if report.refused > 0 || attempt == ATTEMPTS {
            break (before, report);
        }
        attempt += 1;
    };
    let after = all_accepted(&stage.drive(ground, capacity_load).await?)?.rate();
    let lost = stage.close().await?;

    ensure!(report.refused > 0, "nothing was refused: this was no overload");
    let capacity = f64::midpoint(before, after);
    let offered = report.each_second(report.accepted + report.refused) / before;
    let worst = report.refusal.context("something was refused")?.max;
    let share = report.rate() / capacity * 100.0;
    eprintln!(
        "  {} accepted, {} refused; capacity {before:.0}/s before and {after:.0}/s after",
        report.accepted, report.refused
    );
    Ok(vec![
        Figure::new("overload: what came, against the capacity", offered, "times", Bound::AtLeast(OFFERED_MIN)),
        Figure::new("overload: accepted, against the capacity", share, "%", Bound::AtLeast(90.0)),
        Figure::new("overload: slowest refusal, each a 503", worst, "ms", Bound::AtMost(50.0)),
        Figure::new("overload: accepted and lost", f64::from(u32::try_from(lost)?), "orders", Bound::AtMost(0.0)),
    ])
}
