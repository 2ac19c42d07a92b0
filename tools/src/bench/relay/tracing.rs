//! What traces cost a drain: none, one key in a hundred, all of them; by turns.

use anyhow::Result;

use super::{Load, Scale, drain_round};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;
use crate::bench::turns::{WAYS, slower};

/// The name of a drain, and how many keys there are for each whose trace is recorded; none without an exporter.
const DRAINS: [(&str, Option<i64>); WAYS] = [("traceless", None), ("tracefew", Some(100)), ("traceall", Some(1))];

/// Rounds without spans, with one trace in a hundred recorded, and with all of them, each with a fresh relay and database.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let sink = Sink::open().await?;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())];
    for round in 0..scale.warm_ups {
        drain_round(ground, &format!("tracewarmup{round}"), scale, Load::default()).await?;
    }
    let [hundredth, all] = slower(scale.rounds, async |round, way| {
        let (name, sampled_every) = DRAINS[way];
        let load = sampled_every.map_or_else(Load::default, |sampled_every| Load { env: &env, sampled_every });
        let rate = drain_round(ground, &format!("{name}{round}"), scale, load).await?;
        eprintln!("  {name}: {} bytes of spans", sink.take_bytes());
        Ok(rate)
    })
    .await?;
    Ok(vec![
        Figure::new("drain with traces at ratio 0.01, slower than without", hundredth, "%", Bound::AtMost(2.0)),
        Figure::new("drain with traces at ratio 1, slower than without", all, "%", Bound::AtMost(10.0)),
    ])
}
