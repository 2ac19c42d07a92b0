//! How far somebody has come in the stream of all transitions, in a form that a late commit cannot slip past, and that any API process
//! can go on from. Pure.
//!
//! Ids of the outbox are given out when a row is inserted, and rows appear when their transaction commits, so an id alone says nothing of what
//! was seen. A cursor therefore names *snapshots*: a row was handed out if the snapshot `seen` sees its transaction. The next rows
//! are those that a later snapshot, `next`, sees and `seen` does not, in the order of their ids; within them, `after` is the last one that was handed
//! out. When all of them are, `next` takes the place of `seen`. Whoever resumes reads exactly what lies between, however many
//! processes or restarts later, and rows that were committed late are in it like any others.
//!
//! The order is right for each order: by the append rule, a later event of an order is inserted, with a higher id, after the earlier one's
//! transaction has committed; so every snapshot that sees the later one sees the earlier one.

use std::fmt::{self, Write as _};

use super::snapshot::Snapshot;

/// The longest text that is read as a cursor, in bytes.
pub(super) const TEXT_MAX: usize = 8_192;

/// How far somebody has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Which database the transaction ids are of.
    pub cluster: u64,
    /// Rows up to this id were handed out, whatever transaction they are of. Only tells whether dropped partitions are missed.
    pub low: i64,
    /// The highest id that `seen` saw, roughly. Decides over nothing but which index is used for which rows.
    pub position: i64,
    /// What was handed out before.
    pub seen: Snapshot,
    /// The rows that are being handed out, if not all of them have been.
    pub part: Option<Part>,
}

/// Some of the rows that `next` sees and `seen` does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which rows.
    pub next: Snapshot,
    /// Id of the last of them that was handed out.
    pub after: i64,
}

impl Cursor {
    /// Reads what [`Display`](fmt::Display) writes. Only the form is checked.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT_MAX {
            return None;
        }
        let mut fields = text.split('.');
        let cluster = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (low, position) = (number(fields.next()?)?, number(fields.next()?)?);
        let seen = snapshot(fields.next()?)?;
        let part = match fields.next() {
            None => None,
            Some(text) => {
                let next = snapshot(text)?;
                // Two fields that speak of one server at two moments.
                if !next.sees_all_of(&seen) {
                    return None;
                }
                Some(Part { next, after: number(fields.next()?)? })
            }
        };
        fields.next().is_none().then_some(Self { cluster, low, position, seen, part })
    }

    /// The latest snapshot that it speaks of.
    #[must_use]
    pub fn latest(&self) -> &Snapshot {
        self.part.as_ref().map_or(&self.seen, |part| &part.next)
    }

    /// What the cursors after rows that `next` sees have in common.
    #[must_use]
    pub fn until(&self, next: &Snapshot) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{}.", Whole(self));
        let _ = write_snapshot(&mut text, next);
        text
    }
}

/// A number as it is written: hexadecimal digits, nothing else.
fn number(text: &str) -> Option<i64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { i64::from_str_radix(text, 16).ok() } else { None }
}

fn snapshot(text: &str) -> Option<Snapshot> {
    let mut numbers = text.split('_').map(number);
    let xmax = numbers.next()??;
    // From the latest to the earliest, each by how far it is behind xmax.
    let mut running = numbers.map(|behind| xmax.checked_sub(behind?)).collect::<Option<Vec<i64>>>()?;
    running.reverse();
    Snapshot::new(xmax, running)
}

fn write_snapshot(out: &mut impl fmt::Write, snapshot: &Snapshot) -> fmt::Result {
    write!(out, "{:x}", snapshot.xmax)?;
    snapshot.running.iter().rev().try_for_each(|txid| write!(out, "_{:x}", snapshot.xmax - txid))
}

struct Whole<'a>(&'a Cursor);

impl fmt::Display for Whole<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cursor { cluster, low, position, seen, .. } = self.0;
        write!(out, "{cluster:x}.{low:x}.{position:x}.")?;
        write_snapshot(out, seen)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            None => Whole(self).fmt(out),
            Some(part) => write!(out, "{}.{:x}", self.until(&part.next), part.after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Snapshot {
        Snapshot::parse(text).expect("a snapshot")
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let whole = Cursor { cluster: 0xfeed, low: 7, position: 300, seen: of("10:20:10,14"), part: None };
        assert_eq!(whole.to_string(), "feed.7.12c.14_6_a");
        let part = Some(Part { next: of("14:25:14,22"), after: 301 });
        let within = Cursor { part, ..whole.clone() };
        assert_eq!(within.to_string(), "feed.7.12c.14_6_a.19_3_b.12d");
        for cursor in [whole, within] {
            assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let long = format!("1.1.1.ffff{}", "_1".repeat(TEXT_MAX));
        let texts = [
            "",
            "7",
            "1.2.3",
            "1.2.3.",
            "1.2.3.+4",
            "1.2.3.-4",
            "1.2.3.4.5",
            "1.2.3.4.5.",
            "1.2.3.4.5.6.7",
            "x.2.3.4",
            "1.2.3.4_4",
            "1.2.3.9_2_1",
            "1.2.3.9.8.1",
            "1.2.3.9.9_2.1",
            "1.ffffffffffffffff.3.4",
            "1.2.3.4 ",
            &long,
        ];
        for text in texts {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
        assert!(Cursor::parse("1.2.3.9_1_2").is_some());
    }
}
