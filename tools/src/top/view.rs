//! The page of `outrider top`, for 80 columns and 24 lines or more. Pure.

use chrono::{DateTime, Utc};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};

use super::figures::Row;
use crate::status::Status;
use crate::status::format::{about, count, time};
use crate::status::groups::{Group, Partition};
use crate::status::relay::RelayStatus;
use crate::status::table::short;

/// An event that has waited for so many seconds is late.
const LATE_SECS: f64 = 10.0;

/// A transaction that has been open for so many seconds is in somebody's way.
const OPEN_SECS: f64 = 60.0;

/// Lines of relays, groups and transactions at most, so that partitions have room too.
const LINES_MAX: usize = 3;

/// What there is to show.
#[derive(Debug)]
pub struct Page<'a> {
    /// When that was.
    pub at: DateTime<Utc>,
    /// Rates and times, by stage.
    pub rows: Vec<Row>,
    /// What Postgres says, and Kafka; none before the first look.
    pub status: Option<&'a Status>,
    /// What cannot be looked at, and why.
    pub faults: Vec<String>,
}

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, page: &Page<'_>) {
    let middle = page.status.map(middle).unwrap_or_default();
    let stages = u16::try_from(page.rows.len()).unwrap_or(u16::MAX).saturating_add(1);
    let faults = page.faults.len().min(LINES_MAX);
    let height = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
    let [head, of_stages, of_middle, of_partitions, of_faults] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(stages),
        height(middle.len()),
        Constraint::Min(0),
        height(faults),
    ])
    .areas(frame.area());
    frame.render_widget(header(page), head);
    frame.render_widget(table_of_stages(&page.rows), of_stages);
    frame.render_widget(Paragraph::new(middle), of_middle);
    if let Some(status) = page.status {
        frame.render_widget(partitions(status, usize::from(of_partitions.height)), of_partitions);
    }
    let faults: Vec<Line<'_>> = page.faults.iter().take(LINES_MAX).map(|fault| fault.as_str().red().into()).collect();
    frame.render_widget(Paragraph::new(faults), of_faults);
}

fn header(page: &Page<'_>) -> Paragraph<'static> {
    Paragraph::new(Line::from(vec![
        "outrider top".bold(),
        format!("   {}   ", page.at.format("%H:%M:%S UTC")).into(),
        "q quits".dim(),
    ]))
}

fn table_of_stages(rows: &[Row]) -> Table<'_> {
    let head = TableRow::new([
        Cell::from("STAGE"),
        right("PER SECOND", 12),
        right("MEDIAN", 12),
        right("99 %", 12),
        Cell::from("  SINCE"),
    ]);
    let row = |row: &Row| {
        let rate = row.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        let p99 = right(&length(row.p99), 12);
        let is_late = row.p99.is_some_and(|secs| secs >= LATE_SECS);
        TableRow::new([
            Cell::from(row.stage),
            right(&rate, 12),
            right(&length(row.median), 12),
            if is_late { p99.style(Style::new().fg(Color::Red)) } else { p99 },
            Cell::from(if row.stage == "requests" { "  the request came" } else { "  the event occurred" }.dim()),
        ])
    };
    let widths = [14, 12, 12, 12, 22].map(Constraint::Length);
    Table::new(rows.iter().map(row), widths).header(head.bold())
}

fn right(text: &str, width: usize) -> Cell<'static> {
    Cell::from(format!("{text:>width$}"))
}

/// Shorter than a second in milliseconds, which `status` does not need.
fn length(secs: Option<f64>) -> String {
    match secs {
        None => "-".to_owned(),
        Some(secs) if secs < 1.0 => format!("{:.1} ms", secs * 1e3),
        Some(secs) => time(secs),
    }
}

fn middle(status: &Status) -> Vec<Line<'static>> {
    let relay = &status.relay;
    let mut lines = vec![Line::default()];
    lines.push(labelled("outbox", outbox(relay)));
    lines.extend(limited(&status.consumers.groups, "groups", |group| labelled("group", of_group(group))));
    lines.push(labelled("parked", parked(status)));
    if relay.relays.is_empty() {
        lines.push(labelled("relays", vec!["none is running".red()]));
    }
    lines.extend(limited(&relay.relays, "relays", |one| {
        let held: Vec<i16> =
            relay.lanes.iter().filter(|lane| lane.owner.as_ref() == Some(&one.relay)).map(|lane| lane.lane).collect();
        labelled("relay", vec![format!("{}  {} lanes: {}", short(&one.relay), held.len(), ranges(&held)).into()])
    }));
    let free: Vec<i16> = relay.lanes.iter().filter(|lane| lane.owner.is_none()).map(|lane| lane.lane).collect();
    if !free.is_empty() {
        lines.push(labelled("", vec![format!("nobody holds lanes {}", ranges(&free)).red()]));
    }
    let open = &status.transactions.open;
    if open.is_empty() {
        lines.push(labelled("open", vec!["no transaction for more than a second".dim()]));
    }
    lines.extend(limited(open, "transactions", |open| {
        let who = [&open.application, &open.user, &open.database, &open.gid];
        let who: Vec<&str> =
            who.into_iter().filter_map(|part| part.as_deref()).filter(|part| !part.is_empty()).collect();
        let pid = open.pid.map_or_else(String::new, |pid| format!("pid {pid}  "));
        let text = format!("{}  {pid}{}  holds {}", time(open.age_secs), who.join(" "), open.holds);
        labelled("open", vec![if open.age_secs >= OPEN_SECS { text.red() } else { text.into() }])
    }));
    lines.push(Line::default());
    lines
}

/// A line for each of the first few, and one for the rest.
fn limited<T>(all: &[T], name: &str, line: impl Fn(&T) -> Line<'static>) -> Vec<Line<'static>> {
    let shown = if all.len() > LINES_MAX { LINES_MAX - 1 } else { all.len() };
    let mut lines: Vec<Line<'static>> = all.iter().take(shown).map(line).collect();
    if all.len() > shown {
        lines.push(labelled("", vec![format!("and {} {name} more: see outrider status", all.len() - shown).dim()]));
    }
    lines
}

fn labelled(label: &str, mut text: Vec<Span<'static>>) -> Line<'static> {
    text.insert(0, format!("{label:<8}").bold());
    Line::from(text)
}

fn outbox(relay: &RelayStatus) -> Vec<Span<'static>> {
    let backlog = &relay.backlog;
    let mut spans = vec![format!("{} events", about(backlog.rows, backlog.exact)).into()];
    if let Some(secs) = backlog.oldest_age_secs {
        let text = format!(", oldest {} ago", time(secs));
        spans.push(if secs >= LATE_SECS { text.red() } else { text.into() });
    }
    let drained = relay.rate.drain_secs.filter(|_| backlog.rows > 0);
    spans.extend(drained.map(|secs| format!("; drained in {}", time(secs)).into()));
    spans.push(format!("; {} ids ahead", count(relay.ids_ahead)).into());
    spans
}

fn of_group(group: &Group) -> Vec<Span<'static>> {
    let state = group.state.as_deref().unwrap_or("Kafka is not asked");
    let lag = group.lag.map_or_else(|| "?".to_owned(), count);
    let mut spans =
        vec![format!("{}  {state}, {} members, {lag} records behind", group.group, group.members.len()).into()];
    if let Some(secs) = group.lag_secs.filter(|secs| *secs > 0.0) {
        let text = format!(", {}", time(secs));
        spans.push(if secs >= LATE_SECS { text.red() } else { text.into() });
    }
    spans.push(format!(", {:.0}/s", group.rate_per_second).into());
    spans
}

fn parked(status: &Status) -> Vec<Span<'static>> {
    let by_relay = status.relay.parked.keys;
    let sum = |of: fn(&Group) -> i64| status.consumers.groups.iter().map(of).sum::<i64>();
    let by_processor = sum(|group| group.blocked.parked);
    let shown = |keys: i64, text: String| if keys > 0 { text.red() } else { text.into() };
    vec![
        shown(by_relay, format!("{} keys by relays", count(by_relay))),
        shown(by_processor, format!(", {} by processors", count(by_processor))),
        format!(
            "; {} tried again, {} wait for an elder",
            count(sum(|group| group.blocked.retrying)),
            count(sum(|group| group.blocked.waiting))
        )
        .into(),
    ]
}

/// The partitions that are furthest behind.
fn partitions(status: &Status, height: usize) -> Table<'static> {
    let mut all: Vec<(&str, &Partition)> = status
        .consumers
        .groups
        .iter()
        .flat_map(|group| group.partitions.iter().map(|partition| (group.group.as_str(), partition)))
        .collect();
    all.sort_by_key(|(group, partition)| {
        (std::cmp::Reverse(partition.lag), *group, partition.topic.as_str(), partition.partition)
    });
    let row = |(group, partition): &(&str, &Partition)| {
        let member = if partition.owner.is_some() { "" } else { "no member" };
        TableRow::new([
            Cell::from(format!("{} {}", partition.topic, partition.partition)),
            Cell::from((*group).to_owned()),
            right(&count(partition.position), 12),
            right(&partition.lag.map_or_else(|| "?".to_owned(), count), 10),
            Cell::from(format!("  {member}").red()),
        ])
    };
    let head = TableRow::new([
        Cell::from("PARTITION"),
        Cell::from("GROUP"),
        right("POSITION", 12),
        right("BEHIND", 10),
        Cell::from(""),
    ]);
    let widths = [18, 24, 12, 10, 12].map(Constraint::Length);
    Table::new(all.iter().take(height.saturating_sub(1)).map(row), widths).header(head.bold())
}

/// `0-3 7 9-15`
fn ranges(numbers: &[i16]) -> String {
    let mut ranges: Vec<(i16, i16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut().filter(|(_, last)| last + 1 == *number) {
            Some((_, last)) => *last = *number,
            None => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last): &(i16, i16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use relay::backlog::Backlog;

    use super::*;
    use crate::status::groups::{Blocked, Groups, Member};
    use crate::status::relay::{Lane, Parked, Rate, Relay};
    use crate::status::transactions::{Transaction, Transactions};
    use crate::top::figures::{STAGES, Scrape};

    fn shown(page: &Page<'_>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
        terminal.draw(|frame| draw(frame, page)).expect("drawn");
        terminal.backend().to_string()
    }

    fn status() -> Status {
        let relay = |number: u16| format!("47{number}-01890a5d-ac96-774b-bcce-b302099a805{number}");
        let lane = |lane: i16| Lane {
            lane,
            owner: (lane < 15).then(|| relay(u16::from(lane >= 8))),
            lease_secs: Some(9.0),
            position: 1_000,
            settled_age_secs: Some(0.1),
            backlog: Backlog::default(),
        };
        let partition = |partition: i32, lag| Partition {
            topic: "orders".to_owned(),
            partition,
            owner: (partition != 2).then(|| "outrider-1".to_owned()),
            position: 41_822,
            moved_age_secs: 0.2,
            kafka_position: Some(41_822),
            end: Some(41_822 + lag),
            lag: Some(lag),
            lag_secs: Some(0.0),
        };
        Status {
            relay: RelayStatus {
                relays: [0, 1].map(|number| Relay { relay: relay(number), lanes: 8, lease_secs: 9.0 }).into(),
                lanes: (0..16).map(lane).collect(),
                backlog: Backlog { rows: 12_345, exact: false, late_rows: 0, oldest_age_secs: Some(42.0) },
                rate: Rate { published_per_second: Some(5_000.0), written_per_second: 0.0, drain_secs: Some(2.5) },
                parked: Parked { keys: 1, events: 4, oldest_age_secs: Some(60.0) },
                waiting: Vec::new(),
                partitions: Vec::new(),
                ids_ahead: 12_000_000,
            },
            consumers: Groups {
                groups: vec![Group {
                    group: "outrider-processor".to_owned(),
                    state: Some("Stable".to_owned()),
                    members: vec![Member { member: "a".to_owned(), host: "/127.0.0.1".to_owned(), partitions: 12 }],
                    partitions: (0..12).map(|number| partition(number, i64::from(number) * 10)).collect(),
                    lag: Some(660),
                    lag_secs: Some(0.4),
                    rate_per_second: 1_000.0,
                    blocked: Blocked { retrying: 3, waiting: 0, parked: 2, oldest_age_secs: None },
                }],
                kafka_error: None,
            },
            transactions: Transactions {
                open: vec![Transaction {
                    pid: Some(4_711),
                    gid: None,
                    application: Some("backup".to_owned()),
                    user: Some("alice".to_owned()),
                    database: Some("shop".to_owned()),
                    state: Some("active".to_owned()),
                    holds: "a snapshot".to_owned(),
                    age_secs: 75.0,
                }],
                others_hidden: false,
            },
            slots: Vec::new(),
        }
    }

    #[test]
    fn all_that_matters_is_on_a_page_of_80_by_24() {
        let status = status();
        let row = |stage| Row { stage, rate: Some(1_020.0), median: Some(0.0042), p99: Some(0.0631) };
        let page =
            Page { at: DateTime::UNIX_EPOCH, rows: STAGES.map(row).into(), status: Some(&status), faults: Vec::new() };
        let text = shown(&page);
        for part in [
            "requests               1020       4.2 ms      63.1 ms   the request came",
            "applied                1020       4.2 ms      63.1 ms   the event occurred",
            "outbox  ~12,345 events, oldest 42 s ago; drained in 2.5 s; 12,000,000 ids ahead",
            "group   outrider-processor  Stable, 1 members, 660 records behind, 0.4 s, 1000/s",
            "parked  1 keys by relays, 2 by processors; 3 tried again, 0 wait for an elder",
            "8 lanes: 0-7",
            "7 lanes: 8-14",
            "nobody holds lanes 15",
            "open    75 s  pid 4711  backup alice shop  holds a snapshot",
            "orders 11          outrider-processor             41,822        110",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn lanes_are_told_in_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3 7 9-10");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn without_any_answer_the_page_says_so() {
        let page = Page {
            at: DateTime::UNIX_EPOCH,
            rows: Scrape::default().since(&Scrape::default(), 1.0),
            status: None,
            faults: vec!["Postgres: the database has not answered for 10 s".to_owned()],
        };
        let text = shown(&page);
        for part in STAGES.iter().chain(&["outrider top", "00:00:00 UTC", "q quits", "Postgres: the database"]) {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
