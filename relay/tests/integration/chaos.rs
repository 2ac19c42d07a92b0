//! Several relays that are killed and frozen at random under writers that do everything writers may do.
//!
//! `CHAOS_SEED=17 cargo dev test -p relay --test integration -- chaos` has the same relays killed and frozen after the same times again;
//! what else happens meanwhile is the machine's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use sqlx::Acquire;

use crate::support::{Fixture, Process, Record, all_settled};

const KEYS: usize = 300;
const WRITERS: u64 = 5;
const RELAYS: usize = 3;

/// How long relays are killed and frozen.
const LENGTH: Duration = Duration::from_secs(22);

/// Small reads, so that much is cut off; the times are those of [`Fixture::settings`].
const SETTINGS: [(&str, &str); 3] =
    [("RELAY_LANE_ROWS_MAX", "20"), ("RELAY_LATE_ROWS_MAX", "10"), ("RELAY_SETTLE_MS", "100")];

/// `RELAY_MESSAGE_TIMEOUT_MS` of [`Fixture::settings`]: as long as a record may wait in a relay before it is frozen.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long the worst instant of a relay that wakes may last on a busy machine: until it has noticed that its records are too old.
const WORST_INSTANT: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_reordered_while_relays_are_killed_and_frozen_at_random() {
    let seed = std::env::var("CHAOS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("CHAOS_SEED={seed}");
    let fixture = Arc::new(Fixture::new("nothing_is_lost_while_killed_and_frozen").await);
    make_things(&fixture).await;
    let writing = Arc::new(AtomicBool::new(true));
    let undone = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (fixture, writing, undone) = (Arc::clone(&fixture), Arc::clone(&writing), Arc::clone(&undone));
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (number + 1));
            tokio::spawn(async move {
                while writing.load(Ordering::Relaxed) {
                    undone.fetch_add(write(&fixture, &mut rng).await, Ordering::Relaxed);
                }
            })
        })
        .collect();

    let mut nemesis = Nemesis::new(&fixture, seed);
    nemesis.rage(LENGTH).await;
    writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    nemesis.relent();
    assert!(undone.load(Ordering::Relaxed) > 0, "something was rolled back");

    let versions = versions_of_things(&fixture).await;
    let total: i64 = versions.values().sum();
    let records = fixture.published(usize::try_from(total).unwrap()).await;
    all_settled(&fixture).await;
    nemesis.assert_in_order(&records, &versions);
    assert_only_committed(&fixture, &records).await;
}

async fn make_things(fixture: &Fixture) {
    for sql in [
        "CREATE TABLE things (id text PRIMARY KEY, version bigint NOT NULL)",
        "INSERT INTO things SELECT 'k' || i, 0 FROM generate_series(0, 299) i",
    ] {
        sqlx::query(sql).execute(&fixture.database.pool).await.unwrap();
    }
}

async fn versions_of_things(fixture: &Fixture) -> HashMap<String, i64> {
    let versions: Vec<(String, i64)> =
        sqlx::query_as("SELECT id, version FROM things").fetch_all(&fixture.database.pool).await.unwrap();
    assert_eq!(versions.len(), KEYS);
    versions.into_iter().collect()
}

/// What was rolled back is on no topic, and nothing else that the outbox does not hold.
async fn assert_only_committed(fixture: &Fixture, records: &[Record]) {
    let committed: Vec<String> =
        sqlx::query_scalar("SELECT event_id::text FROM outbox").fetch_all(&fixture.database.pool).await.unwrap();
    let committed: HashSet<String> = committed.into_iter().collect();
    let published: HashSet<String> = records.iter().map(|record| record.event_id.clone()).collect();
    assert_eq!(published.difference(&committed).count(), 0, "events that were rolled back and published");
    assert_eq!(committed.difference(&published).count(), 0, "events that were not published");
}

/// One transaction that changes one to eight things, each under a savepoint that may be rolled back, and that may stay open for longer than
/// a lease. Returns how many events it has undone.
async fn write(fixture: &Fixture, rng: &mut ChaCha8Rng) -> u64 {
    let mut connection = fixture.database.pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let mut chosen: Vec<usize> = (0..rng.random_range(1..=8)).map(|_| rng.random_range(0..KEYS)).collect();
    // In one order, or writers would deadlock.
    chosen.sort_unstable();
    chosen.dedup();
    let (mut done, mut undone) = (0, 0);
    for key in chosen {
        let mut savepoint = transaction.begin().await.unwrap();
        let key = format!("k{key}");
        let version: i64 =
            sqlx::query_scalar("UPDATE things SET version = version + 1 WHERE id = $1 RETURNING version")
                .bind(&key)
                .fetch_one(&mut *savepoint)
                .await
                .unwrap();
        fixture.insert(&mut savepoint, &key, version).await;
        if rng.random_bool(0.2) {
            savepoint.rollback().await.unwrap();
            undone += 1;
        } else {
            savepoint.commit().await.unwrap();
            done += 1;
        }
    }
    let hold_ms = match rng.random_range(0..400) {
        0 => rng.random_range(1_000..4_000),
        1..20 => rng.random_range(1..300),
        _ => rng.random_range(0..4),
    };
    tokio::time::sleep(Duration::from_millis(hold_ms)).await;
    if rng.random_bool(0.1) {
        transaction.rollback().await.unwrap();
        return undone + done;
    }
    transaction.commit().await.unwrap();
    undone
}

/// The relays, and what was done to them.
struct Nemesis<'a> {
    fixture: &'a Fixture,
    rng: ChaCha8Rng,
    relays: Vec<(String, Process)>,
    relays_made: u32,
    /// Which relay was frozen, from when to when, in milliseconds since 1970.
    frozen: Vec<(String, i64, i64)>,
}

impl<'a> Nemesis<'a> {
    fn new(fixture: &'a Fixture, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut nemesis = Self { fixture, rng, relays: Vec::new(), relays_made: 0, frozen: Vec::new() };
        for _ in 0..RELAYS {
            nemesis.add();
        }
        nemesis
    }

    /// Starts a relay that signs its records with a name of its own.
    fn add(&mut self) {
        self.relays_made += 1;
        let name = format!("/relay-{}", self.relays_made);
        let settings: Vec<(&str, &str)> = SETTINGS.into_iter().chain([("RELAY_SOURCE", name.as_str())]).collect();
        let process = self.fixture.process(&settings);
        self.relays.push((name, process));
    }

    async fn rage(&mut self, length: Duration) {
        let end = tokio::time::Instant::now() + length;
        while tokio::time::Instant::now() < end {
            self.pause(100..900).await;
            let victim = self.rng.random_range(0..self.relays.len());
            match self.rng.random_range(0..10) {
                0..3 => {
                    self.relays.remove(victim).1.kill();
                    self.add();
                }
                3 => {
                    let (_, process) = self.relays.remove(victim);
                    process.signal(Signal::TERM);
                    self.add();
                    // It ends when all of it is acknowledged; killed amid that, it is one more that was.
                    self.pause(0..800).await;
                }
                // Two at once may leave the third with everything.
                4 => {
                    let other = (victim + 1) % self.relays.len();
                    self.freeze(&[victim, other], 200..2_000).await;
                }
                // Some for longer than a lease: their lanes are another's when they wake.
                5..8 => self.freeze(&[victim], 3_200..5_500).await,
                _ => self.freeze(&[victim], 50..2_500).await,
            }
        }
    }

    async fn freeze(&mut self, victims: &[usize], ms: std::ops::Range<u64>) {
        let since = now_ms();
        for victim in victims {
            self.relays[*victim].1.signal(Signal::STOP);
        }
        self.pause(ms).await;
        for victim in victims {
            let (name, process) = &self.relays[*victim];
            process.signal(Signal::CONT);
            self.frozen.push((name.clone(), since, now_ms()));
        }
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let pause = self.rng.random_range(ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// From here on nothing goes wrong; one relay more than those that may be in any state.
    fn relent(&mut self) {
        self.add();
    }

    /// Every key has its versions 1 to the last, and they first appear in this order. Left out are records that overtook an elder and may
    /// have: those that a relay had taken in hand before it was frozen, or in the instant in which it woke. A relay that was not frozen
    /// overtakes nothing, and what was overtaken has to follow in its place.
    fn assert_in_order(&self, records: &[Record], versions: &HashMap<String, i64>) {
        let mut seen: HashMap<&str, i64> = HashMap::new();
        let mut excused = 0;
        for record in records {
            let seen = seen.entry(&record.key).or_default();
            if record.version <= *seen + 1 {
                *seen = (*seen).max(record.version);
                continue;
            }
            assert!(
                self.may_overtake(record),
                "version {} of {} comes after {seen}, from {} at {}; frozen were {:?}",
                record.version,
                record.key,
                record.headers["ce_source"],
                record.timestamp_ms,
                self.frozen
            );
            excused += 1;
        }
        for (key, version) in versions {
            assert_eq!(seen.get(key.as_str()).copied().unwrap_or(0), *version, "last version of {key} in its place");
        }
        println!("{} records of {} events, {excused} overtook", records.len(), versions.values().sum::<i64>());
    }

    /// Whether the record is of a relay that was frozen while it had it in hand. Its time is that at which it was handed to the producer.
    fn may_overtake(&self, record: &Record) -> bool {
        let source = record.headers["ce_source"].split('/').nth(1).unwrap_or_default();
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap();
        self.frozen.iter().any(|(relay, since, until)| {
            relay.trim_start_matches('/') == source
                && (since - ms(MESSAGE_TIMEOUT)..until + ms(WORST_INSTANT)).contains(&record.timestamp_ms)
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "held against the times of records, and no lease is involved")]
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    i64::try_from(since.as_millis()).expect("few")
}
