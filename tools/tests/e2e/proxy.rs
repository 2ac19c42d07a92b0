//! An address that leads to a server, to another one later, or to none: as what a fail-over moves.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way on loopback.
pub(super) struct Proxy {
    port: u16,
    target: watch::Sender<Option<u16>>,
}

impl Proxy {
    /// A way to this port.
    pub(super) async fn to(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?.port();
        let (target, watched) = watch::channel(Some(port));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, watched.clone()));
            }
        });
        Ok(Self { port: own, target })
    }

    /// Its own port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections. New ones lead there, or are closed at once.
    pub(super) fn lead_to(&self, port: Option<u16>) {
        self.target.send_replace(port);
    }
}

async fn pass(mut client: TcpStream, mut target: watch::Receiver<Option<u16>>) {
    let Some(port) = *target.borrow_and_update() else { return };
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = target.changed() => {}
    }
}
