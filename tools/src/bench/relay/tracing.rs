//! What traces cost a drain: none, one key in a hundred, all of them; by turns.

use anyhow::Result;

use super::{Load, Scale, drain_round};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;

/// The name of a drain, and how many keys there are for each whose trace is recorded; none without an exporter.
const DRAINS: [(&str, Option<i64>); 3] = [("traceless", None), ("tracefew", Some(100)), ("traceall", Some(1))];

/// Rounds without spans, with one trace in a hundred recorded, and with all of them, each with a fresh relay and database. Each begins as many
/// rounds as the others: Kafka gets faster for a while.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let sink = Sink::open().await?;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())];
    let (mut hundredth, mut all) = (Vec::new(), Vec::new());
    for round in 0..scale.warm_ups {
        drain_round(ground, &format!("tracewarmup{round}"), scale, Load::default()).await?;
    }
    for round in 0..scale.rounds.next_multiple_of(DRAINS.len()) {
        let mut rates = [0.0; DRAINS.len()];
        for turn in 0..DRAINS.len() {
            let number = (round + turn) % DRAINS.len();
            let (name, sampled_every) = DRAINS[number];
            let load = sampled_every.map_or_else(Load::default, |sampled_every| Load { env: &env, sampled_every });
            rates[number] = drain_round(ground, &format!("{name}{round}"), scale, load).await?;
            eprintln!("  {name}: {} bytes of spans", sink.take_bytes());
        }
        let [without, few, every] = rates;
        hundredth.push((1.0 - few / without) * 100.0);
        all.push((1.0 - every / without) * 100.0);
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
