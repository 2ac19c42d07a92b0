//! Topics that have acknowledged nothing for long: the relay asks the brokers about them, and gives the producer up for those in trouble.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::kafka::TopicHealth;

use super::super::Stop;
use super::Feeder;
use crate::publisher::flow::Slow;
use crate::publisher::outcomes::{Cause, Failure, SILENT, Trouble};

/// Between two questions to the brokers about a topic that is slow.
const CHECK_AGAIN: Duration = Duration::from_millis(600);

/// Topics of which brokers are asked at the same time.
pub(super) const CHECKS_MAX: usize = 16;

/// How long brokers may take to say how such a topic is.
const CHECK_PATIENCE: Duration = Duration::from_millis(750);

/// How long a broker that throttles may leave all requests of a connection unanswered, with no more in flight than the window allows.
const THROTTLED: Duration = Duration::from_millis(2_250);

/// Other topics flow if so many acknowledgements come in a second.
const OTHERS_FLOW_PER_SECOND: f64 = 5.0;

/// What the brokers said of a topic that was slow.
pub(super) struct Checked {
    asked: Instant,
    is_under_way: bool,
    /// What they said last, and when they were asked.
    answer: Option<(Instant, TopicHealth)>,
}

/// What the brokers said of the topic of this name; none if they did not answer.
pub(super) type Answer = (String, Option<TopicHealth>);

impl Feeder {
    /// A topic that has acknowledged nothing for long, while brokers answer: the producer is given up for it once the other topics'
    /// records are acknowledged.
    pub(super) fn look_for_slow_topics(&mut self, now: Instant) -> Result<(), Stop> {
        self.take_answers();
        let mut answered = Vec::new();
        // Brokers are asked before the topic counts as slow, so that their answers are there by then.
        let slow_topics = self.sender.control.slow_topics(self.sender.slow / 2);
        self.sender.outcomes.set_topic_slow(!slow_topics.is_empty());
        for slow in slow_topics {
            let answer = self.check(&slow.topic, now);
            // What was asked before the record was sent says nothing.
            let is_new = |asked: Instant| now.saturating_duration_since(asked) < slow.time;
            if let Some((_, health)) = answer.filter(|(asked, _)| slow.time >= self.sender.slow && is_new(*asked)) {
                answered.push((slow, health));
            }
        }
        // What is slow is not acknowledged in a moment.
        let slow_topics: Vec<String> = answered.iter().map(|(slow, _)| slow.topic.clone()).collect();
        let others_wait = answered.iter().any(|(_, health)| *health == TopicHealth::default());
        let mut in_trouble = Vec::new();
        for (slow, TopicHealth { leaderless, too_few_in_sync, unanswering }) in answered {
            // Replicas come back one partition after the other. As long as some partitions take records, none keeps the others waiting.
            let too_few_in_sync =
                too_few_in_sync.filter(|_| !self.sender.control.flows_to(&slow.topic, self.sender.slow));
            let is_to_blame = leaderless > 0 || too_few_in_sync.is_some() || (!unanswering.is_empty() && others_wait);
            let why = match (too_few_in_sync, unanswering.join(", ")) {
                _ if leaderless > 0 => format!("{leaderless} of its partitions have no leader"),
                (Some(why), _) => why,
                (None, none) if none.is_empty() => SILENT.to_owned(),
                (None, some) => format!("brokers with in-sync replicas of it do not answer: {some}"),
            };
            // While some of its partitions flow, what is slow is given up by the producer in the end.
            let flows = || self.sender.control.flows_to(&slow.topic, THROTTLED);
            if is_to_blame || (!flows() && slow.time >= self.patience(&slow)) {
                in_trouble.push((slow.topic, why));
            }
        }
        if in_trouble.is_empty() {
            return Ok(());
        }
        tracing::debug!(?in_trouble, ?slow_topics, "the producer is given up for topics in trouble");
        self.let_others_end(&slow_topics);
        let troubles = in_trouble.into_iter().map(|(topic, why)| Trouble { topic, cause: Cause::Unavailable(why) });
        Err(Stop::Failed(Failure::Topics(troubles.collect())))
    }

    /// How long a topic may be silent.
    ///
    /// While others flow, not for long. With no word from any broker, longer than one that throttles is silent. One that throttles then
    /// answers a request a second.
    fn patience(&self, slow: &Slow) -> Duration {
        let per_second = f64::from(slow.others) / slow.time.as_secs_f64();
        let factor = if per_second >= OTHERS_FLOW_PER_SECOND {
            1
        } else if slow.silence > THROTTLED {
            5
        } else {
            8
        };
        self.sender.slow * factor
    }

    /// Asks the brokers about a topic that is slow, unless they were asked a moment ago. Returns what they said last, and when they were asked.
    fn check(&mut self, topic: &str, now: Instant) -> Option<(Instant, TopicHealth)> {
        let known = self.checked.get(topic);
        let answer = known.and_then(|checked| checked.answer.clone());
        let rests = answer.is_some() && known.is_some_and(|of| now.saturating_duration_since(of.asked) < CHECK_AGAIN);
        if rests || known.is_some_and(|of| of.is_under_way) {
            return answer;
        }
        self.checked.insert(topic.to_owned(), Checked { asked: now, is_under_way: true, answer: answer.clone() });
        let (topics, answers, checks) =
            (self.sender.topics.clone(), self.answers.0.clone(), Arc::clone(&self.checks_left));
        let topic = topic.to_owned();
        while self.looks.try_join_next().is_some() {}
        self.looks.spawn_on(
            async move {
                let _one = checks.acquire().await;
                let health = topics.health(&topic, CHECK_PATIENCE).await.ok();
                let _ = answers.send((topic, health));
            },
            &self.handle,
        );
        answer
    }

    /// The answers to [`Self::check`].
    fn take_answers(&mut self) {
        for (topic, health) in self.answers.1.try_iter() {
            if let Some(checked) = self.checked.get_mut(&topic) {
                tracing::debug!(
                    messaging.destination.name = topic,
                    asked_ago = ?checked.asked.elapsed(),
                    ?health,
                    "brokers answer about a slow topic"
                );
                checked.is_under_way = false;
                checked.answer = health.map(|health| (checked.asked, health));
            }
        }
    }
}
