//! What traces cost the api: none, one request in a hundred, all of them; by turns.

use anyhow::Result;

use super::generator::Load;
use super::stage::Stage;
use super::{CONNECTIONS, Scale, all_accepted};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;
use crate::bench::sink::Sink;

/// Without traces, with one in a hundred, and with all of them.
const APIS: usize = 3;

/// Rounds of three apis on one database, of which one at a time is given orders. Each begins as many rounds as the others: a database is
/// slower the more is in it.
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
    let (mut hundredth, mut all) = (Vec::new(), Vec::new());
    let load = Load::closed(CONNECTIONS, scale.seconds);
    let _ = sink.take_bytes();
    for round in 0..scale.rounds.next_multiple_of(APIS) {
        let mut rates = [0.0; APIS];
        for turn in 0..APIS {
            let number = (round + turn) % APIS;
            rates[number] = all_accepted(&stage.drive_one(ground, number, load).await?)?.rate();
            eprintln!("  {}: {} bytes of spans", ["without", "0.01", "1"][number], sink.take_bytes());
        }
        let [without, few, every] = rates;
        hundredth.push((1.0 - few / without) * 100.0);
        all.push((1.0 - every / without) * 100.0);
    }
    stage.close_whole().await?;
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
