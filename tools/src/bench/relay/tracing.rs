//! What traces cost a drain: none, one key in a hundred, all of them; by turns.

use anyhow::Result;

use super::{Load, Scale, drain_round};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;

/// Rounds without spans, with one trace in a hundred recorded, and with all of them, each with a fresh relay and database.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let sink = Sink::open().await?;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())];
    let (mut hundredth, mut all) = (Vec::new(), Vec::new());
    for round in 0..scale.warm_ups {
        drain_round(ground, &format!("tracewarmup{round}"), scale, Load::default()).await?;
    }
    for round in 0..scale.rounds {
        let without = drain_round(ground, &format!("traceless{round}"), scale, Load::default()).await?;
        for (name, sampled_every, slower) in [("tracefew", 100, &mut hundredth), ("traceall", 1, &mut all)] {
            let load = Load { env: &env, sampled_every };
            let rate = drain_round(ground, &format!("{name}{round}"), scale, load).await?;
            eprintln!("  {} bytes of spans", sink.take_bytes());
            slower.push((1.0 - rate / without) * 100.0);
        }
    }
    Ok(vec![
        Figure::new(
            "drain with traces at ratio 0.01, slower than without",
            median(&hundredth),
            "%",
            Bound::AtMost(2.0),
        ),
        Figure::new("drain with traces at ratio 1, slower than without", median(&all), "%", Bound::AtMost(10.0)),
    ])
}
