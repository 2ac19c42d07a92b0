//! An API of some years later: it answers with a status that no client of today knows, and with a field more.

use anyhow::Result;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Answers every request with such an order, until it is dropped.
pub(crate) struct NewerApi {
    pub(crate) url: String,
    _tasks: JoinSet<()>,
}

impl NewerApi {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // A client that breaks off fails by itself.
                let _ = answer(&mut stream).await;
            }
        });
        Ok(Self { url, _tasks: tasks })
    }
}

async fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4_096]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let order = json!({
        "ID": 1, "CreatedAt": "2036-11-24T12:00:00.000001Z", "UpdatedAt": "2036-11-24T12:00:00.000001Z", "DeletedAt": null,
        "user_id": 7, "product_id": 42, "quantity": 3, "status": "Shipped", "version": 3, "failure_reason": null,
        "carrier": "pigeon",
    });
    let body = order.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\netag: \"3\"\r\ncache-control: no-store\r\n\
        x-request-id: 1\r\ncontent-security-policy: default-src 'none'\r\nx-content-type-options: nosniff\r\n\
        x-frame-options: DENY\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
