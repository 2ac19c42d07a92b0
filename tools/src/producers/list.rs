//! `outrider producers list`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use sqlx::PgConnection;

use super::store::{self, ProducerRow};
use crate::console::say;
use crate::dead_letters::list::instant;
use crate::parked::list::printable;

/// How to show the grants.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows the grants. The exit code is 0, whether there are any or not.
pub async fn run(connection: &mut PgConnection, args: &ListArgs) -> Result<ExitCode> {
    let producers = store::list(connection).await?;
    if args.json {
        say(serde_json::to_string(&producers)?);
    } else if producers.is_empty() {
        say("no role was granted an aggregate type: `outrider producers grant ROLE TYPE` does");
    } else {
        print_table(&producers);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(producers: &[ProducerRow]) {
    let shown: Vec<(String, String)> =
        producers.iter().map(|row| (printable(&row.aggregate_type), printable(&row.role))).collect();
    let width = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0).clamp(4, 60);
    let types_width = width(&mut shown.iter().map(|(aggregate_type, _)| aggregate_type.chars().count()));
    let roles_width = width(&mut shown.iter().map(|(_, role)| role.chars().count()));
    say(format_args!(
        "{:<types_width$}  {:<roles_width$}  {:<14}  {:<20}  GRANTED BY",
        "TYPE", "ROLE", "STATE", "GRANTED"
    ));
    for (row, (aggregate_type, role)) in producers.iter().zip(shown) {
        say(format_args!(
            "{aggregate_type:<types_width$}  {role:<roles_width$}  {:<14}  {:<20}  {}",
            row.state,
            instant(row.granted_at),
            printable(&row.granted_by)
        ));
    }
}
