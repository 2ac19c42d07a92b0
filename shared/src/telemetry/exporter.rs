//! The OTLP exporter, by the standard variables.

use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};

use crate::config::{ConfigError, Env};
use crate::crypto;

/// Where spans go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The variable that names it.
    variable: &'static str,
    url: String,
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Grpc,
}

impl Endpoint {
    /// The endpoint that is given; none: spans are made for nobody.
    pub(super) fn from_env(env: &Env) -> Result<Option<Self>, ConfigError> {
        let endpoints = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let given = endpoints.into_iter().find_map(|variable| Some((variable, env.var(variable)?)));
        let Some((variable, url)) = given else { return Ok(None) };
        let is_off = super::is_disabled(env);
        if is_off || env.var("OTEL_TRACES_EXPORTER") == Some("none") {
            return Ok(None);
        }
        check_scheme(variable, url)?;
        let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        let named = protocols.into_iter().find_map(|variable| Some((variable, env.var(variable)?)));
        let protocol = match named {
            None | Some((_, "http/protobuf")) => Protocol::Http,
            Some((_, "grpc")) => Protocol::Grpc,
            Some((variable, other)) => {
                return Err(ConfigError::new(variable, format!("is http/protobuf or grpc, not '{other}'")));
            }
        };
        // That of all signals is the beginning of the URL, over HTTP; that of traces is all of it.
        let url = if protocol == Protocol::Http && variable == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            format!("{}/v1/traces", url.trim_end_matches('/'))
        } else {
            url.to_owned()
        };
        Ok(Some(Self { variable, url, protocol }))
    }

    /// An exporter to there. It reads the other `OTEL_EXPORTER_OTLP_*` variables by itself, from the environment.
    pub(super) fn exporter(&self) -> Result<SpanExporter, ConfigError> {
        crypto::install();
        let built = match self.protocol {
            Protocol::Http => SpanExporter::builder().with_http().with_endpoint(&self.url).build(),
            Protocol::Grpc => SpanExporter::builder().with_tonic().with_endpoint(&self.url).build(),
        };
        built.map_err(|error: ExporterBuildError| ConfigError::new(self.variable, error.to_string()))
    }
}

/// Refuses an endpoint that says nothing of how to get there, before a library takes its host for a scheme.
pub(super) fn check_scheme(variable: &str, url: &str) -> Result<(), ConfigError> {
    let lower = url.to_ascii_lowercase();
    if ["http://", "https://"].iter().any(|scheme| lower.strip_prefix(scheme).is_some_and(|host| !host.is_empty())) {
        return Ok(());
    }
    Err(ConfigError::new(variable, "must begin with http:// or https://, as in http://collector:4318"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(pairs: &[(&str, &str)]) -> Option<(String, Protocol)> {
        let endpoint = Endpoint::from_env(&Env::from_pairs(pairs.iter().copied())).expect("good");
        endpoint.map(|endpoint| (endpoint.url, endpoint.protocol))
    }

    #[test]
    fn the_endpoint_is_that_of_traces_or_of_all_signals() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://tempo:4318/here");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(url(&[]), None);
        assert_eq!(url(&[all]), Some(("http://collector:4318/v1/traces".to_owned(), Protocol::Http)));
        assert_eq!(url(&[all, traces]), Some(("http://tempo:4318/here".to_owned(), Protocol::Http)));
        assert_eq!(url(&[all, grpc]), Some(("http://collector:4318/".to_owned(), Protocol::Grpc)));
        assert_eq!(url(&[all, ("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(url(&[all, ("OTEL_TRACES_EXPORTER", "none")]), None);
        for url in ["collector:4318", "localhost:4317", "//collector", "ftp://collector", "http://"] {
            let error = Endpoint::from_env(&Env::from_pairs([("OTEL_EXPORTER_OTLP_ENDPOINT", url)])).unwrap_err();
            let expected =
                "OTEL_EXPORTER_OTLP_ENDPOINT: must begin with http:// or https://, as in http://collector:4318";
            assert_eq!(error.to_string(), expected, "{url}");
        }
        let env = Env::from_pairs([all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        let error = Endpoint::from_env(&env).unwrap_err().to_string();
        assert_eq!(error, "OTEL_EXPORTER_OTLP_PROTOCOL: is http/protobuf or grpc, not 'http/json'");
    }
}
