//! Which brokers answer at all.
//!
//! A broker that stands still keeps its connections, and stays the leader and an in-sync replica of its partitions until the controller misses
//! it: nine seconds by default. Meanwhile, no partition of which it has an in-sync replica acknowledges anything (`acks=all`), and the leader
//! answers nothing else on the connection that waits for it. To the producer that looks like a broker that throttles.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Brokers that are asked at once. More are taken to answer.
const BROKERS_MAX: usize = 32;

/// `ApiVersions` in version 0, by the client id `outrider`. A broker answers it to anybody. One that wants TLS ends the connection instead.
const QUESTION: &[u8] = b"\0\0\0\x12\0\x12\0\0\0\0\0\0\0\x08outrider";

/// Those of `brokers` (`host:port`) that do not answer within `patience`, in their order.
pub(super) async fn unanswering(brokers: Vec<String>, patience: Duration) -> Vec<String> {
    let mut asked = JoinSet::new();
    for (place, broker) in brokers.into_iter().take(BROKERS_MAX).enumerate() {
        asked.spawn(async move {
            let answers = matches!(timeout(patience, answers(&broker)).await, Ok(Ok(())));
            (!answers).then_some((place, broker))
        });
    }
    let mut silent: Vec<(usize, String)> = asked.join_all().await.into_iter().flatten().collect();
    silent.sort_unstable();
    silent.into_iter().map(|(_, broker)| broker).collect()
}

/// Resolves when the process behind the port has said something, or has ended the connection: either way it is at work.
async fn answers(broker: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(broker).await?;
    connection.write_all(QUESTION).await?;
    match connection.read(&mut [0; 64]).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn whoever_stands_still_or_is_away_does_not_answer() {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (still, ends, away) = (listen().await, listen().await, listen().await);
        let address = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
        let brokers = vec![address(&still), address(&ends), address(&away)];
        drop(away);
        // The system takes connections for a process that stands still.
        let ends = tokio::spawn(async move { drop(ends.accept().await) });
        let silent = unanswering(brokers.clone(), Duration::from_millis(300)).await;
        assert_eq!(silent, [brokers[0].clone(), brokers[2].clone()]);
        ends.await.expect("it has ended the connection");
    }
}
