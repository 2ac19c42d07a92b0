//! A receiver of OTLP over HTTP that takes everything and keeps nothing: so the cost of making and sending spans is measured, and not
//! that of some store for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Nobody sends a head that is longer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The receiver, as long as it is kept.
#[derive(Debug)]
pub struct Sink {
    endpoint: String,
    bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Sink {
    /// Listens on a free port.
    pub async fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the sink")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                // Ends with its connection.
                tokio::spawn(async move { serve(connection, &counted).await });
            }
        });
        Ok(Self { endpoint, bytes, task })
    }

    /// As in `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Bytes of spans since the last call.
    #[must_use]
    pub fn take_bytes(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request after the other with an empty message, which says that all was taken.
async fn serve(mut connection: TcpStream, bytes: &AtomicU64) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(head) = read_head(&mut connection, &mut buffer).await? else { return Ok(()) };
        let length = content_length(&buffer[..head]).context("a request without a length")?;
        while buffer.len() < head + length {
            ensure!(connection.read_buf(&mut buffer).await? > 0, "cut off");
        }
        buffer.drain(..head + length);
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        connection.write_all(answer).await?;
    }
}

/// Reads up to the end of a head, and tells where that is; none at the end of the connection.
async fn read_head(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<usize>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        ensure!(buffer.len() < HEAD_BYTES_MAX, "the head has no end");
        if connection.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let text = str::from_utf8(head).ok()?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    value?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whatever_comes_is_taken_and_counted() -> Result<()> {
        let sink = Sink::open().await?;
        let client = crate::http::client()?;
        for _ in 0..2 {
            let url = format!("{}/v1/traces", sink.endpoint());
            let answer = client.post(url).body(vec![7; 100_000]).send().await?;
            assert!(answer.status().is_success() && answer.bytes().await?.is_empty());
        }
        assert_eq!(sink.take_bytes(), 200_000);
        Ok(())
    }
}
