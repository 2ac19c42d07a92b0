//! A client that sends exactly what it is told, broken or cut off as it may be. One connection a request.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::contract;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header's value, if it is there. `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The names of all headers, in lower case.
    pub fn header_names(&self) -> Vec<String> {
        self.head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0.to_lowercase())).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `type` of the problem that this answer must be, complete and consistent with its status.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        for field in ["title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        }
        let kind = problem["type"].as_str().expect("a problem has a type").to_owned();
        let only_for_now = [429, 503].contains(&self.status) || kind == "/problems/idempotency-in-progress";
        assert_eq!(self.header("retry-after").is_some(), only_for_now, "{self:?}");
        kind
    }

    /// The fields that the problem names.
    pub fn fields(&self) -> Vec<String> {
        let problem = self.json();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["field"].as_str().expect("an error names its field").to_owned()).collect()
    }
}

/// The text of a request; `headers` end in `\r\n` each.
pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}").into_bytes();
    if !body.is_empty() {
        text.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(body);
    text
}

/// An order's request.
pub fn order_request(body: &str) -> Vec<u8> {
    request("POST", "/orders", "content-type: application/json\r\n", body.as_bytes())
}

/// Opens a connection and sends `bytes` on it.
pub async fn open(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the API takes connections");
    stream.write_all(bytes).await.expect("the API reads");
    stream
}

/// Sends `bytes` and reads until the server closes. The answer is one that the description of the API has, or the test fails.
pub async fn send(address: SocketAddr, bytes: Vec<u8>) -> Answer {
    let mut stream = open(address, &bytes).await;
    let mut text = Vec::new();
    // A server that refuses a body may close before it has read all of it, which resets the connection after the answer.
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8(text).expect("answers are text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer has a head: '{text}'"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let answer = Answer { status, head: head.to_owned(), body: body.to_owned() };
    contract::check(&bytes, &answer);
    answer
}
