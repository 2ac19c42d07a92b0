//! A way to Postgres that can be cut, or frozen.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Bytes go through.
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay, and nothing comes through: as when a machine is gone.
    Frozen,
}

/// A proxy in front of one server.
pub struct Proxy {
    pub address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Proxy {
    /// Starts one, open.
    pub async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (way, watched) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target.clone(), watched.clone()));
            }
        });
        Self { address, way }
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn pass(mut client: TcpStream, target: String, mut way: watch::Receiver<Way>) {
    if *way.borrow_and_update() == Way::Open {
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = way.changed() => {}
        }
    }
    // A frozen connection stays frozen: the way back is a new one.
    if *way.borrow() == Way::Frozen {
        let _ = way.changed().await;
    }
}
