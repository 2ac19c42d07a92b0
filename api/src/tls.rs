//! TLS on the API's port: the certificate and its key, which are read anew whenever their files change.
//!
//! Connections that are open keep what they began with. A pair that cannot be used, since it is half written or does not fit, changes
//! nothing: the one before it stays. The admin port has no TLS: it is for the machine and the cluster that the service runs in.

mod expiry;
mod files;
mod watch;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shared::config::ConfigError;

pub use files::Files;
use files::{Contents, Fault};
pub use watch::watch;

/// What a handshake is made with. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    files: Files,
    identity: RwLock<Identity>,
}

/// A certificate with its key.
struct Identity {
    /// What it was read from: whether the files have changed is told by all of what they hold, since a time can stay the same.
    contents: Contents,
    key: Arc<CertifiedKey>,
    expires: Option<DateTime<Utc>>,
}

impl Identity {
    fn of(files: &Files, contents: Contents) -> Result<Self, Fault> {
        let key = contents.certified(files)?;
        let expires = key.end_entity_cert().ok().and_then(|certificate| expiry::not_after(certificate));
        Ok(Self { contents, key: Arc::new(key), expires })
    }
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// When they cannot be used; the error names the variable of the one at fault.
    pub fn open(files: Files) -> Result<Self, ConfigError> {
        let identity = files.read().and_then(|contents| Identity::of(&files, contents))?;
        Ok(Self(Arc::new(Inner { files, identity: RwLock::new(identity) })))
    }

    /// TLS 1.2 and 1.3, by ring; HTTP/2 for those who ask for it.
    ///
    /// # Errors
    /// None: ring has ciphers for both versions.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        // With a provider that is named, nothing depends on whether the process has a default one.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions)?;
        let resolver = Arc::clone(&self.0) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// When the certificate ends, if it says so in a way that we can read.
    #[must_use]
    pub fn expires(&self) -> Option<DateTime<Utc>> {
        self.0.read(|identity| identity.expires)
    }

    /// Takes the pair in the files from now on, if it is another one. Returns whether it is.
    fn look(&self) -> Result<bool, Fault> {
        let contents = self.0.files.read()?;
        if self.0.read(|identity| identity.contents == contents) {
            return Ok(false);
        }
        let identity = Identity::of(&self.0.files, contents)?;
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(true)
    }
}

impl Inner {
    fn read<T>(&self, of: impl FnOnce(&Identity) -> T) -> T {
        // Nothing that is done under the lock leaves the pair half changed.
        of(&self.identity.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Inner {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read(|identity| Arc::clone(&identity.key)))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
