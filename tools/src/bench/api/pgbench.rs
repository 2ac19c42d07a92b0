//! The rival: `pgbench` writing the same orders straight into Postgres, one a statement.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prerequisites::Program;
use prerequisites::program::postgres_program;

use super::check;
use crate::bench::ground::{Ground, Scene};
use crate::required::need;

/// What the api's statement writes for each order, without the arrays and the trace context that it has for many. The id of the event
/// rises with that of the order, as UUIDs of version 7 do. Users, products and quantities are those of the load generator.
const SCRIPT: &str = r"\set user_id random(1, 1000)
\set product_id random(1, 100)
\set quantity random(1, 10)
WITH new AS MATERIALIZED (
    SELECT nextval('orders_id_seq') AS id, :user_id::bigint AS user_id, :product_id::bigint AS product_id, :quantity::integer AS quantity
), drawn AS MATERIALIZED (
    SELECT new.*, lpad(to_hex(id), 32, '0')::uuid AS event_id,
        row_to_json(ROW(id, user_id, product_id, quantity, 'Pending', 1, now(), now(), NULL)::order_document) AS document
    FROM new
), inserted_orders AS (
    INSERT INTO orders (id, user_id, product_id, quantity, status, version, created_at, updated_at)
    SELECT id, user_id, product_id, quantity, 'Pending', 1, now(), now() FROM drawn
), inserted_transitions AS (
    INSERT INTO order_transitions (order_id, version, from_status, to_status, event_id, occurred_at)
    SELECT id, 1, NULL, 'Pending', event_id, now() FROM drawn
), inserted_events AS (
    INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, payload, headers, occurred_at)
    SELECT event_id, 'order', id::text, 1, 'order.created', document, '{}', now() FROM drawn
)
SELECT id, document::text FROM drawn;
";

/// What the api asks of its connections, and its role.
const OPTIONS: &str = "-c role=outrider_api -c plan_cache_mode=force_generic_plan -c jit=off -c enable_seqscan=off";

/// `pgbench` and a database that only it writes to.
pub struct Pgbench {
    program: PathBuf,
    scene: Scene,
    script: PathBuf,
    runs: u32,
    orders: u64,
}

/// What one run of it found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Orders written a second.
    pub rate: f64,
    /// Half of the orders took no longer, in milliseconds; 0 unless each was timed.
    pub p50: f64,
}

/// How long the server's processes are given to end with their connections: what they have used is not to be counted with what comes next.
const SERVERS_END: Duration = Duration::from_millis(500);

impl Pgbench {
    /// Finds the program and makes the database.
    pub async fn open(ground: &Ground, name: &str) -> Result<Self> {
        need(Program::PostgresPrograms)?;
        let program = postgres_program("pgbench").context("it was just found")?;
        let scene = ground.scene(name).await?;
        let script = ground.folder().join(format!("{name}.sql"));
        std::fs::write(&script, SCRIPT)?;
        Ok(Self { program, scene, script, runs: 0, orders: 0 })
    }

    /// Writes with so many clients for so long. With one client each order is timed.
    pub async fn run(&mut self, ground: &Ground, clients: usize, seconds: u64) -> Result<Run> {
        self.runs += 1;
        let folder = ground.folder().join(format!("{}-{}", self.scene.name, self.runs));
        std::fs::create_dir_all(&folder)?;
        let log = folder.join("output");
        let timed = clients == 1;
        let mut launch = self
            .scene
            .launch_client(&format!("{}-{}", self.scene.name, self.runs), &self.program)?
            .args(["--no-vacuum", "--protocol=prepared", "--file"])
            .arg(&self.script)
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={}", clients.min(2)))
            .arg(format!("--time={seconds}"))
            .current_dir(&folder)
            .log(&log)
            .env("PGOPTIONS", OPTIONS);
        if timed {
            launch = launch.args(["--log", "--log-prefix=times"]);
        }
        launch.run(&ground.supply.reaper).await?;
        tokio::time::sleep(SERVERS_END).await;
        let output = std::fs::read_to_string(&log)?;
        let (orders, rate) =
            figures(&output).with_context(|| format!("no figures in the output of pgbench:\n{output}"))?;
        self.orders += orders;
        Ok(Run { rate, p50: if timed { p50(&folder)? } else { 0.0 } })
    }

    /// Checks that it has written what the api would have, and drops the database.
    pub async fn close(self) -> Result<()> {
        check::whole(&self.scene.pool, self.orders).await.context("pgbench has not written what the api would have")?;
        self.scene.close().await
    }
}

/// Transactions, and how many a second.
fn figures(output: &str) -> Option<(u64, f64)> {
    let after = |prefix: &str| output.lines().find_map(|line| line.strip_prefix(prefix));
    let orders = after("number of transactions actually processed: ")?.split(['/', ' ']).next()?.parse().ok()?;
    let rate = after("tps = ")?.split(' ').next()?.parse().ok()?;
    Some((orders, rate))
}

/// The median of the third field of each line of its logs, which is in microseconds; as milliseconds.
fn p50(folder: &Path) -> Result<f64> {
    let mut times: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("times")) {
            let text = std::fs::read_to_string(path)?;
            times.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
        }
    }
    ensure!(!times.is_empty(), "pgbench has left no times");
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().map_or(0.0, f64::from) / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_read_from_the_output() {
        let output = "pgbench (15.13)\nnumber of transactions actually processed: 2801\nnumber of failed transactions: 0 (0.000%)\n\
            latency average = 0.356 ms\ntps = 2801.530431 (without initial connection time)\n";
        assert_eq!(figures(output), Some((2801, 2_801.530_431)));
        assert_eq!(figures("pgbench: error: connection failed"), None);
    }

    #[test]
    fn the_median_is_of_all_files_that_were_left() -> Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("times.1"), "0 1 300 0 1 2\n0 2 100 0 1 2\n")?;
        std::fs::write(folder.path().join("times.1.1"), "0 1 200 0 1 2\n")?;
        std::fs::write(folder.path().join("output"), "0 1 9 0 1 2\n")?;
        assert!((p50(folder.path())? - 0.2).abs() < 1e-9);
        Ok(())
    }
}
