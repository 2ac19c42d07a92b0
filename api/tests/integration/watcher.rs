//! A reader of an event stream, as strict as a browser's and a little stricter.

use std::net::SocketAddr;

use serde_json::Value;
use shared::testing::PATIENCE;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::open;

/// One block of the stream, up to its empty line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: Option<Value>,
    pub retry: Option<u64>,
    pub comment: bool,
}

impl Message {
    /// The order and the version that it tells of.
    pub fn change(&self) -> Option<(i64, i64)> {
        let data = self.data.as_ref()?;
        Some((data["order_id"].as_i64()?, data["version"].as_i64()?))
    }
}

/// An open stream.
pub struct Watcher {
    stream: BufReader<TcpStream>,
    pub status: u16,
    pub head: String,
    text: String,
    /// Id of the last block that had one: where to go on from.
    pub last_id: Option<String>,
}

impl Watcher {
    /// Opens one. None: the server takes no connections, or ends before it answers.
    pub async fn try_open(address: SocketAddr, path: &str, last_id: Option<&str>) -> Option<Self> {
        let last = last_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let text = format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept: text/event-stream\r\n{last}\r\n");
        let mut stream = TcpStream::connect(address).await.ok()?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.ok()?;
        Self::answered(stream, last_id).await
    }

    /// Opens one that must be answered.
    pub async fn open(address: SocketAddr, path: &str, last_id: Option<&str>) -> Self {
        Self::open_as(address, path, "", last_id).await
    }

    /// Opens one with credentials, a header that ends in `\r\n`.
    pub async fn open_as(address: SocketAddr, path: &str, credentials: &str, last_id: Option<&str>) -> Self {
        let last = last_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let text = format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept: text/event-stream\r\n{credentials}{last}\r\n");
        let stream = open(address, text.as_bytes()).await;
        let watcher = Self::answered(stream, last_id).await.expect("an answer");
        assert_eq!(watcher.status, 200, "from {last_id:?}: {}", watcher.head);
        assert!(watcher.head.to_lowercase().contains("\r\ncontent-type: text/event-stream\r\n"), "{}", watcher.head);
        watcher
    }

    async fn answered(stream: TcpStream, last_id: Option<&str>) -> Option<Self> {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if timeout(PATIENCE, stream.read_line(&mut head)).await.expect("an answer").ok()? == 0 {
                return None;
            }
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Some(Self { stream, status, head, text: String::new(), last_id: last_id.map(str::to_owned) })
    }

    /// The next block; none at the end of the stream.
    pub async fn next(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.block()).await.expect("the stream goes on")
    }

    /// The next block that tells of a change.
    pub async fn change(&mut self) -> Message {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if message.data.is_some() {
                return message;
            }
        }
    }

    async fn block(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = std::mem::replace(&mut self.text, rest);
                let message = parse(&block[..end]);
                if message.id.is_some() {
                    self.last_id.clone_from(&message.id);
                }
                return Some(message);
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).await.ok().filter(|read| *read > 0)?;
            let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).await.ok()?;
            if size == 0 {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk[..size]).expect("text"));
        }
    }
}

fn parse(block: &str) -> Message {
    let mut message = Message::default();
    for line in block.split('\n') {
        let Some((field, value)) = line.split_once(':') else {
            assert!(line.is_empty(), "a line is a field: {line}");
            continue;
        };
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => message.comment = true,
            "id" => message.id = Some(value.to_owned()),
            "event" => message.event = Some(value.to_owned()),
            "data" => message.data = Some(serde_json::from_str(value).expect("data is JSON")),
            "retry" => message.retry = Some(value.parse().expect("milliseconds")),
            other => panic!("an unknown field: {other}"),
        }
    }
    message
}
