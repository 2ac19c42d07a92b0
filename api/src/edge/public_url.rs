//! `API_PUBLIC_URL`: where the outside reaches the API, behind a proxy that serves it below a path, say.

use std::sync::Arc;

use reqwest::Url;
use shared::config::ConfigError;

const VARIABLE: &str = "API_PUBLIC_URL";

/// An address of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    url: Url,
}

impl PublicUrl {
    /// Reads the variable.
    ///
    /// # Errors
    /// When it is no URL that paths can be put behind.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong =
            |problem: &str| ConfigError::new(VARIABLE, format!("{problem}, as in https://api.example.com/shop"));
        let url = Url::parse(text).map_err(|_| wrong("is no absolute URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must hold no credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("must have no query and no fragment"));
        }
        Ok(Self { url })
    }

    /// The path below which the API is reached, without a slash at its end; none: at the root.
    #[must_use]
    pub fn base_path(&self) -> Option<Arc<str>> {
        let path = self.url.path().trim_end_matches('/');
        (!path.is_empty()).then(|| path.into())
    }

    /// The URL without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_from_the_url_and_a_slash_at_its_end_makes_no_difference() {
        for (url, path) in [
            ("https://api.example.com", None),
            ("https://api.example.com/", None),
            ("https://api.example.com/shop", Some("/shop")),
            ("http://localhost:8080/shop/v2/", Some("/shop/v2")),
        ] {
            let url = PublicUrl::parse(url).expect("it is good");
            assert_eq!(url.base_path().as_deref(), path);
            assert!(!url.as_str().ends_with('/'));
        }
    }

    #[test]
    fn what_no_path_can_be_put_behind_is_refused() {
        for wrong in ["", "/shop", "api.example.com", "ftp://a/", "https://a/?b", "https://a/#b", "https://u:p@a/"] {
            let error = PublicUrl::parse(wrong).expect_err("it is wrong");
            assert_eq!(error.variable, VARIABLE);
            assert!(!error.to_string().contains("u:p"), "{error}");
        }
    }
}
