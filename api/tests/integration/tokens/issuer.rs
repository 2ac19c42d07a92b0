//! An issuer of tokens: its keys, and the server that shows the public ones.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

// For these tests only: nobody has them who could be harmed.
const RSA: &[u8] = include_bytes!("rsa.pem");
const ED25519: &[u8] = include_bytes!("ed25519.pem");

/// A key, and what is shown of it.
pub struct Signer {
    pub algorithm: Algorithm,
    pub jwk: Value,
    key: EncodingKey,
}

impl Signer {
    pub fn rsa(id: &str) -> Self {
        Self::new(id, Algorithm::RS256, EncodingKey::from_rsa_pem(RSA).expect("a key"))
    }

    /// A new one with each call.
    pub fn ec(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        Self::new(id, Algorithm::ES256, EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key"))
    }

    pub fn ed(id: &str) -> Self {
        Self::new(id, Algorithm::EdDSA, EncodingKey::from_ed_pem(ED25519).expect("a key"))
    }

    fn new(id: &str, algorithm: Algorithm, key: EncodingKey) -> Self {
        let jwk = Jwk::from_encoding_key(&key, algorithm).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = id.into();
        Self { algorithm, jwk, key }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.jwk["kid"].as_str().expect("an id"), claims)
    }

    /// With the id of another key.
    pub fn sign_as(&self, id: &str, claims: &Value) -> String {
        let header = Header { kid: Some(id.to_owned()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).expect("a token")
    }

    /// Header and claims as they are written, whatever they say.
    pub fn sign_texts(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = crypto::sign(message.as_bytes(), &self.key, self.algorithm).expect("a signature");
        format!("{message}.{signature}")
    }

    /// With other claims than were signed.
    pub fn tampered(&self, claims: &Value) -> String {
        let mut others = claims.clone();
        others["sub"] = "somebody else".into();
        let (signed, other) = (self.sign(claims), self.sign(&others));
        let (signed, other): (Vec<&str>, Vec<&str>) = (signed.split('.').collect(), other.split('.').collect());
        [other[0], other[1], signed[2]].join(".")
    }

    /// A token that brings its own key, and names the issuer's.
    pub fn sign_with_a_key_of_its_own(issuers: &Self, claims: &Value) -> String {
        let own = Self::ec("own");
        let header = Header {
            kid: issuers.jwk["kid"].as_str().map(str::to_owned),
            jwk: serde_json::from_value(own.jwk.clone()).ok(),
            jku: Some("https://else.example/keys".to_owned()),
            ..Header::new(own.algorithm)
        };
        encode(&header, claims, &own.key).expect("a token")
    }

    /// The public key of [`Self::rsa`] as people pass it on.
    pub fn rsa_public_pem() -> Vec<u8> {
        include_bytes!("rsa.pub.pem").to_vec()
    }
}

/// A token with a signature that is none.
pub fn unsigned(alg: &str, claims: &Value, signature: &str) -> String {
    let encoded = |value: &Value| {
        // The library encodes claims as it encodes a header.
        let token = encode(&Header::default(), value, &EncodingKey::from_secret(b"any")).expect("a token");
        token.split('.').nth(1).expect("claims").to_owned()
    };
    format!("{}.{}.{signature}", encoded(&json!({ "alg": alg, "typ": "JWT", "kid": "rsa" })), encoded(claims))
}

/// A set of keys, as the issuer shows it.
pub fn set_of(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| &signer.jwk).collect::<Vec<_>>() }).to_string()
}

/// A server that shows a set of keys.
pub struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub async fn start(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let issuer = Self { address, answer: Arc::default(), asked: Arc::default() };
        issuer.serve(200, &set_of(signers));
        let (answer, asked) = (Arc::clone(&issuer.answer), Arc::clone(&issuer.asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let text = answer.lock().expect("no panic").clone();
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        issuer
    }

    /// What it answers from now on.
    pub fn serve(&self, status: u16, body: &str) {
        let length = body.len();
        *self.answer.lock().expect("no panic") =
            format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    }

    pub fn url(&self) -> Url {
        format!("http://{}/keys", self.address).parse().expect("a URL")
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
