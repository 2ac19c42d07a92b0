//! Metrics over OTLP, for whoever collects them so instead of scraping `/metrics`: the same figures, sent every minute.
//!
//! They are sent as JSON over HTTP, which every receiver of OTLP over HTTP takes (OTLP 1.x, "JSON Protobuf Encoding"). OpenTelemetry's own
//! instruments would be a second set of figures beside those that are scraped; so the scraped ones are translated.

mod otlp;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry_sdk::Resource;
use prometheus_client::registry::Registry;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::exporter::check_scheme;
use crate::config::{ConfigError, Env};
use crate::crypto;
use crate::exposition;
use crate::shutdown::Shutdown;

/// Between two lines of the log about a receiver that does not answer.
const TELL_EVERY: Duration = Duration::from_mins(10);

/// How long the last figures may take on their way when the service ends.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

static PUSH: OnceLock<Push> = OnceLock::new();

/// Where figures are sent to, and how.
#[derive(Debug)]
struct Push {
    url: Url,
    headers: HeaderMap,
    interval: Duration,
    patience: Duration,
    resource: Resource,
    began: SystemTime,
}

/// Reads where metrics are to be sent: nowhere, unless `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set, or `OTEL_METRICS_EXPORTER` is `otlp`.
///
/// # Errors
/// When a setting cannot be understood.
pub(super) fn configure(env: &Env, resource: impl FnOnce() -> Resource) -> Result<(), ConfigError> {
    if let Some(push) = Push::from_env(env, resource)? {
        let _ = PUSH.set(push);
    }
    Ok(())
}

/// Sends `registry`'s figures until the shutdown, if they are to be sent.
pub fn push(registry: &Arc<Registry>, shutdown: &Shutdown) {
    if let Some(push) = PUSH.get() {
        tokio::spawn(push.run(Arc::clone(registry), shutdown.clone()));
    }
}

impl Push {
    fn from_env(env: &Env, resource: impl FnOnce() -> Resource) -> Result<Option<Self>, ConfigError> {
        const OWN: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let wanted = match env.var("OTEL_METRICS_EXPORTER") {
            Some("otlp") => true,
            None | Some("prometheus") => env.var(OWN).is_some(),
            Some("none") => false,
            Some(other) => {
                return Err(ConfigError::new(
                    "OTEL_METRICS_EXPORTER",
                    format!("is otlp, prometheus or none, not '{other}'"),
                ));
            }
        };
        if !wanted || super::is_disabled(env) {
            return Ok(None);
        }
        let (variable, url) = match (env.var(OWN), env.var(ALL)) {
            (Some(url), _) => (OWN, url.to_owned()),
            (None, Some(url)) => (ALL, format!("{}/v1/metrics", url.trim_end_matches('/'))),
            (None, None) => (ALL, "http://localhost:4318/v1/metrics".to_owned()),
        };
        check_scheme(variable, &url)?;
        let url = url.parse().map_err(|error| ConfigError::new(variable, format!("is no URL: {error}")))?;
        let millis = |variable: &'static str, default| match env.var(variable) {
            None => Ok(Duration::from_millis(default)),
            Some(value) => value
                .parse()
                .ok()
                .filter(|millis| *millis > 0)
                .map(Duration::from_millis)
                .ok_or_else(|| ConfigError::new(variable, format!("is a number of milliseconds, not '{value}'"))),
        };
        Ok(Some(Self {
            url,
            headers: headers(env)?,
            interval: millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
            patience: millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000)?,
            resource: resource(),
            began: SystemTime::now(),
        }))
    }

    async fn run(&'static self, registry: Arc<Registry>, shutdown: Shutdown) {
        crypto::install();
        let Ok(client) = reqwest::Client::builder().default_headers(self.headers.clone()).build() else { return };
        let mut told: Option<tokio::time::Instant> = None;
        loop {
            let goes_on = shutdown.sleep(self.interval).await;
            let patience = if goes_on { self.patience } else { LAST_PATIENCE };
            let sent = self.send(&client, &registry, patience).await;
            if let Err(error) = &sent
                && told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
            {
                tracing::warn!(error, url.full = %self.url, "metrics were not taken over OTLP; they are sent again as they are then");
                told = Some(tokio::time::Instant::now());
            } else if sent.is_ok() {
                told = None;
            }
            if !goes_on {
                return;
            }
        }
    }

    async fn send(&self, client: &reqwest::Client, registry: &Registry, patience: Duration) -> Result<(), String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).map_err(|error| error.to_string())?;
        let families = exposition::parse(&text);
        let body = otlp::request(&families, &self.resource, (self.began, SystemTime::now())).to_string();
        let request = client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.timeout(patience).send().await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("answered {}", answer.status())) }
    }
}

/// `OTEL_EXPORTER_OTLP_METRICS_HEADERS`, or those of all signals: `name=value,name=value`.
fn headers(env: &Env) -> Result<HeaderMap, ConfigError> {
    let names = ["OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
    let Some((variable, text)) = names.into_iter().find_map(|name| Some((name, env.var(name)?))) else {
        return Ok(HeaderMap::new());
    };
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::try_from(value.trim()).ok()?))
    };
    // Not repeated in the error: as a rule, one of them is a secret.
    let headers: Option<HeaderMap> = text.split(',').filter(|text| !text.trim().is_empty()).map(pair).collect();
    headers.ok_or_else(|| ConfigError::new(variable, "is name=value,name=value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(pairs: &[(&str, &str)]) -> Option<String> {
        let resource = || Resource::builder_empty().build();
        let push = Push::from_env(&Env::from_pairs(pairs.iter().copied()), resource).expect("good settings");
        push.map(|push| push.url.to_string())
    }

    #[test]
    fn metrics_are_sent_where_somebody_asks_for_them() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://prometheus:9090/api/v1/otlp/v1/metrics");
        let otlp = ("OTEL_METRICS_EXPORTER", "otlp");
        assert_eq!(url(&[]), None);
        assert_eq!(url(&[all]), None, "a collector of traces need not take metrics");
        assert_eq!(url(&[all, otlp]).as_deref(), Some("http://collector:4318/v1/metrics"));
        assert_eq!(url(&[all, own]).as_deref(), Some(own.1));
        assert_eq!(url(&[own, ("OTEL_METRICS_EXPORTER", "none")]), None);
        assert_eq!(url(&[own, ("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(url(&[otlp]).as_deref(), Some("http://localhost:4318/v1/metrics"));
    }

    #[test]
    fn headers_are_read_and_never_repeated() {
        let read = |text| headers(&Env::from_pairs([("OTEL_EXPORTER_OTLP_HEADERS", text)]));
        let good = read("authorization=Bearer%20x, x-scope=a=b,").expect("headers");
        assert_eq!(good.get("x-scope").map(HeaderValue::as_bytes), Some(&b"a=b"[..]));
        assert_eq!(good.len(), 2);
        let error = read("secret").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.starts_with("OTEL_EXPORTER_OTLP_HEADERS"), "{error}");
    }
}
