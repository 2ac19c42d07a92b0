//! Thousands of histories in which everything happens at every moment, around the pure core in `relay/src/lanes`: no server is needed.
//!
//! A seed decides who does the next step: writers, relays with a sender and a producer each, the broker, and whatever goes wrong. At the end
//! everything must have been published, each aggregate's events in their order, and nothing twice without a cause. So that this proves
//! something, the same is asked of relays that are wrong in one way each: they must be caught.
//!
//! `HISTORY_SEED=17 cargo dev test -p relay --test integration -- histories` prints the steps of one history; `HISTORIES=200000` runs more.

mod broker;
mod caught;
mod check;
mod database;
mod fleet;
mod flows;
mod ground;
mod history;
mod lanes_table;
mod leases;
mod reading;
mod reads;
mod repeats;
mod sender;
mod session;
mod stream;
mod tries;
mod trouble;
mod variant;
mod waiting;
mod waiting_table;
mod writers;

use std::collections::BTreeMap;

use check::Violation;
use variant::Variant;

/// Histories of the relay as it is.
const HISTORIES: u64 = 10_000;

/// What must have happened, or the histories prove nothing.
const MUST_HAPPEN: [&str; 48] = [
    "batch refused",
    "brought up",
    "brought up in parts",
    "detour begun",
    "aggregates needed",
    "part ahead of the aggregates",
    "read beside a detour brings nothing",
    "first request refused",
    "flows again",
    "frozen",
    "held back",
    "held part",
    "held until its producer is known",
    "ids passed over",
    "killed",
    "lane given back amid a read",
    "lane handed over",
    "lane lost",
    "lane taken again amid a read",
    "late part",
    "late rows",
    "late rows cut off",
    "late rows cut off on a detour",
    "new rows cut off",
    "no broker answers",
    "overtook earlier ones",
    "parked",
    "partition dropped",
    "producer replaced",
    "published beside a detour",
    "record of a former owner arrived",
    "record timed out",
    "refused alone",
    "refused in its own stream",
    "report without an offset",
    "savepoint rolled back",
    "sent alone",
    "set aside",
    "statement failed",
    "stopped in good order",
    "suspects cleared",
    "taken over while waiting",
    "topic down",
    "topic in trouble",
    "topic up",
    "topic was found to be down",
    "try failed",
    "waited for the lease",
];

fn from_env(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().expect("a number"))
}

/// Fails with the steps of the history.
fn fail(seed: u64, violation: &Violation) -> ! {
    let steps = history::run(seed, Variant::Faithful, true).ground.steps();
    panic!("{}\n{violation:?} in the history of seed {seed}: HISTORY_SEED={seed} runs it alone", steps.join("\n"));
}

#[test]
fn no_history_loses_reorders_or_repeats_an_event() {
    if let Some(seed) = from_env("HISTORY_SEED") {
        let mut report = history::run(seed, Variant::Faithful, true);
        println!("{}\n{:?}", report.ground.steps().join("\n"), report.result);
        return assert_eq!(report.result, Ok(()));
    }
    let mut happened: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..from_env("HISTORIES").unwrap_or(HISTORIES) {
        let report = history::run(seed, Variant::Faithful, false);
        if let Err(violation) = &report.result {
            fail(seed, violation);
        }
        for (what, count) in report.ground.happened {
            *happened.entry(what).or_default() += count;
        }
    }
    println!("{happened:#?}");
    let never: Vec<&str> = MUST_HAPPEN.into_iter().filter(|what| !happened.contains_key(what)).collect();
    assert_eq!(never, [] as [&str; 0], "never happened");
}
