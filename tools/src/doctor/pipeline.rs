//! What the state of the pipeline says of things that stand still, or will.

use std::time::Duration;

use relay::lanes::LANES;
use shared::findings::Finding;

use crate::status::Status;
use crate::status::groups::Group;
use crate::status::transactions::Transaction;

/// As the alert has it: with fewer ids left, somebody must look.
const IDS_AHEAD_MIN: i64 = 5_000_000;

/// A slot that keeps more of the log than this fills the disk.
const WAL_BYTES_MAX: i64 = 10_000_000_000;

/// Judges a look. Transactions that have been open for longer than `holder_age` keep Postgres from cleaning up.
pub fn judge(status: &Status, holder_age: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    relays(status, &mut findings);
    outbox(status, &mut findings);
    for group in &status.consumers.groups {
        consumers(group, &mut findings);
    }
    transactions(status, holder_age, &mut findings);
    slots(status, &mut findings);
    findings
}

fn relays(status: &Status, findings: &mut Vec<Finding>) {
    const CHECK: &str = "relay.lanes";
    let relay = &status.relay;
    let there = relay.lanes.len();
    if there != LANES {
        findings.push(Finding::wrong(
            CHECK,
            format!("relay_lanes has {there} rows and not {LANES}: the events of the others are never published"),
            "run `INSERT INTO relay_lanes (lane) SELECT generate_series(0, 15) ON CONFLICT DO NOTHING`: what is retained of those lanes is then \
             published again, with the same event ids",
        ));
    } else if relay.relays.is_empty() {
        findings.push(Finding::warning(CHECK, "no relay is running: events wait in the outbox", "start a relay"));
    } else {
        findings.push(Finding::fine(CHECK, format!("{} relays share the {there} lanes", relay.relays.len())));
    }
    if relay.parked.keys > 0 {
        findings.push(Finding::warning(
            "relay.parked",
            format!("{} keys wait because Kafka refuses an event of theirs", relay.parked.keys),
            "`outrider parked list` says which and why",
        ));
    }
    findings.extend(relay.waiting.iter().map(|waiting| {
        Finding::warning(
            "relay.waiting",
            format!("the topic {} takes no records ({}): its events wait", waiting.topic, waiting.reason),
            "mend that; they flow again by themselves",
        )
    }));
}

fn outbox(status: &Status, findings: &mut Vec<Finding>) {
    const CHECK: &str = "outbox.partitions";
    let ids = status.relay.ids_ahead;
    findings.push(if ids >= IDS_AHEAD_MIN {
        Finding::fine(CHECK, format!("reach {ids} ids ahead"))
    } else {
        Finding::wrong(
            CHECK,
            format!("only {ids} ids are left before inserts into the outbox fail"),
            "see why the relay makes no partitions (its log), or run `SELECT outbox_make_partitions(4)` as the owner of the tables",
        )
    });
}

fn consumers(group: &Group, findings: &mut Vec<Finding>) {
    const CHECK: &str = "processor.group";
    let name = &group.group;
    if group.state.as_deref() == Some("Empty") {
        findings.push(Finding::warning(
            CHECK,
            format!("the group {name} has no member: its events wait in Kafka"),
            "start a processor, or delete the group's positions if it is no more",
        ));
    } else {
        let members = group.members.len();
        findings.push(Finding::fine(CHECK, format!("{name}: {members} members")));
    }
    if group.blocked.parked > 0 {
        findings.push(Finding::warning(
            "processor.parked",
            format!("{} keys of the group {name} wait for an operator", group.blocked.parked),
            "`outrider dead-letters list --group-by reason` says why",
        ));
    }
}

fn transactions(status: &Status, holder_age: Duration, findings: &mut Vec<Finding>) {
    const CHECK: &str = "database.transactions";
    let old = status.transactions.open.iter().filter(|open| open.age_secs > holder_age.as_secs_f64());
    let before = findings.len();
    findings.extend(old.map(|open| held_open(CHECK, open)));
    if status.transactions.others_hidden {
        let advice = "run this as a member of outrider_operator, or of pg_read_all_stats";
        findings.push(Finding::warning(CHECK, "transactions of others are hidden from us", advice));
    }
    if findings.len() == before {
        findings.push(Finding::fine(CHECK, "none has been open for long"));
    }
}

fn held_open(check: &'static str, open: &Transaction) -> Finding {
    let (user, secs) = (open.user.as_deref().unwrap_or("-"), open.age_secs);
    let hurts = "Postgres cannot clean up, and the outbox grows";
    match (&open.gid, open.pid) {
        (Some(gid), _) => Finding::warning(
            check,
            format!("the prepared transaction {gid} of {user} has been open for {secs:.0} s: {hurts}"),
            format!("have its owner run `COMMIT PREPARED '{gid}'` or `ROLLBACK PREPARED '{gid}'`"),
        ),
        (None, pid) => {
            let (pid, application) = (pid.unwrap_or_default(), open.application.as_deref().unwrap_or("-"));
            Finding::warning(
                check,
                format!(
                    "a transaction of {user} ({application}, process {pid}) has been open for {secs:.0} s: {hurts}"
                ),
                format!("ask its owner; else `SELECT pg_terminate_backend({pid})`"),
            )
        }
    }
}

fn slots(status: &Status, findings: &mut Vec<Finding>) {
    const CHECK: &str = "database.slots";
    let before = findings.len();
    for slot in &status.slots {
        let name = &slot.name;
        if !slot.active {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "the replication slot {name} has no reader: Postgres keeps its log for it until the disk is full"
                ),
                format!("start its reader, or run `SELECT pg_drop_replication_slot('{name}')`"),
            ));
        } else if slot.wal_bytes.is_some_and(|bytes| bytes > WAL_BYTES_MAX) {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "the reader of the replication slot {name} is far behind: Postgres keeps more than 10 GB of its log"
                ),
                "see why the reader is slow",
            ));
        }
    }
    if findings.len() == before {
        findings.push(Finding::fine(CHECK, "no replication slot is left behind"));
    }
}
