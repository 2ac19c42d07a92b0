//! Thousands of histories in which everything happens at every moment, around the pure core in `relay/src/lanes`: no server is needed.
//!
//! A seed decides who does the next step: writers, relays with a sender and a producer each, the broker, and whatever goes wrong. At the end
//! everything must have been published, each aggregate's events in their order, and nothing twice without a cause. So that this proves
//! something, the same is asked of relays that are wrong in one way each: they must be caught.
//!
//! `HISTORY_SEED=17 cargo dev test -p relay --test integration -- histories` prints the steps of one history; `HISTORIES=200000` runs more.

mod broker;
mod check;
mod database;
mod fleet;
mod ground;
mod history;
mod lanes_table;
mod leases;
mod session;
mod variant;

use std::collections::BTreeMap;
use std::mem::discriminant;

use check::Violation;
use variant::Variant;

/// Histories of the relay as it is.
const HISTORIES: u64 = 10_000;

/// Histories within which a relay that is wrong in one way must be caught.
const HISTORIES_TO_CATCH: u64 = 40_000;

/// What must have happened, or the histories prove nothing.
const MUST_HAPPEN: [&str; 26] = [
    "batch refused",
    "careful session ended",
    "detour begun",
    "frozen",
    "held back",
    "held part",
    "killed",
    "lane given back amid a read",
    "lane handed over",
    "lane lost",
    "lane taken again amid a read",
    "late rows",
    "late part",
    "late rows cut off",
    "late rows cut off on a detour",
    "new rows cut off",
    "overtook its elders",
    "parked",
    "partition dropped",
    "published beside a detour",
    "record of a former owner arrived",
    "record timed out",
    "refused alone",
    "savepoint rolled back",
    "statement failed",
    "stopped in good order",
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

/// A relay that is wrong in this way must be caught at something like `expected`.
fn must_be_caught(variant: Variant, expected: &[Violation]) {
    for seed in 0..HISTORIES_TO_CATCH {
        let Err(violation) = history::run(seed, variant, false).result else { continue };
        println!("{variant:?} is caught by the history of seed {seed}: {violation:?}");
        assert!(
            expected.iter().any(|expected| discriminant(expected) == discriminant(&violation)),
            "{violation:?}, expected was something like {expected:?}"
        );
        return;
    }
    panic!("{variant:?} was not caught by {HISTORIES_TO_CATCH} histories");
}

fn lost() -> Violation {
    Violation::Lost(String::new())
}

/// Behind what was lost, everything waits in vain or is parked.
fn parked() -> Violation {
    Violation::Parked(String::new())
}

fn reordered() -> Violation {
    Violation::Reordered(String::new())
}

#[test]
fn a_cursor_that_is_an_id_alone_is_caught() {
    must_be_caught(Variant::LastIdOnly, &[lost(), reordered(), parked()]);
}

#[test]
fn a_settle_without_its_token_is_caught() {
    must_be_caught(
        Variant::SettleWithoutToken,
        &[Violation::WentBack(String::new()), Violation::Repeated(String::new())],
    );
}

#[test]
fn a_partition_that_is_dropped_too_early_is_caught() {
    must_be_caught(Variant::DropByPositionOnly, &[lost(), reordered(), parked()]);
}

#[test]
fn a_new_snapshot_before_all_late_rows_are_acknowledged_is_caught() {
    must_be_caught(Variant::NewSnapshotTooEarly, &[lost(), reordered(), parked()]);
}

#[test]
fn a_detour_that_ends_with_its_first_part_is_caught() {
    must_be_caught(Variant::DetourCutShort, &[lost(), reordered(), parked()]);
}

#[test]
fn a_new_row_of_a_detours_aggregate_that_is_sent_too_early_is_caught() {
    must_be_caught(Variant::AggregatesForgotten, &[reordered(), parked()]);
}

#[test]
fn a_part_of_a_detour_in_the_wrong_order_is_caught() {
    must_be_caught(Variant::PartReversed, &[lost(), reordered(), parked()]);
}

#[test]
fn a_cut_off_part_of_new_rows_that_is_taken_for_all_is_caught() {
    must_be_caught(Variant::FreshCutForgotten, &[Violation::Stuck]);
}

#[test]
fn new_rows_sent_before_late_ones_are_caught() {
    must_be_caught(Variant::FreshBeforeLate, &[reordered()]);
}

#[test]
fn a_producer_that_goes_on_after_a_failure_is_caught() {
    must_be_caught(Variant::GoesOnAfterAFailure, &[reordered()]);
}
