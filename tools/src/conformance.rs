//! `outrider conformance`: whether the API does what its description says, tried by schemathesis with requests that it makes up from
//! that description.

mod schemathesis;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use shared::db::Connector;

use crate::migrate;
use crate::output::Output;
use crate::signals::StopSignals;
use crate::stack::service::Surroundings;
use crate::stack::throwaway::{Supply, Throwaway};
use crate::stack::{Kind, Reaper, Service};
use crate::workspace::{Executables, Workspace};
use schemathesis::Schemathesis;

/// For the command line.
pub const EXAMPLES: &str = "Examples:
  cargo dev conformance
  cargo dev conformance --examples 1000 --seed 7";

/// Nobody has to say who they are, no processor would ever end a wait, and overload is tried elsewhere.
const ENV: [(&str, &str); 2] = [("API_AUTH", "none"), ("API_WAIT_MAX_SECS", "0")];

/// How much to try.
#[derive(Debug, Args)]
pub struct ConformanceArgs {
    /// Requests that are made up for each operation, in each of the phases that make up any
    #[arg(long, default_value_t = 30, value_name = "N")]
    examples: u32,

    /// What the requests are made up from; the same ones again with the same number
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u32,
}

/// Tries the API of this checkout on a Postgres of its own. The exit code is 1 at a violation.
pub async fn run(args: ConformanceArgs) -> Result<ExitCode> {
    let workspace = Workspace::required()?;
    let own = Executables::own()?;
    let mut signals = StopSignals::listen()?;
    let supply = Supply {
        cache: workspace.root().join(".dev"),
        announce: |line| eprintln!("{line}"),
        reaper: Reaper::start(own.outrider())?,
    };
    let mut servers = Throwaway::new()?;
    signals.interrupts(Box::pin(conform(&args, &workspace, &own, &supply, &mut servers))).await
}

async fn conform(
    args: &ConformanceArgs,
    workspace: &Workspace,
    own: &Executables,
    supply: &Supply,
    servers: &mut Throwaway,
) -> Result<ExitCode> {
    if let Some(arguments) = own.build_arguments() {
        workspace.cargo().args(arguments).run(&supply.reaper).await?;
    }
    let output = Output::new(false);
    let schemathesis = output.step("schemathesis", Schemathesis::find(supply)).await?;
    let database_url = output
        .step("postgres", async {
            let url = servers.start_postgres(supply).await?;
            migrate::migrate(Connector::plain(url.parse()?)).await?;
            Ok((url, "a fresh database, migrated".to_owned()))
        })
        .await?;
    let surroundings = Surroundings {
        binaries: own.folder().to_owned(),
        logs: servers.folder().to_owned(),
        database_url,
        // The api knows no Kafka.
        kafka_brokers: String::new(),
        takes_role: true,
        env: Vec::new(),
    };
    let mut api = Service::start(Kind::Api, "api", &surroundings, &ENV, &supply.reaper)?;
    let url = output
        .step("api", async {
            api.wait_ready().await?;
            let url = api.api_url().context("the api has a URL")?;
            Ok((url.clone(), url))
        })
        .await?;
    let conforms = schemathesis.run(&url, args.examples, args.seed, servers.folder(), &supply.reaper).await?;
    api.stop().await?;
    Ok(if conforms { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
