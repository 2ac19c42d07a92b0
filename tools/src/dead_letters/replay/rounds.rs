//! Asking for keys at a rate, and waiting for what comes of them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgConnection;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::dead_letters::store::WaitingKey;
use crate::dead_letters::store::requests::{Answer, Asker, ask, take_answers};
use crate::parked::list::printable;

/// Keys in one statement.
const CHUNK: usize = 500;

/// Keys that are asked for and not answered, so that a processor's looks at them stay short.
const OPEN_MAX: usize = 5_000;

/// How often answers are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// A processor looks twice a second: one that has not answered after this may not be there.
const HINT: Duration = Duration::from_secs(5);

/// One way through all keys.
#[derive(Debug)]
pub struct Round<'a> {
    /// The keys, in the order in which they are asked for.
    pub keys: &'a [WaitingKey],
    /// Whether it is all rolled back.
    pub is_dry_run: bool,
    /// Keys a second.
    pub rate: Option<u32>,
    /// How long no answer at all is waited for.
    pub patience: Duration,
    /// Who asks.
    pub asker: Asker<'a>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Keys that a processor tried.
    pub answered: usize,
    /// Records that were applied.
    pub applied: i64,
    /// Keys of which something waits, by their place.
    pub still_waiting: Vec<(usize, Answer)>,
    /// Keys that no processor tried.
    pub untaken: usize,
}

impl Round<'_> {
    /// Asks for all keys, and waits for the answers for as long as some come.
    pub async fn carry_out(&self, connection: &mut PgConnection) -> Result<Outcome> {
        let bar = ProgressBar::new(u64::try_from(self.keys.len()).unwrap_or(u64::MAX)).with_style(style());
        let mut outcome = Outcome::default();
        // The place of each key that is asked for and not answered.
        let mut open: HashMap<i64, usize> = HashMap::new();
        let (mut asked, begun, mut last_answer, mut hinted) = (0, Instant::now(), Instant::now(), false);
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Ends: each round takes an answer, or the patience runs out.
        loop {
            ticks.tick().await;
            if open.is_empty() {
                last_answer = Instant::now();
            }
            asked = self.ask_on(connection, &mut open, asked, begun.elapsed()).await?;
            let answers = if open.is_empty() { Vec::new() } else { self.answers(connection, &open).await? };
            for answer in answers {
                let Some(place) = open.remove(&answer.id) else { continue };
                (last_answer, hinted) = (Instant::now(), false);
                outcome.answered += 1;
                outcome.applied += answer.applied;
                if answer.waiting > 0 {
                    outcome.still_waiting.push((place, answer));
                }
                bar.inc(1);
            }
            if open.is_empty() && asked == self.keys.len() {
                break;
            }
            if last_answer.elapsed() >= self.patience {
                break;
            }
            if last_answer.elapsed() >= HINT && !hinted && !open.is_empty() {
                hinted = true;
                bar.suspend(|| eprintln!("{}", self.hint(&open)));
            }
        }
        bar.finish_and_clear();
        outcome.untaken = self.keys.len() - outcome.answered;
        outcome.still_waiting.sort_unstable_by_key(|(place, _)| *place);
        Ok(outcome)
    }

    /// Asks for as many further keys as may be asked for after `elapsed`. Returns how many have been asked for in all.
    async fn ask_on(
        &self,
        connection: &mut PgConnection,
        open: &mut HashMap<i64, usize>,
        mut asked: usize,
        elapsed: Duration,
    ) -> Result<usize> {
        let allowed = allowed(self.rate, elapsed).min(self.keys.len());
        while asked < allowed && open.len() < OPEN_MAX {
            let chunk = &self.keys[asked..allowed.min(asked + CHUNK)];
            let ids = ask(connection, chunk, self.is_dry_run, self.asker).await?;
            open.extend(ids.into_iter().zip(asked..));
            asked += chunk.len();
        }
        Ok(asked)
    }

    async fn answers(&self, connection: &mut PgConnection, open: &HashMap<i64, usize>) -> Result<Vec<Answer>> {
        let ids: Vec<i64> = open.keys().copied().collect();
        Ok(take_answers(connection, &ids, 1_000).await?)
    }

    fn hint(&self, open: &HashMap<i64, usize>) -> String {
        let places = open.values().filter_map(|place| self.keys.get(*place));
        let partitions: BTreeSet<(&str, &str, i32)> =
            places.map(|key| (key.group_id.as_str(), key.topic.as_str(), key.partition)).collect();
        let mut names: Vec<String> = partitions
            .iter()
            .take(5)
            .map(|(group, topic, partition)| format!("{}/{partition} of {}", printable(topic), printable(group)))
            .collect();
        if partitions.len() > names.len() {
            names.push(format!("{} more", partitions.len() - names.len()));
        }
        format!(
            "no processor has answered for {} s: is one running that has {}? Waiting for {} s in all; Ctrl-C takes the requests back",
            HINT.as_secs(),
            names.join(", "),
            self.patience.as_secs()
        )
    }
}

/// How many keys may have been asked for after `elapsed`.
fn allowed(rate: Option<u32>, elapsed: Duration) -> usize {
    let Some(rate) = rate else { return usize::MAX };
    let due = elapsed.as_millis().saturating_mul(rate.into()) / 1_000;
    usize::try_from(due).unwrap_or(usize::MAX).max(1)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} keys, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_keys_are_asked_for_than_the_rate_allows() {
        let after = |millis| allowed(Some(20), Duration::from_millis(millis));
        assert_eq!([0, 99, 100, 1_000, 3_000].map(after), [1, 1, 2, 20, 60]);
        assert_eq!(allowed(None, Duration::ZERO), usize::MAX);
    }
}
