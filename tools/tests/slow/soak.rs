//! Half an hour of one trouble after the other: three topics, of which some are broken in turn, and the others must not notice.

mod phases;

use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep, sleep_until};

use crate::harness::broker::{AUTHORIZER, BrokerOptions};
use crate::harness::reader::{Figures, Reader, now_us};
use crate::harness::scene::Scene;
use crate::harness::second_broker::NODE;
use crate::harness::writer::{Load, Writer, Written, together, write_backlog};
use crate::{setting, tell};
use phases::{PHASES, Phase};

/// Length of the whole, in seconds; `SOAK_SECS` in the environment changes it.
const SOAK_SECS: u64 = 1_800;

/// The aggregate types. `beta` has a second replica on the second broker and needs both; `gamma` lies there alone.
const TYPES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Events a second, all types together.
const PER_SEC: u64 = 500;

/// How long a broken topic's events may take once it is well.
const RECOVERY: Duration = Duration::from_secs(15);

/// How often progress is told.
const TELL_INTERVAL: Duration = Duration::from_mins(1);

/// What one phase came to.
struct Finding {
    phase: Phase,
    /// When it was, in microseconds since 1970.
    time: Range<i64>,
    /// Of the worst of the topics that were not broken.
    healthy: Figures,
    /// How long the broken ones' events took after mending; none if they did not come in time.
    recovered: Option<Duration>,
    parked: i64,
}

impl Finding {
    fn is_well(&self) -> bool {
        let Figures { p99_ms, .. } = self.healthy;
        let is_prompt = p99_ms < 1_000 || !self.phase.keeps_others_prompt();
        is_prompt && self.healthy.has_few_repeats() && self.recovered.is_some() && self.parked == 0
    }

    fn line(&self) -> String {
        let Self { healthy, recovered, parked, .. } = self;
        let recovered = recovered.map_or("never".to_owned(), |after| format!("{:.1} s", after.as_secs_f64()));
        format!(
            "{:<28} {:>8} {:>8} {:>8} {:>8} {:>10} {:>7}{}",
            format!("{:?}", self.phase),
            healthy.events,
            healthy.repeats,
            healthy.p99_ms,
            healthy.max_ms,
            recovered,
            parked,
            if self.is_well() { "" } else { "  <-- not as promised" }
        )
    }
}

/// The soak while it runs.
struct Soak {
    scene: Scene,
    writer: Writer,
    /// What others than the writer wrote.
    extra: Vec<Written>,
    begun: Instant,
    told: Instant,
}

impl Soak {
    async fn start() -> Result<Self> {
        let options = BrokerOptions { settings: AUTHORIZER.to_vec(), proxied: true, second: true };
        let scene = Scene::start("the_soak", &options).await?;
        for (of_type, nodes) in TYPES.into_iter().zip([&[1][..], &[1, NODE], &[NODE]]) {
            scene.broker.create_topic(&format!("{of_type}s"), nodes).await?;
        }
        let writer = Writer::start(&scene.database.pool, Load::new(&TYPES, PER_SEC));
        Ok(Self { scene, writer, extra: Vec::new(), begun: Instant::now(), told: Instant::now() })
    }

    /// Waits, and tells how it goes once a minute.
    async fn wait(&mut self, phase: Phase, until: Instant) {
        while Instant::now() < until {
            sleep_until(until.min(self.told + TELL_INTERVAL)).await;
            if self.told.elapsed() >= TELL_INTERVAL {
                self.told = Instant::now();
                let minutes = self.begun.elapsed().as_secs() / 60;
                let figures = self.scene.reader.figures("alphas", now_us() - 60_000_000..i64::MAX);
                tell(&format!("{minutes:>3} min: {phase:?}; alpha's last minute: {figures}"));
            }
        }
    }

    async fn go_through(&mut self, phase: Phase, length: Duration) -> Result<Finding> {
        let (start, begun) = (Instant::now(), now_us());
        phase.begin(&mut self.scene).await?;
        if let Some((load, count)) = phase.backlog() {
            self.extra.push(write_backlog(&self.scene.database.pool, load, count).await?);
        }
        self.wait(phase, start + length / 2).await;
        let meanwhile = together(self.extra.iter().cloned().chain([self.writer.written()]));
        phase.end(&mut self.scene).await?;
        let recovered = self.scene.arrived_within(RECOVERY, &meanwhile).await.ok();
        self.wait(phase, start + length).await;
        let time = begun..now_us();
        let healthy = worst_of_healthy(&self.scene.reader, phase, &time);
        Ok(Finding { phase, time, healthy, recovered, parked: self.scene.parked().await? })
    }
}

/// The figures of the slowest of the topics that a phase did not break.
fn worst_of_healthy(reader: &Reader, phase: Phase, time: &Range<i64>) -> Figures {
    let healthy = TYPES.into_iter().filter(|of_type| !phase.breaks().contains(of_type));
    let figures = healthy.map(|of_type| reader.figures(&format!("{of_type}s"), time.clone()));
    figures.max_by_key(|figures| (figures.p99_ms, figures.repeats)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_topics_notice_nothing_while_others_are_broken_in_turn() -> Result<()> {
    let length = Duration::from_secs(setting("SOAK_SECS", SOAK_SECS)) / u32::try_from(PHASES.len())?;
    let mut soak = Soak::start().await?;
    let mut relay = soak.scene.relay("relay", &[("KAFKA_CREATE_TOPICS", "false")]).await?;
    soak.scene.flows("gammas", 100).await;
    let mut findings = Vec::new();
    for phase in PHASES {
        let finding = soak.go_through(phase, length).await?;
        tell(&finding.line());
        findings.push(finding);
    }
    let Soak { scene, writer, extra, begun, .. } = soak;
    let written = together(extra.into_iter().chain([writer.stop().await?]));
    let complete = scene.arrived_within(RECOVERY, &written).await;
    sleep(Duration::from_secs(1)).await;

    let secs = begun.elapsed().as_secs();
    tell(&format!("\n{secs} s, {PER_SEC} events/s; of the healthy topics, the worst:"));
    tell("phase                          events  repeats   p99 ms   max ms  recovered  parked");
    for finding in &mut findings {
        // By now the last of its events have arrived as well.
        finding.healthy = worst_of_healthy(&scene.reader, finding.phase, &finding.time);
        tell(&finding.line());
    }
    let (lost, out_of_order) = (scene.reader.missing(&written), scene.reader.out_of_order());
    for of_type in TYPES {
        tell(&format!("{of_type}: {}", scene.reader.figures(&format!("{of_type}s"), 0..i64::MAX)));
    }
    tell(&format!("{lost} lost, {out_of_order} out of order"));
    assert_eq!((lost, out_of_order, complete.is_ok()), (0, 0, true), "lost, out of order, complete");
    let bad: Vec<_> = findings.iter().filter(|finding| !finding.is_well()).map(|finding| finding.phase).collect();
    assert_eq!(bad, [], "phases that were not as promised");
    relay.stop().await?;
    Ok(())
}
