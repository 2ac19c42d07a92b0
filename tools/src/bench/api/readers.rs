//! What readers cost that wait for events which do not come.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinSet;

use super::generator::Load;
use super::http::Connection;
use super::stage::Stage;
use super::{CONNECTIONS, Scale, all_accepted};
use crate::bench::figure::{Bound, Figure, median};
use crate::bench::ground::Ground;

/// The readers' users: none of the load's orders is of one of these.
const FIRST_USER: usize = 1_000_000;

/// Orders a second with readers and without, by turns, and the memory that they take.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    // A caller that is alone gets three quarters.
    let readers_max = (scale.readers * 2).to_string();
    let mut stage = Stage::open(ground, "readers", scale, &[("API_SSE_READERS_MAX", &readers_max)]).await?;
    let load = Load::closed(CONNECTIONS, scale.seconds);
    let (mut shares, mut growths) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let without = all_accepted(&stage.drive(ground, load).await?)?.rate();
        let before = stage.memory_mb()?;
        let mut readers = Readers::open(stage.address(), scale.readers).await?;
        let with = all_accepted(&stage.drive(ground, load).await?)?.rate();
        let growth = stage.memory_mb()? - before;
        eprintln!("  {growth:.1} MB for {} readers", scale.readers);
        readers.ensure_all()?;
        shares.push((1.0 - with / without) * 100.0);
        growths.push(growth);
    }
    stage.close_whole().await?;
    // What the first round takes, the allocator may keep for the next ones.
    let growth = growths.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Figure::new("memory of 10,000 idle SSE readers", growth, "MB", Bound::AtMost(100.0)),
        Figure::new("how much slower writes are meanwhile", median(&shares), "%", Bound::AtMost(10.0)),
    ])
}

/// Event streams that are open until this is dropped.
struct Readers(JoinSet<()>);

impl Readers {
    async fn open(address: SocketAddr, count: usize) -> Result<Self> {
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let path = format!("/orders/events?user_id={}", FIRST_USER + number);
            let mut connection = Connection::open(address).await?;
            let answer = connection.watch(&path).await.with_context(|| format!("reader {number}: GET {path}"))?;
            match answer {
                (200, true) => tasks.spawn(connection.drain()),
                (status, _) => {
                    bail!("reader {number}: GET {path} was answered {status} and not with a stream of events")
                }
            };
        }
        Ok(Self(tasks))
    }

    /// Fails when one of them has ended meanwhile.
    fn ensure_all(&mut self) -> Result<()> {
        let mut ended = 0;
        while self.0.try_join_next().is_some() {
            ended += 1;
        }
        ensure!(ended == 0, "{ended} readers were cut off, though nothing came for them");
        Ok(())
    }
}
