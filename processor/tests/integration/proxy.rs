//! A way to Postgres that can be cut at a given moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Pass,
    /// The first COMMIT reaches the server, its answer does not come back. Then they pass.
    LoseAnswer,
    /// The first COMMIT does not reach the server. Then they pass.
    LoseCommit,
    /// They are cut, and new ones too.
    Away,
}

/// A way to Postgres.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// How often the connections that there were have fallen silent.
    silences: watch::Sender<u32>,
    refused: Arc<AtomicUsize>,
}

impl Proxy {
    /// One that leads to the server of `url`.
    pub async fn to(url: &str) -> Self {
        let server = url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("a host and port").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (mode, refused) = (watch::Sender::new(Mode::Pass), Arc::new(AtomicUsize::new(0)));
        let silences = watch::Sender::new(0);
        let address = listener.local_addr().expect("bound");
        let proxy = Self { address, mode: mode.clone(), silences: silences.clone(), refused: Arc::clone(&refused) };
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                if *mode.borrow() == Mode::Away {
                    refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let mut client = client;
                let mut server = TcpStream::connect(&server).await.expect("the server");
                let mut silences = silences.subscribe();
                let mode = mode.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        // Neither end hears of the other again, and neither is closed.
                        Ok(()) = silences.changed() => std::future::pending().await,
                        () = carry(&mut client, &mut server, mode) => (),
                    }
                });
            }
        });
        proxy
    }

    /// The same database by this way.
    pub fn url(&self, url: &str) -> String {
        let (user, rest) = url.split_once('@').expect("a user");
        let (_, name) = rest.split_once('/').expect("a database");
        format!("{user}@{}/{name}", self.address)
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// As if the host behind it had vanished, and another one had its address at once: the connections that there are carry nothing any
    /// more, and are not closed; new ones pass.
    pub fn fall_silent(&self) {
        self.silences.send_modify(|silences| *silences += 1);
    }

    /// Whether the cut that was asked for has happened.
    pub fn has_cut(&self) -> bool {
        *self.mode.borrow() == Mode::Pass
    }

    /// Connections that were refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Carries bytes both ways until an end closes or the connection is cut.
async fn carry(client: &mut TcpStream, server: &mut TcpStream, mode: watch::Sender<Mode>) {
    let mut changed = mode.subscribe();
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            () = async { drop(changed.wait_for(|mode| *mode == Mode::Away).await) } => return,
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let chunk = &from_client[..count];
                let cut = chunk.windows(7).any(|bytes| bytes == b"COMMIT\0").then(|| {
                    let mut found = Mode::Pass;
                    mode.send_if_modified(|mode| {
                        found = *mode;
                        let cut = matches!(found, Mode::LoseAnswer | Mode::LoseCommit);
                        if cut {
                            *mode = Mode::Pass;
                        }
                        cut
                    });
                    found
                });
                if cut == Some(Mode::LoseCommit) || server.write_all(chunk).await.is_err() {
                    return;
                }
                if cut == Some(Mode::LoseAnswer) {
                    // The answer says that it has happened.
                    let _ = server.read(&mut from_server).await;
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&from_server[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
