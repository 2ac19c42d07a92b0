//! `outrider seed`: many orders, followed till they are Processed, and figures on both.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::error::ErrorKind;
use reqwest::Url;
use serde::Serialize;

use crate::console::say;
use crate::http::OrdersApi;
use crate::report::{LatencySummary, Reasons, per_second};
use crate::signals::StopSignals;
use crate::workload::{Ranges, Workload};
use follow::Followed;
use post::{Posted, Poster};

mod follow;
mod post;

/// What to post, how, and how long to follow it.
#[derive(Debug, Clone, Args)]
pub struct SeedArgs {
    /// Number of orders
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,

    /// Base URL of the API
    #[arg(long, default_value = "http://localhost:8080", value_parser = parse_url)]
    url: Url,

    /// Lowest user id
    #[arg(long, default_value_t = 1, value_name = "ID")]
    min_user: u64,

    /// Highest user id
    #[arg(long, default_value_t = 1000, value_name = "ID")]
    max_user: u64,

    /// Lowest product id
    #[arg(long, default_value_t = 1, value_name = "ID")]
    min_product: u64,

    /// Highest product id
    #[arg(long, default_value_t = 100, value_name = "ID")]
    max_product: u64,

    /// Lowest quantity
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_quantity: u64,

    /// Highest quantity
    #[arg(long, default_value_t = 10, value_name = "N")]
    max_quantity: u64,

    /// Requests at the same time, each on a connection of its own
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,

    /// Orders a second, sent when they are due whatever the server does; latency counts from then. Without it, each
    /// connection sends its next order when the last is answered
    #[arg(long, value_name = "ORDERS/S", value_parser = parse_rate)]
    rate: Option<f64>,

    /// The same seed makes the same orders; random unless given
    #[arg(long)]
    seed: Option<u64>,

    /// How long to follow the orders till they are Processed, from the last answer on: 60s, 500ms, 2m; 0 not at all
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_duration)]
    wait: Duration,

    /// Print a line for each order
    #[arg(long)]
    verbose: bool,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Posts the orders, follows them, and prints the figures. The exit code is 1 when an order was not accepted, or not
/// Processed in time.
pub async fn run(args: SeedArgs) -> Result<ExitCode> {
    let ranges = args.ranges()?;
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let mut signals = StopSignals::listen()?;
    let result = signals.interrupts(Box::pin(seed_orders(&args, Workload::new(ranges, seed)))).await?;
    let report = Report::new(&args, seed, &result);
    if args.json {
        say(serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    let is_well =
        report.failed.total() == 0 && report.not_processed.as_ref().is_none_or(|reasons| reasons.total() == 0);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of the posting, and of the following if there was any.
struct Outcome {
    posted: Posted,
    followed: Option<Followed>,
}

async fn seed_orders(args: &SeedArgs, workload: Workload) -> Result<Outcome> {
    let api = OrdersApi::new(args.url.clone())?;
    let work = Poster::new(api.clone(), args, workload);
    if args.wait.is_zero() {
        let (samples, _) = tokio::sync::mpsc::unbounded_channel();
        return Ok(Outcome { posted: work.post_all(samples).await?, followed: None });
    }
    let (samples, followed) = follow::start(api);
    let mut posted = work.post_all(samples).await?;
    let rest = std::mem::take(&mut posted.unsampled);
    let followed = followed.finish(rest, posted.started, args).await?;
    Ok(Outcome { posted, followed: Some(followed) })
}

impl SeedArgs {
    /// The ranges, none of them empty.
    fn ranges(&self) -> Result<Ranges, clap::Error> {
        let range = |name: &str, min: u64, max: u64| {
            if min <= max {
                return Ok(min..=max);
            }
            let message = format!("--min-{name} {min} is above --max-{name} {max}\n");
            Err(clap::Error::raw(ErrorKind::ValueValidation, message))
        };
        Ok(Ranges {
            users: range("user", self.min_user, self.max_user)?,
            products: range("product", self.min_product, self.max_product)?,
            quantities: range("quantity", self.min_quantity, self.max_quantity)?,
        })
    }
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}; it looks like http://localhost:8080"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("it must start with http:// or https://".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

/// `60s`, `500ms`, `2m`, `1.5s`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("the unit must be ms, s, m or h".to_owned()),
    };
    let seconds = number.parse::<f64>().map_err(|_| "it must be a time such as 60s or 500ms".to_owned())? * factor;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The figures of one run.
#[derive(Debug, Serialize)]
struct Report {
    url: String,
    count: u64,
    seed: u64,
    concurrency: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    accepted: u64,
    failed: Reasons,
    seconds: f64,
    accepted_per_second: f64,
    latency_ms: Option<LatencySummary>,
    processed: Option<u64>,
    not_processed: Option<Reasons>,
    processed_seconds: Option<f64>,
    processed_per_second: Option<f64>,
    processed_latency_ms: Option<LatencySummary>,
    processed_latency_samples: Option<u64>,
    processed_latency_resolution_ms: Option<u128>,
}

impl Report {
    fn new(args: &SeedArgs, seed: u64, outcome: &Outcome) -> Self {
        let Outcome { posted, followed } = outcome;
        let followed = followed.as_ref();
        Self {
            url: args.url.to_string(),
            count: args.count,
            seed,
            concurrency: args.concurrency,
            rate: args.rate,
            accepted: posted.accepted,
            failed: posted.failed.clone(),
            seconds: posted.took.as_secs_f64(),
            accepted_per_second: per_second(posted.accepted, posted.took),
            latency_ms: posted.latencies.summary(),
            processed: followed.map(|followed| followed.processed),
            not_processed: followed.map(|followed| followed.not_processed.clone()),
            processed_seconds: followed.map(|followed| followed.took.as_secs_f64()),
            processed_per_second: followed.map(|followed| per_second(followed.processed, followed.took)),
            processed_latency_ms: followed.and_then(|followed| followed.latencies.summary()),
            processed_latency_samples: followed.map(|followed| followed.latencies.count()),
            processed_latency_resolution_ms: followed.map(|_| follow::LOOK_INTERVAL.as_millis()),
        }
    }

    fn print(&self) {
        let rate = self.rate.map_or_else(String::new, |rate| format!(", {rate} a second"));
        say(format_args!(
            "{} orders posted to {} in {:.1} s, {} at a time{rate}, seed {}",
            self.count, self.url, self.seconds, self.concurrency, self.seed
        ));
        say(format_args!("accepted    {:>10}  {:.0} orders/s", self.accepted, self.accepted_per_second));
        say(format_args!("failed      {:>10}{}", self.failed.total(), self.failed));
        if let Some(latency) = self.latency_ms {
            let since = if self.rate.is_some() { " (since it was due)" } else { "" };
            say(format_args!("latency                 {latency}{since}"));
        }
        let (Some(processed), Some(not_processed)) = (self.processed, &self.not_processed) else {
            return;
        };
        let per_second = self.processed_per_second.unwrap_or_default();
        say(format_args!("processed   {processed:>10}  {per_second:.0} orders/s from the first to the last"));
        if not_processed.total() > 0 {
            say(format_args!("not         {:>10}{not_processed}", not_processed.total()));
        }
        if let Some(latency) = self.processed_latency_ms {
            say(format_args!("latency                 {latency}"));
            say(format_args!(
                "                        from accepted to Processed, of {} orders looked at every {} ms",
                self.processed_latency_samples.unwrap_or_default(),
                self.processed_latency_resolution_ms.unwrap_or_default()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SeedArgs,
    }

    fn parse(line: &str) -> Result<SeedArgs, clap::Error> {
        let args = Line::try_parse_from(["seed"].into_iter().chain(line.split_whitespace()))?.args;
        args.ranges()?;
        Ok(args)
    }

    #[test]
    fn the_defaults_are_those_of_the_seeder_this_one_replaces() -> Result<()> {
        let args = parse("")?;
        assert_eq!(args.count, 1000);
        assert_eq!(args.url.as_str(), "http://localhost:8080/");
        assert_eq!(args.ranges()?, Ranges { users: 1..=1000, products: 1..=100, quantities: 1..=10 });
        assert!(!args.verbose);
        Ok(())
    }

    #[test]
    fn a_command_line_that_makes_no_sense_is_refused() {
        for line in [
            "--count 0",
            "--count x",
            "--url localhost:8080",
            "--url ftp://localhost",
            "--min-user 2 --max-user 1",
            "--min-product 101",
            "--max-quantity 0",
            "--concurrency 0",
            "--rate 0",
            "--rate -1",
            "--rate inf",
            "--wait x",
            "--wait 5d",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        for (text, millis) in
            [("60s", 60_000), ("500ms", 500), ("2m", 120_000), ("5", 5_000), ("0", 0), ("1.5s", 1_500)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(parse_duration("-1s").is_err());
    }
}
