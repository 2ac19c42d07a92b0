//! Logs, and traces over OTLP when an endpoint is given.

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{ConfigError, Env};
use crate::crypto;

/// What is logged unless `RUST_LOG` says otherwise. What actix finds wrong with a connection is its client's doing, and an error in our
/// log for each would let anybody fill that.
const FILTER: &str = "info,actix_http=off";

/// Keeps the exporter alive; [`Telemetry::flush`] sends what it still holds.
#[must_use = "dropping it ends the export of traces"]
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends the spans that are still held. Blocks up to the exporter's time-out.
    pub fn flush(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!(error = %error, "some traces were not exported");
        }
    }
}

/// Starts logging to standard output, as `LOG_FORMAT` (`text` or `json`) and `RUST_LOG` say, and the export of spans if
/// `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set.
///
/// # Errors
/// When a setting cannot be understood.
pub fn init(env: &Env, service: &'static str) -> Result<Telemetry, ConfigError> {
    let filter = EnvFilter::try_new(env.var("RUST_LOG").unwrap_or(FILTER))
        .map_err(|error| ConfigError::new("RUST_LOG", error.to_string()))?;
    let text = match env.var("LOG_FORMAT") {
        None | Some("text") => true,
        Some("json") => false,
        Some(other) => return Err(ConfigError::new("LOG_FORMAT", format!("is text or json, not '{other}'"))),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let logs = if text {
        tracing_subscriber::fmt::layer().with_ansi(colours).boxed()
    } else {
        tracing_subscriber::fmt::layer().json().flatten_event(true).boxed()
    };
    let provider = provider(env, service)?;
    let spans = provider.as_ref().map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(service)));
    tracing_subscriber::registry().with(filter).with(logs).with(spans).init();
    Ok(Telemetry(provider))
}

fn provider(env: &Env, service: &'static str) -> Result<Option<SdkTracerProvider>, ConfigError> {
    let endpoints = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    let Some(variable) = endpoints.into_iter().find(|name| env.var(name).is_some()) else { return Ok(None) };
    if env.var("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    crypto::install();
    // The exporters read the endpoint and the other OTEL_EXPORTER_OTLP_* variables by themselves.
    let exporter = match env.var("OTEL_EXPORTER_OTLP_PROTOCOL") {
        None | Some("http/protobuf") => SpanExporter::builder().with_http().build(),
        Some("grpc") => SpanExporter::builder().with_tonic().build(),
        Some(other) => {
            return Err(ConfigError::new(
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                format!("is http/protobuf or grpc, not '{other}'"),
            ));
        }
    };
    let exporter = exporter.map_err(|error| ConfigError::new(variable, error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(opentelemetry::KeyValue::new("service.namespace", "outrider"))
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}
