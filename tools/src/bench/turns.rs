//! Three ways of doing the same, by turns.

use anyhow::Result;

use super::figure::median;

/// The ways: the one that the others are compared with comes first.
pub const WAYS: usize = 3;

/// Measures the rate of each way in each round; `rate` gets the numbers of the round and of the way. Each begins as many rounds as the others, at
/// least `rounds` in all: a database is slower the more is in it, and Kafka gets faster for a while. Returns by how much the second
/// and the third are slower than the first, in percent: the medians of the rounds.
pub async fn slower(rounds: usize, mut rate: impl AsyncFnMut(usize, usize) -> Result<f64>) -> Result<[f64; WAYS - 1]> {
    let mut slower = [Vec::new(), Vec::new()];
    for round in 0..rounds.next_multiple_of(WAYS) {
        let mut rates = [0.0; WAYS];
        for turn in 0..WAYS {
            let way = (round + turn) % WAYS;
            rates[way] = rate(round, way).await?;
        }
        let [first, others @ ..] = rates;
        for (slower, other) in slower.iter_mut().zip(others) {
            slower.push((1.0 - other / first) * 100.0);
        }
    }
    Ok(slower.map(|slower| median(&slower)))
}
