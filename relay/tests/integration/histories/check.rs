//! What must hold at the end of a history, and one thing that must hold always.

use std::collections::HashSet;

use super::broker::Written;
use super::database::{AGGREGATES, Refusal, Row, lane_of};
use super::ground::Ground;
use super::lanes_table::ParkedRow;
use super::repeats::{came_again, repeats_have_a_cause};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A committed event was neither published nor parked, by whoever held its lane.
    Lost(String),
    /// An event of an aggregate first appears before an elder.
    Reordered(String),
    /// An event was published again though nothing had gone wrong.
    Repeated(String),
    /// An event that was rolled back was published.
    Undone(String),
    /// What is parked is not the refused event and all later ones of its aggregate.
    Parked(String),
    /// A settle took a lane back.
    WentBack(String),
    /// Not everything is published although nothing goes wrong any more.
    Stuck,
}

/// A settled cursor never goes back.
pub fn never_back(ground: &Ground) -> Result<(), Violation> {
    ground.table.went_back.clone().map_or(Ok(()), |what| Err(Violation::WentBack(what)))
}

pub fn all(ground: &Ground) -> Result<(), Violation> {
    let mut aggregates: Vec<Vec<Row>> = vec![Vec::new(); AGGREGATES];
    for row in ground.database.committed() {
        aggregates[row.aggregate].push(*row);
    }
    nothing_undone(ground)?;
    for (aggregate, rows) in aggregates.iter().enumerate() {
        let versions: Vec<i64> = rows.iter().map(|row| row.version).collect();
        let expected: Vec<i64> = (1..=i64::try_from(rows.len()).expect("few rows")).collect();
        assert_eq!(versions, expected, "the model's writers keep to the append rule");
        // The first event that is refused parks the aggregate.
        let refused = rows.iter().position(|row| row.refusal != Refusal::Nobody).unwrap_or(rows.len());
        let parked = parked(ground, aggregate, rows, refused)?;
        // First, since what is lost is missing in the order, too.
        complete(&ground.log, aggregate, parked)?;
        in_order(&ground.log, aggregate, refused)?;
    }
    repeats_have_a_cause(ground)
}

fn nothing_undone(ground: &Ground) -> Result<(), Violation> {
    let committed: HashSet<i64> = ground.database.committed().map(|row| row.key.id).collect();
    match ground.log.iter().find(|written| !committed.contains(&written.row.key.id)) {
        Some(written) => Err(Violation::Undone(format!("id {}", written.row.key.id))),
        None => Ok(()),
    }
}

/// Versions first appear in their order, and none from `refused` on. Left out is a record that comes too early and may: a relay that was
/// frozen had given up its elders. It has to come again, in its place.
fn in_order(log: &[Written], aggregate: usize, refused: usize) -> Result<(), Violation> {
    let mut seen = 0;
    for written in log.iter().filter(|written| written.row.aggregate == aggregate) {
        let version = written.row.version;
        if version <= seen + 1 {
            seen = seen.max(version);
        } else if !written.overtook {
            return Err(Violation::Reordered(format!("{aggregate}/{version} comes after {seen}")));
        }
    }
    if usize::try_from(seen).is_ok_and(|seen| seen > refused) {
        return Err(Violation::Parked(format!("{aggregate}/{seen} was published behind a refused one")));
    }
    Ok(())
}

/// Everything before `parked` was written by a relay that held the lane: what a former owner wrote counts for nothing.
fn complete(log: &[Written], aggregate: usize, parked: usize) -> Result<(), Violation> {
    let own = log.iter().filter(|written| written.row.aggregate == aggregate && !written.late);
    let versions: HashSet<i64> = own.map(|written| written.row.version).collect();
    match (1..=i64::try_from(parked).expect("few rows")).find(|version| !versions.contains(version)) {
        Some(version) => Err(Violation::Lost(format!("{aggregate}/{version}"))),
        None => Ok(()),
    }
}

/// The refused event is parked and with it all later ones. Elders are as well when their outcome was unknown after a crash: a relay that takes
/// the lane finds the key parked, and they too wait in order. Returns where the parked ones begin.
fn parked(ground: &Ground, aggregate: usize, rows: &[Row], refused: usize) -> Result<usize, Violation> {
    let parked: Vec<ParkedRow> =
        ground.table.parked.values().filter(|row| row.aggregate == aggregate).copied().collect();
    let begin = rows.len().saturating_sub(parked.len());
    let disturbed = || {
        ground.disturbed.iter().any(|(lane, _)| *lane == lane_of(aggregate))
            || came_again(ground, &rows[begin]).next().is_some()
    };
    let all = parked.iter().map(|row| row.version).eq(rows.iter().skip(begin).map(|row| row.version));
    let cause: Vec<usize> = (begin..rows.len()).filter(|place| parked[place - begin].refused).collect();
    let caused = match cause[..] {
        [] => parked.is_empty() && refused == rows.len(),
        [cause] if cause == refused && begin == refused => true,
        [cause] => begin <= refused && rows[cause].refusal != Refusal::Nobody && disturbed(),
        _ => false,
    };
    if all && caused { Ok(begin) } else { Err(Violation::Parked(format!("of {aggregate}: {parked:?} of {rows:?}"))) }
}
