//! Relays that are wrong in one way each.

use std::mem::discriminant;

use super::check::Violation;
use super::history;
use super::variant::Variant;

/// Histories within which each must be caught.
const HISTORIES_TO_CATCH: u64 = 40_000;

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
    must_be_caught(Variant::NewSnapshotTooEarly, &[lost(), reordered(), parked(), Violation::WentBack(String::new())]);
}

#[test]
fn a_detour_that_ends_with_its_first_part_is_caught() {
    must_be_caught(Variant::DetourCutShort, &[lost(), reordered(), parked()]);
}

#[test]
fn a_detour_that_knows_some_of_its_transactions_only_is_caught() {
    must_be_caught(Variant::TakesSomeTransactionsForAll, &[lost(), reordered(), parked()]);
}

#[test]
fn a_detour_that_knows_some_of_its_aggregates_only_is_caught() {
    must_be_caught(Variant::TakesTransactionsForAggregates, &[reordered(), parked()]);
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
    must_be_caught(Variant::FreshCutForgotten, &[lost(), Violation::Stuck]);
}

#[test]
fn new_rows_sent_before_late_ones_are_caught() {
    must_be_caught(Variant::FreshBeforeLate, &[reordered()]);
}

#[test]
fn a_producer_that_goes_on_after_a_failure_is_caught() {
    must_be_caught(Variant::GoesOnAfterAFailure, &[reordered()]);
}

#[test]
fn a_relay_that_trusts_a_report_without_an_offset_is_caught() {
    must_be_caught(Variant::TrustsConclusions, &[lost()]);
}

#[test]
fn a_producer_that_does_not_introduce_itself_is_caught() {
    must_be_caught(Variant::IntroducesNothing, &[reordered()]);
}

#[test]
fn a_producer_that_was_forgotten_and_does_not_introduce_itself_again_is_caught() {
    must_be_caught(Variant::IntroducesItselfOnce, &[reordered()]);
}

#[test]
fn a_type_that_waits_from_where_its_lane_was_read_is_caught() {
    must_be_caught(Variant::WaitsFromTheReading, &[lost(), reordered(), parked()]);
}

#[test]
fn a_type_that_waits_and_is_not_passed_over_is_caught() {
    must_be_caught(Variant::ReadsWhatWaits, &[reordered(), Violation::Repeated(String::new()), Violation::Stuck]);
}

#[test]
fn a_relay_that_forgets_what_waits_in_a_lane_that_it_takes_is_caught() {
    must_be_caught(Variant::ForgetsWhatWaits, &[lost(), reordered(), parked()]);
}

#[test]
fn a_type_that_waits_but_not_in_a_lane_that_is_taken_later_is_caught() {
    must_be_caught(Variant::TakesALaneForItself, &[Violation::Stuck]);
}

#[test]
fn a_try_that_does_not_hear_what_is_parked_in_a_lane_that_is_taken_is_caught() {
    must_be_caught(Variant::TellsNoTry, &[parked()]);
}

#[test]
fn a_refusal_that_gets_ahead_of_records_that_are_held_back_is_caught() {
    must_be_caught(Variant::RefusesAheadOfOthers, &[parked()]);
}

#[test]
fn a_refused_record_that_stays_in_flight_is_caught() {
    must_be_caught(Variant::RefusedStaysInFlight, &[Violation::Stuck]);
}

#[test]
fn a_way_to_a_topic_that_is_forgotten_while_events_are_held_back_is_caught() {
    must_be_caught(Variant::ResumesWhatIsOpen, &[Violation::Stuck]);
}

#[test]
fn a_type_that_flows_again_before_it_is_level_is_caught() {
    must_be_caught(Variant::FlowsBeforeItIsLevel, &[lost(), reordered(), parked()]);
}

#[test]
fn a_type_that_flows_again_before_it_is_acknowledged_is_caught() {
    must_be_caught(Variant::FlowsUnacknowledged, &[lost(), reordered(), parked()]);
}

#[test]
fn a_type_that_flows_again_before_its_suspects_are_looked_into_is_caught() {
    must_be_caught(Variant::FlowsWithSuspects, &[Violation::Stuck]);
}
