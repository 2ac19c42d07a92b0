//! Settings of the edge that are no numbers.

use shared::config::{ConfigError, Env};

use super::cors::Origins;
use super::public_url::PublicUrl;
use crate::tls::{Files, Tls};

/// How the API is reached. By default in plain HTTP, and by no page of another origin.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    /// `API_TLS_CERT` and `API_TLS_KEY`.
    pub tls: Option<Tls>,
    /// `API_CORS_ORIGINS`.
    pub cors: Option<Origins>,
    /// `API_PUBLIC_URL`.
    pub public_url: Option<PublicUrl>,
}

impl Edge {
    /// Reads them, and the files that they name.
    ///
    /// # Errors
    /// When something is wrong with a variable or with the file that it names; the error names the variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let files = match (env.var("API_TLS_CERT"), env.var("API_TLS_KEY")) {
            (Some(cert), Some(key)) => Some(Files { cert: cert.into(), key: key.into() }),
            (None, None) => None,
            (Some(_), None) => return Err(ConfigError::new("API_TLS_KEY", "is needed with API_TLS_CERT")),
            (None, Some(_)) => return Err(ConfigError::new("API_TLS_CERT", "is needed with API_TLS_KEY")),
        };
        Ok(Self {
            tls: files.map(Tls::open).transpose()?,
            cors: env.var("API_CORS_ORIGINS").map(Origins::parse).transpose()?,
            public_url: env.var("API_PUBLIC_URL").map(PublicUrl::parse).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_a_key_its_certificate() {
        for (variable, missing) in [("API_TLS_CERT", "API_TLS_KEY"), ("API_TLS_KEY", "API_TLS_CERT")] {
            let error = Edge::from_env(&Env::from_pairs([(variable, "/x")])).unwrap_err();
            assert_eq!((error.variable.as_str(), error.problem), (missing, format!("is needed with {variable}")));
        }
        let edge = Edge::from_env(&Env::default()).expect("nothing is needed");
        assert!(edge.tls.is_none() && edge.cors.is_none());
    }
}
