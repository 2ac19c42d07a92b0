//! The status for people.

use std::fmt::{self, Display, Formatter};

use relay::backlog::Backlog;

use super::Status;
use super::format::{about, count, size, time, time_or_dash};
use super::groups::{Group, Groups};
use super::relay::{PartitionState, RelayStatus};
use super::slots::Slot;
use super::transactions::Transactions;

impl Display for Status {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        summary(&self.relay, out)?;
        lanes(&self.relay, out)?;
        partitions(&self.relay, out)?;
        consumers(&self.consumers, out)?;
        transactions(&self.transactions, out)?;
        slots(&self.slots, out)
    }
}

fn summary(relay: &RelayStatus, out: &mut Formatter<'_>) -> fmt::Result {
    let running: Vec<String> =
        relay.relays.iter().map(|one| format!("{} ({} lanes)", short(&one.relay), one.lanes)).collect();
    let running = if running.is_empty() { "none is running".to_owned() } else { running.join(", ") };
    writeln!(out, "relays      {running}")?;
    writeln!(out, "backlog     {}", backlog(&relay.backlog))?;
    let published = match relay.rate.published_per_second {
        Some(rate) => format!("{rate:.0}"),
        None => "?".to_owned(),
    };
    let drained = match relay.rate.drain_secs {
        _ if relay.backlog.rows == 0 => String::new(),
        Some(secs) => format!("; drained in {}", time(secs)),
        None => "; not drained at this rate".to_owned(),
    };
    writeln!(out, "rate        {published} published/s, {:.0} written/s{drained}", relay.rate.written_per_second)?;
    let parked = &relay.parked;
    let oldest = parked.oldest_age_secs.map(|secs| format!(", the oldest for {}", time(secs))).unwrap_or_default();
    writeln!(out, "parked      {} keys, {} events{oldest}", count(parked.keys), count(parked.events))?;
    for waiting in &relay.waiting {
        writeln!(
            out,
            "waiting     topic {} takes no records since {}: {}; {} wait",
            waiting.topic,
            time(waiting.age_secs),
            waiting.reason,
            waiting.aggregate_types.join(", ")
        )?;
    }
    Ok(())
}

fn backlog(backlog: &Backlog) -> String {
    let late = if backlog.late_rows > 0 { format!(" ({} late)", count(backlog.late_rows)) } else { String::new() };
    let oldest = backlog.oldest_age_secs.map(|secs| format!(", the oldest {} ago", time(secs))).unwrap_or_default();
    format!("{} events{late}{oldest}", about(backlog.rows, backlog.exact))
}

fn lanes(relay: &RelayStatus, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "\nlane  owner           lease        position   settled         backlog    oldest")?;
    for lane in &relay.lanes {
        writeln!(
            out,
            "{:>4}  {:<14}{:>7}{:>16}{:>10}{:>16}{:>10}",
            lane.lane,
            lane.owner.as_deref().map_or_else(|| "-".to_owned(), short),
            time_or_dash(lane.lease_secs),
            count(lane.position),
            time_or_dash(lane.settled_age_secs),
            about(lane.backlog.rows, lane.backlog.exact),
            time_or_dash(lane.backlog.oldest_age_secs),
        )?;
    }
    Ok(())
}

fn partitions(relay: &RelayStatus, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(out, "\npartition                                   ids            rows      size  state")?;
    for partition in &relay.partitions {
        let (first, last) = partition.ids;
        let state = match partition.state {
            PartitionState::Kept => "kept: some of it is to be published",
            PartitionState::Published => "published",
            PartitionState::Current => "current",
            PartitionState::Ahead => "ahead",
        };
        let ids = format!("{}-{}", count(first), count(last));
        writeln!(
            out,
            "{:<20}{ids:>27}{:>16}{:>10}  {state}",
            partition.name,
            about(partition.rows_estimated, false),
            size(partition.bytes)
        )?;
    }
    writeln!(out, "{} ids are left until an insert finds no partition", count(relay.ids_ahead))
}

fn consumers(groups: &Groups, out: &mut Formatter<'_>) -> fmt::Result {
    for group in &groups.groups {
        consumer(group, out)?;
    }
    match &groups.kafka_error {
        Some(error) if !groups.groups.is_empty() => writeln!(out, "(of Kafka nothing is known: {error})"),
        _ => Ok(()),
    }
}

fn consumer(group: &Group, out: &mut Formatter<'_>) -> fmt::Result {
    let members: Vec<String> = group
        .members
        .iter()
        .map(|one| format!("{} at {} ({} partitions)", short_member(&one.member), one.host, one.partitions))
        .collect();
    let members = match (&group.state, members.is_empty()) {
        (_, false) => members.join(", "),
        (Some(_), true) => "none is known".to_owned(),
        // What this client can ask for leaves groups of that protocol out.
        (None, true) => "none is known; those of the protocol consumer are not shown".to_owned(),
    };
    let state = group.state.as_deref().map(|state| format!(", {}", state.to_lowercase())).unwrap_or_default();
    writeln!(out, "\ngroup       {}{state}", group.group)?;
    writeln!(out, "members     {members}")?;
    let lag = group.lag.map_or_else(|| "?".to_owned(), count);
    let oldest = match group.lag_secs {
        Some(secs) if group.lag != Some(0) => format!(", the oldest {} ago", time(secs)),
        _ => String::new(),
    };
    writeln!(out, "lag         {lag} events{oldest}; {:.0} passed/s", group.rate_per_second)?;
    let blocked = &group.blocked;
    let oldest = blocked.oldest_age_secs.map(|secs| format!(", the oldest for {}", time(secs))).unwrap_or_default();
    writeln!(
        out,
        "keys        {} retrying, {} waiting, {} parked{oldest}",
        count(blocked.retrying),
        count(blocked.waiting),
        count(blocked.parked)
    )?;
    writeln!(
        out,
        "topic/partition          owner         position        kafka          end          lag  oldest      moved"
    )?;
    for partition in &group.partitions {
        let offset = |offset: Option<i64>| offset.map_or_else(|| "-".to_owned(), count);
        writeln!(
            out,
            "{:<25}{:<9}{:>13}{:>13}{:>13}{:>13}{:>8}{:>11}",
            format!("{}/{}", partition.topic, partition.partition),
            partition.owner.as_deref().map_or_else(|| "-".to_owned(), short_member),
            count(partition.position),
            offset(partition.kafka_position),
            offset(partition.end),
            offset(partition.lag),
            partition.lag_secs.map_or_else(|| "-".to_owned(), time),
            time(partition.moved_age_secs),
        )?;
    }
    Ok(())
}

fn transactions(transactions: &Transactions, out: &mut Formatter<'_>) -> fmt::Result {
    if transactions.open.is_empty() {
        writeln!(out, "\nno transaction has been open for more than a second")?;
    } else {
        writeln!(out, "\n   pid       age  holds              state                 user, database, application")?;
    }
    for open in &transactions.open {
        let who = [&open.user, &open.database, &open.application, &open.gid];
        let who: Vec<&str> =
            who.into_iter().filter_map(|part| part.as_deref().filter(|part| !part.is_empty())).collect();
        writeln!(
            out,
            "{:>6}{:>10}  {:<19}{:<22}{}",
            open.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            time(open.age_secs),
            open.holds,
            open.state.as_deref().unwrap_or("-"),
            who.join(", ")
        )?;
    }
    if transactions.others_hidden {
        writeln!(out, "(those of other users are hidden from this login; pg_read_all_stats shows them)")?;
    }
    Ok(())
}

/// What each replication slot holds: rows of all tables since so many transactions, rows of the catalogs, and the server's log.
fn slots(slots: &[Slot], out: &mut Formatter<'_>) -> fmt::Result {
    if slots.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nreplication slot        kind        read by    transactions   of catalogs         log  database")?;
    for slot in slots {
        let number = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), count);
        writeln!(
            out,
            "{:<24}{:<10}{:>9}{:>16}{:>14}{:>12}  {}",
            slot.name,
            slot.kind,
            slot.pid.map_or_else(|| "nobody".to_owned(), |pid| pid.to_string()),
            number(slot.xmin_age),
            number(slot.catalog_xmin_age),
            slot.wal_bytes.map_or_else(|| "-".to_owned(), size),
            slot.database.as_deref().unwrap_or("-"),
        )?;
    }
    Ok(())
}

/// A relay's name is its process id and a UUID, of which the end is enough to tell two apart.
pub(crate) fn short(relay: &str) -> String {
    match relay.split_once('-') {
        Some((pid, rest)) if rest.len() > 6 && rest.is_ascii() => format!("{pid}-{}", &rest[rest.len() - 6..]),
        _ => relay.to_owned(),
    }
}

/// A member's id is its client's name and a UUID, of which the end is enough.
fn short_member(member: &str) -> String {
    match member.len().checked_sub(6).and_then(|from| member.get(from..)) {
        Some(end) => end.to_owned(),
        None => member.to_owned(),
    }
}
