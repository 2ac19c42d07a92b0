//! Attacks over HTTP/2, by a client that sends the frames that it wants to, whatever was agreed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use shared::testing::{PATIENCE, TestDatabase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Pair, client, edge, url};
use crate::process::{address, program};
use crate::service::Api;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection of HTTP/2 without any rules.
struct Raw {
    stream: TlsStream<TcpStream>,
}

/// What came.
struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Raw {
    /// Connects, and says that each answer's window has `window` bytes.
    async fn connect(pair: &Pair, address: SocketAddr, window: u32) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(pair.der().into()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.expect("ring has them").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake");
        let mut raw = Self { stream };
        raw.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it is read");
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let [a, b, c, d] = window.to_be_bytes();
        assert!(raw.send(SETTINGS, 0, 0, &[0, 4, a, b, c, d]).await);
        raw
    }

    /// Sends a frame; whether it could.
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Asks for `path` on a new stream.
    async fn get(&mut self, stream: u32, path: &str) -> bool {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &head(0x82, path)).await
    }

    /// The next frame; none at the end.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], payload })
    }
}

/// A request's head by HPACK: the method is an index of the static table, the names too, and the values are as they are.
fn head(method: u8, path: &str) -> Vec<u8> {
    let mut head = vec![method, 0x87, 0x04, u8::try_from(path.len()).expect("a short path")];
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(&[0x01, 9]);
    head.extend_from_slice(b"localhost");
    head
}

/// Kilobytes that a process has in memory.
fn resident_kb(process: &tokio::process::Child) -> u64 {
    let path = format!("/proc/{}/status", process.id().expect("it runs"));
    let status = std::fs::read_to_string(path).expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn answers_that_have_no_window_are_given_up_and_cost_little_memory() {
    let database = TestDatabase::create("no_window").await;
    let (pair, folder) = (Pair::new(), tempfile::tempdir().expect("a folder"));
    let files = pair.write(folder.path());
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("DB_ROLE", "outrider_api"),
        ("API_AUTH", "none"),
        ("API_BIND", "127.0.0.1:0"),
        ("ADMIN_BIND", "127.0.0.1:0"),
        ("API_TLS_CERT", files.cert.to_str().expect("text")),
        ("API_TLS_KEY", files.key.to_str().expect("text")),
        ("API_SEND_TIMEOUT_MS", "2000"),
        ("API_KEEP_ALIVE_SECS", "2"),
        ("LOG_FORMAT", "json"),
    ];
    let mut process = program(&variables).spawn().expect("it runs");
    let address = address(&mut process).await;
    let friend = client(&[&pair], address, |builder| builder);
    let served = async || {
        let answer = friend.get(url(address, "/livez")).send();
        let answer = timeout(Duration::from_secs(5), answer).await.expect("an answer soon").expect("an answer");
        assert_eq!(answer.status(), 200);
    };
    served().await;
    let before = resident_kb(&process);
    let attack = |window| {
        let pair = &pair;
        async move {
            let mut raw = Raw::connect(pair, address, window).await;
            let (mut asked, mut refused) = (0, 0);
            let over = Instant::now() + Duration::from_secs(4);
            while Instant::now() < over && raw.get(asked * 2 + 1, "/openapi.json").await {
                asked += 1;
                while let Ok(Some(frame)) = timeout(Duration::from_micros(200), raw.next()).await {
                    refused += u32::from(frame.kind == RST_STREAM);
                }
            }
            (asked, refused)
        }
    };
    // A window of a byte is one that answers begin to be sent for.
    let attacks = futures_util::future::join_all((0..20).map(|index| attack(index % 2)));
    let watching = async {
        let mut most = 0;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            served().await;
            most = most.max(resident_kb(&process));
        }
        most
    };
    let (attacked, most) = tokio::join!(attacks, watching);
    println!("requests and refusals of each: {attacked:?}; {before} kB before, {most} kB at most");
    assert!(attacked.iter().all(|(asked, _)| *asked > 100), "each asked for more than it may");
    assert!(most < before + 64 * 1024, "from {before} to {most} kB");
    served().await;
}

#[tokio::test]
async fn a_connection_that_only_pings_is_closed() {
    let database = TestDatabase::create("only_pings").await;
    let (pair, folder) = (Pair::new(), tempfile::tempdir().expect("a folder"));
    let api = Api::at(database.config("outrider_api"), edge(pair.write(folder.path())), |limits| {
        limits.keep_alive_secs = 2;
    })
    .await;
    let mut raw = Raw::connect(&pair, api.address, 65_535).await;
    assert!(raw.get(1, "/livez").await);
    let start = Instant::now();
    let (mut said_goodbye, mut data) = (false, 0);
    let closing = async {
        loop {
            if !raw.send(PING, 0, 0, b"8 bytes.").await {
                return;
            }
            match timeout(Duration::from_millis(100), raw.next()).await {
                Err(_) => {}
                Ok(None) => return,
                Ok(Some(frame)) => {
                    said_goodbye |= frame.kind == GOAWAY;
                    data += usize::from(frame.kind == DATA && !frame.payload.is_empty());
                    // It answers our pings, and asks whether we are there: we do not say.
                    let _ = frame.flags & ACK;
                }
            }
        }
    };
    timeout(PATIENCE, closing).await.expect("it is closed");
    let took = start.elapsed();
    assert!(said_goodbye && data == 1);
    assert!((Duration::from_millis(1_900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    api.stop().await;
}
