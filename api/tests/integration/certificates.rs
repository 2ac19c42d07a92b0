//! Certificates of the tests' own, and clients that trust nobody else's.

use std::net::SocketAddr;
use std::path::Path;

use api::edge::settings::Edge;
use api::tls::{Files, Tls};
use rcgen::{CertifiedKey, KeyPair};
use reqwest::tls::TlsInfo;
use reqwest::{Certificate, Client, ClientBuilder, Response};

/// A certificate for `localhost`, and its key.
pub struct Pair {
    pub cert: String,
    pub key: String,
    der: Vec<u8>,
}

impl Pair {
    pub fn new() -> Self {
        let CertifiedKey::<KeyPair> { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        Self { cert: cert.pem(), key: signing_key.serialize_pem(), der: cert.der().to_vec() }
    }

    /// The certificate as TLS sends it.
    pub fn der(&self) -> Vec<u8> {
        self.der.clone()
    }

    /// Writes both files.
    pub fn write(&self, folder: &Path) -> Files {
        let files = Files { cert: folder.join("tls.crt"), key: folder.join("tls.key") };
        std::fs::write(&files.cert, &self.cert).expect("a file can be written");
        std::fs::write(&files.key, &self.key).expect("a file can be written");
        files
    }

    /// Whether an answer came over a connection that was made with this certificate.
    pub fn is_of(&self, answer: &Response) -> bool {
        let info = answer.extensions().get::<TlsInfo>().expect("it came over TLS");
        info.peer_certificate() == Some(&self.der)
    }
}

/// What an API needs to be reached with the certificate in these files.
pub fn edge(files: Files) -> Edge {
    Edge { tls: Some(Tls::open(files).expect("the pair is good")), ..Edge::default() }
}

/// A client that trusts these certificates, goes to `address` for `https://localhost`, and keeps its connections.
pub fn client(trusted: &[&Pair], address: SocketAddr, change: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
    // Asked for again it fails, and the first answer stays.
    shared::crypto::install();
    let trusted = trusted.iter().map(|pair| Certificate::from_pem(pair.cert.as_bytes()).expect("PEM"));
    let builder = Client::builder().no_proxy().tls_certs_only(trusted).tls_info(true).resolve("localhost", address);
    change(builder).build().expect("a client")
}

/// The URL of a path behind [`client`].
pub fn url(address: SocketAddr, path: &str) -> String {
    format!("https://localhost:{}{path}", address.port())
}
