//! What traces cost the api: none, one request in a hundred, all of them; by turns.

use anyhow::Result;

use super::generator::Load;
use super::stage::Stage;
use super::{CONNECTIONS, Scale, all_accepted};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;

/// Rounds of three apis that run beside each other, of which one at a time is given orders.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let sink = Sink::open().await?;
    let ratio = |ratio| {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", ratio),
        ]
    };
    let mut without = Stage::open(ground, "traceless", scale, &[]).await?;
    let mut few = Stage::open(ground, "tracefew", scale, &ratio("0.01")).await?;
    let mut every = Stage::open(ground, "traceall", scale, &ratio("1")).await?;
    let (mut hundredth, mut all) = (Vec::new(), Vec::new());
    let load = Load::closed(CONNECTIONS, scale.seconds);
    let _ = sink.take_bytes();
    for _ in 0..scale.rounds {
        let base = all_accepted(&without.drive(ground, load).await?)?.rate();
        for (stage, slower) in [(&mut few, &mut hundredth), (&mut every, &mut all)] {
            let rate = all_accepted(&stage.drive(ground, load).await?)?.rate();
            eprintln!("  {} bytes of spans", sink.take_bytes());
            slower.push((1.0 - rate / base) * 100.0);
        }
    }
    for stage in [without, few, every] {
        stage.close_whole().await?;
    }
    Ok(vec![
        Figure::new(
            "orders/s with traces at ratio 0.01, fewer than without",
            median(&hundredth),
            "%",
            Bound::AtMost(2.0),
        ),
        Figure::new("orders/s with traces at ratio 1, fewer than without", median(&all), "%", Bound::AtMost(10.0)),
    ])
}
