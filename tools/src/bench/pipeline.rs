//! Figures of all services together.

use anyhow::{Context, Result};

use super::figure::Figure;
use super::ground::Ground;
use super::{PipelineArgs, asked};

mod sequential;

/// The parts, as `--only` names them.
pub const PARTS: [&str; 1] = ["sequential"];

/// What `--help` shows.
pub const EXAMPLES: &str = "Examples:
  cargo dev bench pipeline                       some 3 minutes on two cores, and a release build before that
  cargo dev bench pipeline --only sequential
  cargo dev bench pipeline --quick --json";

/// How large the parts are.
#[derive(Debug, Clone, Copy)]
struct Scale {
    rounds: usize,
    /// Until Kafka has compiled what it needs.
    warm_up_secs: u64,
    seconds: u64,
}

const FULL: Scale = Scale { rounds: 3, warm_up_secs: 30, seconds: 10 };
const QUICK: Scale = Scale { rounds: 1, warm_up_secs: 1, seconds: 1 };

/// Measures the parts that were asked for.
pub async fn measure(args: &PipelineArgs) -> Result<Vec<Figure>> {
    let scale = if args.how.quick { QUICK } else { FULL };
    let mut ground = Ground::open(args.how.quick, args.how.binaries.clone()).await?;
    let mut figures = Vec::new();
    for part in PARTS.into_iter().filter(|part| asked(&args.only, part)) {
        eprintln!("{part}");
        let found = sequential::measure(&mut ground, scale).await;
        figures.extend(found.with_context(|| format!("the part {part} failed"))?);
    }
    Ok(figures)
}
