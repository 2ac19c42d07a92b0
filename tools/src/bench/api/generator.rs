//! The load generator: posts orders over many connections, as fast as they are answered or when they are due.
//!
//! A process of its own, so that it is of the same build as what is measured and its share of the CPU can be told; one thread, since it
//! shares the cores. When there is a rate, requests are due at fixed times, whatever became of the earlier ones, and latencies count from
//! then on: a service that stalls is not let off the requests that would have come meanwhile. Connections take the due requests in
//! turn, and one that comes due while all of them wait for an answer waits too.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinSet, LocalSet};

use super::http::{Connection, Orders, accepted};
use super::open_files;
use crate::bench::cpu;
use crate::bench::ground::{Ground, Scene};
use crate::report::{Latencies, LatencySummary, per_second};

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to post, and where.
#[derive(Debug, Clone, Args)]
pub struct GeneratorArgs {
    /// Where the api is: an address and a port
    #[arg(long)]
    address: SocketAddr,

    #[command(flatten)]
    load: Load,

    /// The file for the figures
    #[arg(long)]
    report: PathBuf,

    /// The file for the numbers of the orders that were accepted, one a line
    #[arg(long)]
    ids: PathBuf,
}

/// How much to post.
#[derive(Debug, Clone, Copy, Args)]
pub struct Load {
    /// Connections that are kept
    #[arg(long)]
    pub connections: usize,

    /// How long, in seconds
    #[arg(long)]
    pub seconds: u64,

    /// Requests a second, due at fixed times; as fast as they are answered without it
    #[arg(long)]
    pub rate: Option<u64>,

    /// Orders in each request; more than one go to `/orders/batch`
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
}

impl Load {
    /// As fast as it is answered over so many connections.
    #[must_use]
    pub fn closed(connections: usize, seconds: u64) -> Self {
        Self { connections, seconds, rate: None, batch: 1 }
    }

    /// So many a second.
    #[must_use]
    pub fn open(connections: usize, seconds: u64, rate: u64) -> Self {
        Self { connections, seconds, rate: Some(rate), batch: 1 }
    }

    /// As arguments of the generator.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let Self { connections, seconds, rate, batch } = self;
        let mut args =
            vec![format!("--connections={connections}"), format!("--seconds={seconds}"), format!("--batch={batch}")];
        args.extend(rate.map(|rate| format!("--rate={rate}")));
        args
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Orders answered 201.
    pub accepted: u64,
    /// Orders answered 503.
    pub refused: u64,
    /// Requests by any other status.
    pub others: BTreeMap<u16, u64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// CPU time of the generator.
    pub cpu_seconds: f64,
    /// Of what was accepted, from the time when it was due.
    pub latency: Option<LatencySummary>,
    /// Of what was refused, from the time when it was sent.
    pub refusal: Option<LatencySummary>,
    /// How long after it was due a request was sent.
    pub late: Option<LatencySummary>,
}

impl Report {
    /// Orders accepted a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.each_second(self.accepted)
    }

    /// So many in the time of the run, each second.
    #[must_use]
    pub fn each_second(&self, count: u64) -> f64 {
        per_second(count, Duration::from_secs_f64(self.seconds))
    }
}

/// Has a generator of this name post so much to an api. Returns what came of it, and the file with the numbers of the orders.
pub async fn post(
    ground: &Ground,
    scene: &Scene,
    name: &str,
    address: SocketAddr,
    load: Load,
) -> Result<(Report, PathBuf)> {
    let file = |what: &str| ground.folder().join(format!("{name}.{what}"));
    let launch = scene
        .launch(ground, name, "outrider")
        .args(["bench", "post-orders", "--address", &address.to_string()])
        .args(load.args())
        .arg("--report")
        .arg(file("report"))
        .arg("--ids")
        .arg(file("ids"));
    launch.run(&ground.supply.reaper).await?;
    Ok((read_report(&file("report"))?, file("ids")))
}

/// Posts, and writes the report. On a thread of its own, which a signal need not wait for.
pub async fn run(args: GeneratorArgs) -> Result<()> {
    // Standard streams, the files, and what the runtime has.
    open_files::raise(args.load.connections + 64)?;
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("generator".to_owned()).spawn(move || done.send(generate(&args)))?;
    ended.await.context("the generator has panicked")?
}

fn generate(args: &GeneratorArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (report, ids) = runtime.block_on(LocalSet::new().run_until(post_all(args)))?;
    write_ids(&args.ids, &ids)?;
    // Last: whoever finds it finds the numbers too.
    std::fs::write(&args.report, serde_json::to_vec(&report)?).context("cannot write the report")
}

fn write_ids(file: &Path, ids: &[i64]) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(file).context("cannot write the numbers")?);
    for id in ids {
        writeln!(file, "{id}")?;
    }
    Ok(file.flush()?)
}

/// What the connections share; all of them are on one thread.
struct Shared {
    load: Load,
    begun: Instant,
    next: Cell<u64>,
    tally: RefCell<Tally>,
}

#[derive(Default)]
struct Tally {
    report: Report,
    ids: Vec<i64>,
    latencies: Latencies,
    refusals: Latencies,
    lates: Latencies,
}

async fn post_all(args: &GeneratorArgs) -> Result<(Report, Vec<i64>)> {
    let mut connections = Vec::new();
    for _ in 0..args.load.connections {
        connections.push(Connection::open(args.address).await?);
    }
    let us = rustix::process::getpid();
    let (cpu, begun) = (cpu::of_tree(us)?, Instant::now());
    let shared = Rc::new(Shared { load: args.load, begun, next: Cell::new(0), tally: RefCell::default() });
    let mut tasks = JoinSet::new();
    for connection in connections {
        let shared = Rc::clone(&shared);
        tasks.spawn_local(async move { shared.post(connection).await });
    }
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    let patience = Duration::from_secs(args.load.seconds) + PATIENCE;
    tokio::time::timeout(patience, all).await.context("some requests are not answered")??;
    let (took, cpu) = (begun.elapsed(), cpu::of_tree(us)?.saturating_sub(cpu));
    let shared = Rc::into_inner(shared).context("all connections are done")?;
    let Tally { mut report, ids, latencies, refusals, lates } = shared.tally.into_inner();
    report.seconds = took.as_secs_f64();
    report.cpu_seconds = cpu.as_secs_f64();
    report.latency = latencies.summary();
    report.refusal = refusals.summary();
    report.late = lates.summary();
    Ok((report, ids))
}

/// How long after the end of the time something is still sent that was due before.
const LATE_MAX: Duration = Duration::from_secs(1);

impl Shared {
    /// Posts over one connection until the time is up.
    async fn post(&self, mut connection: Connection) -> Result<()> {
        let mut orders = Orders::new(self.load.batch);
        let end = Duration::from_secs(self.load.seconds);
        loop {
            let number = self.next.replace(self.next.get() + 1);
            let due = match self.load.rate {
                None => self.begun.elapsed(),
                Some(rate) => Duration::from_nanos(number.saturating_mul(1_000_000_000) / rate.max(1)),
            };
            // What should have been sent long ago, and was not while the time lasted, is not sent after it: the load was smaller than it was
            // to be, as the report says.
            if due >= end || self.begun.elapsed() > end + LATE_MAX {
                return Ok(());
            }
            let due = self.begun + due;
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            let request = orders.request(number);
            let sent = Instant::now();
            let answer = connection.exchange(request).await?;
            let (status, answered) = (answer.status, Instant::now());
            let tally = &mut *self.tally.borrow_mut();
            tally.lates.record(sent.saturating_duration_since(due));
            match status {
                200 | 201 => {
                    let count = accepted(answer, &mut tally.ids)?;
                    ensure!(count > 0 || self.load.batch > 1, "an order was answered {status} without a number");
                    tally.report.accepted += count;
                    tally.report.refused += u64::try_from(self.load.batch)?.saturating_sub(count);
                    tally.latencies.record(answered - due);
                }
                503 => {
                    tally.report.refused += u64::try_from(self.load.batch)?;
                    tally.refusals.record(answered - sent);
                }
                other => *tally.report.others.entry(other).or_default() += 1,
            }
        }
    }
}

/// Reads what a generator has written.
pub fn read_report(file: &Path) -> Result<Report> {
    let report: Report = serde_json::from_slice(&std::fs::read(file).context("the generator leaves a report")?)?;
    match report.others.first_key_value() {
        None => Ok(report),
        Some((status, count)) => Err(anyhow!("{count} requests were answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection, each request with the next number, and stands still before the tenth answer.
    async fn stalling_server(listener: TcpListener, stall: Duration) -> Result<()> {
        let (mut stream, _) = listener.accept().await?;
        let mut request = [0; 1_024];
        let mut id = 0;
        // A request is short, and the next one comes only after the answer: one read is one request.
        while stream.read(&mut request).await? > 0 {
            id += 1;
            if id == 10 {
                tokio::time::sleep(stall).await;
            }
            let body = format!("{{\"ID\":{id}}}");
            let answer = format!("HTTP/1.1 201 Created\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_stall_counts_for_every_request_that_was_due_meanwhile() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(stalling_server(listener, Duration::from_millis(500)));
        let folder = tempfile::tempdir()?;
        let (report, ids) = (folder.path().join("report"), folder.path().join("ids"));
        run(GeneratorArgs { address, load: Load::open(1, 1, 100), report: report.clone(), ids: ids.clone() }).await?;
        server.await??;

        let report = read_report(&report)?;
        assert_eq!((report.accepted, report.refused), (100, 0));
        assert!(std::fs::read_to_string(ids)?.lines().eq((1..=100).map(|id| id.to_string())));
        // Of a hundred requests some fifty were due while nothing was answered; only one had been sent.
        let latency = report.latency.context("all are accepted")?;
        assert!(latency.p90 > 250.0 && latency.max >= 500.0, "{latency}");
        Ok(())
    }
}
