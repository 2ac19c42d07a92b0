//! What traces cost the api: none, one request in a hundred, all of them; by turns.

use anyhow::Result;

use super::generator::Load;
use super::stage::Stage;
use super::{CONNECTIONS, Scale, all_accepted};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;
use crate::bench::turns::slower;

/// Three apis on one database, of which one at a time is given orders.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let sink = Sink::open().await?;
    let ratio = |ratio| {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", ratio),
        ]
    };
    let mut stage = Stage::open(ground, "tracing", scale, &[]).await?;
    stage.add(ground, scale, &ratio("0.01")).await?;
    stage.add(ground, scale, &ratio("1")).await?;
    let load = Load::closed(CONNECTIONS, scale.seconds);
    let _ = sink.take_bytes();
    let [hundredth, all] = slower(scale.rounds, async |_, way| {
        let rate = all_accepted(&stage.drive_one(ground, way, load).await?)?.rate();
        eprintln!("  {}: {} bytes of spans", ["without", "0.01", "1"][way], sink.take_bytes());
        Ok(rate)
    })
    .await?;
    stage.close_whole().await?;
    Ok(vec![
        Figure::new("orders/s with traces at ratio 0.01, fewer than without", hundredth, "%", Bound::AtMost(2.0)),
        Figure::new("orders/s with traces at ratio 1, fewer than without", all, "%", Bound::AtMost(10.0)),
    ])
}
