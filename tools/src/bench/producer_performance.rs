//! Kafka's own load generator: what this machine's broker takes at most.

use anyhow::{Context, Result};

use super::ground::Ground;

/// Sends `count` records of 300 bytes with an idempotent producer and returns how many went through in a second.
pub async fn run(ground: &Ground, topic: &str, count: u64) -> Result<f64> {
    let log = ground.folder().join("producer-performance.log");
    let jars = ground.supply.kafka(&ground.folder().join("maven.log")).await?;
    jars.launch("producer-performance", &["-Xmx512m"], "org.apache.kafka.tools.ProducerPerformance")
        .args(["--topic", topic, "--num-records", &count.to_string(), "--record-size", "300", "--throughput", "-1"])
        .args(["--producer-props", &format!("bootstrap.servers={}", ground.brokers)])
        .args(["acks=all", "enable.idempotence=true"])
        .log(&log)
        .run(&ground.supply.reaper)
        .await?;
    let output = std::fs::read_to_string(&log).context("its output is in its log")?;
    rate(&output).with_context(|| format!("no rate in the output of ProducerPerformance:\n{output}"))
}

/// The last line is `N records sent, X records/sec (...)`.
fn rate(output: &str) -> Option<f64> {
    let line = output.lines().rfind(|line| line.contains("records/sec") && line.contains("99.9th"))?;
    let (_, after) = line.split_once("records sent, ")?;
    after.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_the_summary() {
        let output = "251 records sent, 50.1 records/sec (0.01 MB/sec), 3 ms avg latency, 9 ms max latency.\n\
            2000000 records sent, 512345.6 records/sec (146.58 MB/sec), 50.1 ms avg latency, 300.00 ms max latency, 40 ms 50th, 90 ms \
            95th, 100 ms 99th, 120 ms 99.9th.\n";
        assert_eq!(rate(output), Some(512_345.6));
        assert_eq!(rate("nothing"), None);
    }
}
