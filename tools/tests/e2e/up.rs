//! `outrider up`, from nothing to processed orders, and the ways in which it ends.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Output};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shared::testing::eventually;
use tempfile::TempDir;
use tools::stack::postgres::connect;
use tools::stack::{free_port, make_passable};

use super::command_line::outrider;

/// A running `outrider up`, in a folder of its own. It is killed when this is dropped, and its children by its reaper.
struct Up {
    process: Child,
    folder: TempDir,
}

impl Up {
    /// Starts it, and waits until it says where to go.
    async fn start(options: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        make_passable(folder.path())?;
        let output = File::create(folder.path().join("output"))?;
        // The default port may be somebody's, or that of another test.
        let process = outrider(&format!("up --no-build --port {} {options} --data", free_port()?))
            .arg(folder.path().join("data"))
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut up = Self { process, folder };
        up.settle().await;
        Ok(up)
    }

    /// Waits for the last line that it prints until it is told to stop.
    async fn settle(&mut self) {
        let settled = eventually("outrider up is ready, or ends", async || {
            let ended = !matches!(self.process.try_wait(), Ok(None));
            (ended || self.output().contains("Ctrl-C stops everything")).then_some(!ended)
        });
        assert!(settled.await, "{}", self.output());
    }

    fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What follows a word at the beginning of a line.
    fn told(&self, word: &str) -> Result<String> {
        let output = self.output();
        let line = output.lines().find_map(|line| line.trim_start().strip_prefix(word));
        Ok(line.with_context(|| format!("no line {word:?} in\n{output}"))?.trim().to_owned())
    }

    /// All addresses that it has named: those of the api, the admin ports, Kafka and Postgres.
    fn addresses(&self) -> Vec<SocketAddr> {
        let output = self.output();
        let ends = output.split("127.0.0.1:").skip(1);
        let mut ports: Vec<u16> = ends
            .filter_map(|rest| rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports.into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).context("a process number")?;
        Ok(kill_process(pid, signal)?)
    }

    async fn exit_code(&mut self) -> Option<i32> {
        eventually("the end of outrider up", async || self.process.try_wait().ok().flatten()).await.code()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until nobody listens at any of these addresses.
async fn all_closed(addresses: Vec<SocketAddr>) {
    for address in addresses {
        let closed = async || TcpStream::connect(address).is_err().then_some(());
        eventually(&format!("nobody listens on {address}"), closed).await;
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn ten_orders_and_then_many_are_processed_once_each_and_nothing_is_left_running() -> Result<()> {
    let mut up = Up::start("").await?;
    let output = up.output();
    let ready = output.lines().position(|line| line == format!("ready {}", up.told("ready").unwrap_or_default()));
    let orders: Vec<usize> = output
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("order ") && line.contains("Pending -> Processed"))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(orders.len(), 10, "{output}");
    assert!(ready < orders.first().copied(), "{output}");
    assert!(!output.contains('\x1b'), "control characters in a file:\n{output}");

    let seed = outrider("seed --count 200 --json --url").arg(up.told("ready")?).output()?;
    assert_eq!(seed.status.code(), Some(0), "{}", stdout(&seed));

    let mut connection = connect(&up.told("database   psql")?).await?;
    let (orders, created, processed): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM orders WHERE status = 'Processed' AND version = 2),
                (SELECT count(*) FROM order_transitions WHERE version = 1 AND to_status = 'Pending'),
                (SELECT count(*) FROM order_transitions
                  WHERE version = 2 AND from_status = 'Pending' AND to_status = 'Processed')",
    )
    .fetch_one(&mut connection)
    .await?;
    assert_eq!((orders, created, processed), (210, 210, 210));

    let mut doctor = outrider("doctor --verbose --write");
    doctor
        .env("DATABASE_URL", up.told("database   psql")?)
        .env("KAFKA_BROKERS", format!("127.0.0.1{}", up.told("kafka      127.0.0.1")?));
    for kind in ["api", "relay", "processor"] {
        let admin = up.told(&format!("{kind:<10} curl"))?;
        doctor.arg("--admin").arg(admin.split_once("/readyz").map_or(admin.as_str(), |(url, _)| url));
    }
    let examined = doctor.output()?;
    assert_eq!(examined.status.code(), Some(0), "{}", stdout(&examined));

    let second = outrider("up --no-build --data").arg(up.data()).output()?;
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another outrider up"));

    let addresses = up.addresses();
    assert!(addresses.len() >= 6, "{addresses:?}");
    up.signal(Signal::TERM)?;
    assert_eq!(up.exit_code().await, Some(0), "{}", up.output());
    assert!(up.output().contains("\nstopped in "), "{}", up.output());
    all_closed(addresses).await;
    Ok(())
}

#[tokio::test]
async fn scripts_are_told_what_happens_and_need_not_stop_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    make_passable(folder.path())?;
    let mut up = outrider(&format!("up --no-build --no-stay --json --port {} --data", free_port()?));
    let output = up.arg(folder.path().join("data")).output()?;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let events = stdout(&output).lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let steps = ["prerequisites", "postgres", "kafka", "migrate", "services"];
    for name in ["step_started", "step_done"] {
        assert_eq!(named(name).iter().map(|event| &event["step"]).collect::<Vec<_>>(), steps, "{events:?}");
    }
    assert!(named("step_done").iter().all(|event| event["seconds"].as_f64() > Some(0.0)), "{events:?}");
    let orders = named("order");
    assert!(orders.len() == 10 && orders.iter().all(|event| event["status"] == "Processed"), "{events:?}");
    let addresses = named("addresses").first().context("addresses")?.to_owned();
    assert_eq!(addresses["api"], named("ready").first().context("ready")?["url"]);
    for name in ["api", "relay", "processor"] {
        assert!(addresses["admin"][name].as_str().context("a URL")?.starts_with("http://"), "{addresses}");
    }
    assert_eq!(events.last().context("an end")?["event"], "stopped");
    Ok(())
}

#[tokio::test]
async fn a_demo_keeps_orders_coming() -> Result<()> {
    let mut up = Up::start("--demo").await?;
    let mut connection = connect(&up.told("database   psql")?).await?;
    let mut orders = 0;
    eventually("orders beyond the first ten", async || {
        let count = sqlx::query_scalar("SELECT count(*) FROM orders WHERE status = 'Processed'");
        orders = count.fetch_one(&mut connection).await.unwrap_or(0_i64);
        (orders > 15).then_some(())
    })
    .await;
    up.signal(Signal::INT)?;
    assert_eq!(up.exit_code().await, Some(0), "{}", up.output());
    Ok(())
}

#[tokio::test]
async fn nothing_outlives_a_killed_up_and_its_data_can_be_used_again() -> Result<()> {
    let mut up = Up::start("--no-seed").await?;
    let addresses = up.addresses();
    up.signal(Signal::KILL)?;
    assert_eq!(up.exit_code().await, None);

    // At once: it has to wait for what the first has left.
    let output = File::create(up.folder.path().join("output"))?;
    up.process = outrider("up --no-build --data").arg(up.data()).stdout(output.try_clone()?).stderr(output).spawn()?;
    up.settle().await;
    assert!(up.output().contains("10 of 10 orders Processed"), "{}", up.output());
    let new = up.addresses();
    all_closed(addresses.into_iter().filter(|address| !new.contains(address)).collect()).await;
    up.signal(Signal::INT)?;
    assert_eq!(up.exit_code().await, Some(0), "{}", up.output());
    all_closed(new).await;
    Ok(())
}

#[tokio::test]
async fn a_service_that_dies_is_reported_and_takes_the_rest_along() -> Result<()> {
    let mut up = Up::start("--no-seed").await?;
    let addresses = up.addresses();
    let admin = up.told("relay")?;
    let port = admin.split([':', '/']).nth(4).context("a port")?.to_owned();
    let victim = listener(&port)?;
    kill_process(victim, Signal::KILL)?;
    assert_eq!(up.exit_code().await, Some(1));
    let output = up.output();
    assert!(output.contains("relay ended with signal 9"), "{output}");
    assert!(output.contains("the end of") && output.contains("relay.log:\n    "), "{output}");
    all_closed(addresses).await;
    Ok(())
}

/// The process whose admin port is this one, by its environment.
fn listener(port: &str) -> Result<Pid> {
    let wanted = format!("ADMIN_BIND=127.0.0.1:{port}");
    let found = if Path::new("/proc/self/environ").exists() {
        let has_it = |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes());
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).find(
            // Those of other users cannot be read.
            |process| fs::read(format!("/proc/{process}/environ")).is_ok_and(has_it),
        )
    } else {
        let ps = std::process::Command::new("ps").args(["eww", "-A", "-o", "pid=,command="]).output()?;
        let text = stdout(&ps);
        let line = text.lines().find(|line| line.contains(&wanted));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
    };
    found.and_then(Pid::from_raw).with_context(|| format!("no process with {wanted}"))
}
