//! The two files, and what can be wrong with them.

use std::path::{Path, PathBuf};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use shared::config::ConfigError;

const CERT: &str = "API_TLS_CERT";
const KEY: &str = "API_TLS_KEY";

/// Where the certificate and its key are, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, and behind it those that lead to its authority.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

/// What both files held at one look.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// What is wrong with a file. The text names it, and shows nothing of what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(super) struct Fault {
    variable: &'static str,
    problem: String,
}

impl From<Fault> for ConfigError {
    fn from(fault: Fault) -> Self {
        Self::new(fault.variable, fault.problem)
    }
}

impl Files {
    pub(super) fn read(&self) -> Result<Contents, Fault> {
        let read = |variable, path: &Path| {
            let unreadable =
                |error| Fault { variable, problem: format!("'{}' cannot be read: {error}", path.display()) };
            std::fs::read(path).map_err(unreadable)
        };
        Ok(Contents { cert: read(CERT, &self.cert)?, key: read(KEY, &self.key)? })
    }

    fn bad_cert(&self, problem: impl std::fmt::Display) -> Fault {
        Fault { variable: CERT, problem: format!("'{}' {problem}", self.cert.display()) }
    }

    fn bad_key(&self, problem: impl std::fmt::Display) -> Fault {
        Fault { variable: KEY, problem: format!("'{}' {problem}", self.key.display()) }
    }
}

impl Contents {
    /// The pair that handshakes can be made with.
    pub(super) fn certified(&self, files: &Files) -> Result<CertifiedKey, Fault> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert).collect();
        let chain = chain.map_err(|error| files.bad_cert(format_args!("is not whole, or not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(files.bad_cert("holds no certificate in PEM format"));
        }
        let no_key = |_| files.bad_key("holds no private key in PEM format that is not encrypted");
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(no_key)?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                files.bad_key(format_args!("is not the key of the certificate in '{}'", files.cert.display()))
            }
            Error::InvalidCertificate(error) => {
                files.bad_cert(format_args!("holds a certificate that cannot be read: {error:?}"))
            }
            error => files.bad_key(format_args!("holds a key that cannot be used: {error}")),
        })
    }
}
