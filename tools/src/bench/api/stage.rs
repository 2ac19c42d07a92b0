//! An api on a database of its own, or several, and the loads that they get.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

use super::generator::{Load, Report, post};
use super::{CONNECTIONS, Scale, all_accepted, check};
use crate::bench::cpu;
use crate::bench::ground::{Ground, Scene};
use crate::stack::Kind;

/// Nobody has to say who he is, and more connections are taken than by default.
const ENV: [(&str, &str); 2] = [("API_AUTH", "none"), ("API_CONNECTIONS_MAX", "30000")];

/// An api that runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    address: SocketAddr,
    process: Pid,
}

/// An api that runs, or several, with Postgres and without a relay.
pub struct Stage {
    scene: Scene,
    apis: Vec<Running>,
    postgres: Pid,
    accepted: u64,
    ids: Vec<PathBuf>,
}

impl Stage {
    /// Makes a database, starts an api, and posts until both are warm.
    pub async fn open(ground: &mut Ground, name: &str, scale: Scale, env: &[(&str, &str)]) -> Result<Self> {
        let scene = ground.scene(name).await?;
        sqlx::query("SELECT outbox_make_partitions(4)").execute(&scene.pool).await?;
        let mut stage = Self { scene, apis: Vec::new(), postgres: ground.postgres()?, accepted: 0, ids: Vec::new() };
        stage.add(ground, scale, env).await?;
        Ok(stage)
    }

    /// Starts a further api on the same database, and posts until it is warm. Their numbers count from 0.
    pub async fn add(&mut self, ground: &Ground, scale: Scale, env: &[(&str, &str)]) -> Result<()> {
        let env = [&ENV[..], env].concat();
        let api = self.scene.start(Kind::Api, ground, &env)?;
        api.wait_ready().await?;
        let address = api.api_address().context("it is an api")?;
        self.apis.push(Running { address, process: api.process().pid() });
        let warm_up = Load::closed(CONNECTIONS, scale.warm_up_secs);
        all_accepted(&self.drive_one(ground, self.apis.len() - 1, warm_up).await?)?;
        Ok(())
    }

    /// Where the first api is.
    pub fn address(&self) -> SocketAddr {
        self.apis[0].address
    }

    /// The first api's memory, in MB.
    pub fn memory_mb(&self) -> Result<f64> {
        Ok(f64::from(u32::try_from(cpu::memory_bytes(self.apis[0].process)? / 1_000)?) / 1_000.0)
    }

    /// Has a generator post so much to the first api, and tells what came of it and who used the CPU.
    pub async fn drive(&mut self, ground: &Ground, load: Load) -> Result<Report> {
        self.drive_one(ground, 0, load).await
    }

    /// The same with another one of them.
    pub async fn drive_one(&mut self, ground: &Ground, number: usize, load: Load) -> Result<Report> {
        let Running { address, process } = self.apis[number];
        let name = format!("{}-load{}", self.scene.name, self.ids.len());
        let before = (cpu::of_tree(process)?, cpu::of_tree(self.postgres)?);
        let (report, ids) = post(ground, &self.scene, &name, address, load).await?;
        let api = cpu::of_tree(process)?.saturating_sub(before.0).as_secs_f64();
        let postgres = cpu::of_tree(self.postgres)?.saturating_sub(before.1).as_secs_f64();
        self.ids.push(ids);
        self.accepted += report.accepted;
        tell(&report, load, [api, postgres]);
        Ok(report)
    }

    /// Checks that everything that was accepted is in Postgres, each with its transition and event, and nothing else; ends the apis.
    pub async fn close_whole(self) -> Result<()> {
        let lost = self.close().await?;
        ensure!(lost == 0, "{lost} orders were accepted and are not there");
        Ok(())
    }

    /// The same, and returns how many orders were accepted and are not there.
    pub async fn close(mut self) -> Result<u64> {
        self.scene.stop().await?;
        let lost = check::lost(&self.scene.pool, &self.ids).await?;
        check::whole(&self.scene.pool, self.accepted - lost).await?;
        self.scene.close().await?;
        Ok(lost)
    }
}

fn tell(report: &Report, load: Load, [api, postgres]: [f64; 2]) {
    let cores = f64::from(u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1));
    let share = |cpu: f64| cpu / report.seconds / cores * 100.0;
    let Load { connections, rate, .. } = load;
    let asked = rate.map_or_else(String::new, |rate| format!(" at {rate}/s"));
    eprintln!(
        "  {connections} connections{asked}: {:.0} orders/s; CPU: api {:.0} %, Postgres {:.0} %, generator {:.0} %",
        report.rate(),
        share(api),
        share(postgres),
        share(report.cpu_seconds)
    );
    let lines = [("accepted", report.latency), ("refused", report.refusal), ("sent late", report.late)];
    for (what, summary) in lines.into_iter().filter_map(|(what, summary)| Some((what, summary?))) {
        if what != "sent late" || rate.is_some() {
            eprintln!("    {what:<10} {summary}");
        }
    }
}
