//! As much of HTTP/1.1 as a load generator needs: requests from one buffer, answers into another, and no more work than that.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room that is made before each read, in bytes.
const READ_BYTES: usize = 2_048;

/// The longest head that is read, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A connection that is kept. Its buffer is used again for each answer.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer, as it lies in the buffer of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: &'a [u8],
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(READ_BYTES) })
    }

    /// Sends a request and reads its answer, of which the length must be given.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await.context("the connection was lost")?;
        let head = self.read_head().await?;
        let whole = head.bytes + head.body_bytes.context("the answer does not tell its length")?;
        while self.received.len() < whole {
            self.read_more().await?;
        }
        let body = self.received.get(head.bytes..whole).unwrap_or_default();
        Ok(Answer { status: head.status, body })
    }

    /// Asks for an answer that does not end, and reads its head. Returns the status, and whether it is an event stream.
    pub async fn watch(&mut self, path: &str) -> Result<(u16, bool)> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: outrider\r\naccept: text/event-stream\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await.context("the connection was lost")?;
        let head = self.read_head().await?;
        Ok((head.status, head.event_stream))
    }

    /// Reads until the connection ends and keeps nothing.
    pub async fn drain(mut self) {
        // Thousands of these wait at a time.
        self.received = Vec::new();
        let mut some = [0; 256];
        while self.stream.read(&mut some).await.is_ok_and(|count| count > 0) {}
    }

    async fn read_head(&mut self) -> Result<Head> {
        self.received.clear();
        loop {
            self.read_more().await?;
            if let Some(head) = Head::parse(&self.received)? {
                return Ok(head);
            }
            if self.received.len() > HEAD_BYTES_MAX {
                bail!("the head of an answer does not end");
            }
        }
    }

    async fn read_more(&mut self) -> Result<()> {
        self.received.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.received).await.context("the connection was lost")? {
            0 => bail!("the connection was closed before the answer"),
            _ => Ok(()),
        }
    }
}

/// What matters of an answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    /// How long it is, with the empty line.
    bytes: usize,
    body_bytes: Option<usize>,
    event_stream: bool,
}

impl Head {
    /// `None` when it is not there yet as a whole.
    fn parse(received: &[u8]) -> Result<Option<Self>> {
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let text = received.get(..end).and_then(|head| str::from_utf8(head).ok()).context("the head is no text")?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let mut head = Self {
            status: status.context("this is no answer of HTTP/1.1")?,
            bytes: end + 4,
            body_bytes: None,
            event_stream: false,
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                head.body_bytes = value.trim().parse().ok();
            } else if name.eq_ignore_ascii_case("content-type") {
                head.event_stream = value.trim().starts_with("text/event-stream");
            }
        }
        Ok(Some(head))
    }
}

/// Requests that post orders: each another user's, another product.
#[derive(Debug)]
pub struct Orders {
    batch: usize,
    body: Vec<u8>,
    request: Vec<u8>,
}

impl Orders {
    /// One order a request if `batch` is 1, else so many.
    pub fn new(batch: usize) -> Self {
        Self { batch, body: Vec::new(), request: Vec::new() }
    }

    /// The request of this number, until the next one is asked for.
    pub fn request(&mut self, number: u64) -> &[u8] {
        let Self { batch, body, request } = self;
        body.clear();
        request.clear();
        // Writing into a vector cannot fail.
        if *batch == 1 {
            order(body, number);
        } else {
            for place in 0..*batch {
                body.push(if place == 0 { b'[' } else { b',' });
                order(body, number.wrapping_mul(31).wrapping_add(place.try_into().unwrap_or(0)));
            }
            body.push(b']');
        }
        let path = if *batch == 1 { "/orders" } else { "/orders/batch" };
        let _ = write!(
            request,
            "POST {path} HTTP/1.1\r\nhost: outrider\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        request.extend_from_slice(body);
        request
    }
}

/// Users 1 to 1,000, products 1 to 100: as `pgbench` draws them.
fn order(body: &mut Vec<u8>, number: u64) {
    let (user, product, quantity) = (1 + number % 1_000, 1 + number / 7 % 100, 1 + number % 10);
    let _ = write!(body, "{{\"user_id\":{user},\"product_id\":{product},\"quantity\":{quantity}}}");
}

/// Adds the numbers of the orders that an answer says are accepted to `ids`. Returns how many those were.
pub fn accepted(answer: Answer<'_>, ids: &mut Vec<i64>) -> Result<u64> {
    let text = str::from_utf8(answer.body).context("the answer is no text")?;
    if answer.status == 201 {
        let order = text.strip_prefix("{\"ID\":").context("the answer begins with the order's number")?;
        ids.push(leading_number(order)?);
        return Ok(1);
    }
    let mut count = 0;
    for order in text.split("{\"status\":201,\"order\":{\"ID\":").skip(1) {
        ids.push(leading_number(order)?);
        count += 1;
    }
    Ok(count)
}

fn leading_number(text: &str) -> Result<i64> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end).unwrap_or_default().parse().context("an order's number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() -> Result<()> {
        let answer = b"HTTP/1.1 201 Created\r\nLocation: /orders/7\r\nContent-Length: 8\r\n\r\n{\"ID\":7}";
        assert_eq!(Head::parse(answer.get(..60).unwrap_or_default())?, None);
        let head = Head::parse(answer)?.context("whole")?;
        assert_eq!((head.status, head.body_bytes, head.event_stream), (201, Some(8), false));
        assert_eq!(answer.get(head.bytes..), Some(&b"{\"ID\":7}"[..]));
        let stream = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n";
        let head = Head::parse(stream)?.context("whole")?;
        assert!(head.event_stream && head.body_bytes.is_none());
        assert!(Head::parse(b"SSH-2.0\r\n\r\n").is_err());
        Ok(())
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        for batch in [1, 3] {
            let mut orders = Orders::new(batch);
            let request = String::from_utf8_lossy(orders.request(1_234_567)).into_owned();
            let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.ends_with(&format!("content-length: {}", body.len())), "{request}");
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body.as_array().map_or(1, Vec::len), batch);
        }
    }

    #[test]
    fn the_numbers_of_accepted_orders_are_read_from_the_answers() -> Result<()> {
        let mut ids = Vec::new();
        assert_eq!(accepted(Answer { status: 201, body: b"{\"ID\":7,\"user_id\":1}" }, &mut ids)?, 1);
        let body = b"{\"results\":[{\"status\":201,\"order\":{\"ID\":8,\"status\":\"Pending\"}},{\"status\":503,\"problem\":{\"type\":\"/x\",\"status\":503}},\
            {\"status\":201,\"order\":{\"ID\":9}}]}";
        assert_eq!(accepted(Answer { status: 200, body }, &mut ids)?, 2);
        assert_eq!(ids, [7, 8, 9]);
        assert!(accepted(Answer { status: 201, body: b"{}" }, &mut ids).is_err());
        Ok(())
    }
}
