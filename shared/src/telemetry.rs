//! Logs; and over OTLP, when an endpoint is given, traces and metrics.

mod exporter;
pub mod filter;
mod lines;
pub mod metrics;
mod outlet;

use std::sync::OnceLock;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{ConfigError, Env};
use crate::spans::{SpanLimits, Spans};
use lines::WithTrace;
use outlet::Outlet;

/// What the process makes spans with: beside OpenTelemetry's own global, and for the same reason.
static SPANS: OnceLock<Spans> = OnceLock::new();

/// What the parts of a service make spans with; they make none before [`init`].
#[must_use]
pub fn spans() -> Spans {
    SPANS.get().cloned().unwrap_or_default()
}

/// Keeps the exporter alive; [`Telemetry::flush`] sends what it still holds.
#[must_use = "dropping it ends the export of traces"]
#[derive(Debug)]
pub struct Telemetry(Option<(SdkTracerProvider, Outlet)>);

impl Telemetry {
    /// Sends the spans that are still held. Blocks up to five seconds.
    pub fn flush(self) {
        let Some((provider, outlet)) = self.0 else { return };
        if let Err(error) = provider.shutdown() {
            tracing::warn!(error = %error, "some traces were not exported");
        }
        outlet.tell();
    }
}

/// Starts logging to standard output, as `LOG_FORMAT` (`text` or `json`) and `RUST_LOG` say, and the export of spans if
/// `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set.
///
/// # Errors
/// When a setting cannot be understood.
pub fn init(env: &Env, service: &'static str) -> Result<Telemetry, ConfigError> {
    let filter = filter::from_env(env)?;
    let text = match env.var("LOG_FORMAT") {
        None | Some("text") => true,
        Some("json") => false,
        Some(other) => return Err(ConfigError::new("LOG_FORMAT", format!("is text or json, not '{other}'"))),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let logs = if text {
        fmt::layer().with_ansi(colours).event_format(WithTrace::text(fmt::format().with_ansi(colours))).boxed()
    } else {
        fmt::layer().json().event_format(WithTrace::json(fmt::format().json().flatten_event(true))).boxed()
    };
    let traces = traces(env, service)?;
    metrics::configure(env, || resource(env, service))?;
    let spans = traces.as_ref().map(|(provider, _)| {
        // Where in the code and on which thread is nothing that an operator asks for.
        let layer = tracing_opentelemetry::layer().with_location(false).with_threads(false);
        layer.with_tracked_inactivity(false).with_tracer(provider.tracer(service))
    });
    tracing_subscriber::registry().with(filter).with(logs).with(spans).init();
    Ok(Telemetry(traces))
}

/// Whether nothing is to be sent, whatever else is set.
fn is_disabled(env: &Env) -> bool {
    env.var("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// The way to the exporter, if one is given.
fn traces(env: &Env, service: &'static str) -> Result<Option<(SdkTracerProvider, Outlet)>, ConfigError> {
    let Some(endpoint) = exporter::Endpoint::from_env(env)? else { return Ok(None) };
    let limits = SpanLimits::from_env(env)?;
    let outlet = Outlet::open(&endpoint, env, &resource(env, service))?;
    let spans = Spans::new(outlet.clone(), limits);
    outlet.count_too(spans.missed());
    let _ = SPANS.set(spans);
    // Spans that handlers make with `tracing` or OpenTelemetry are recorded where they are part of one of ours, and begin no trace.
    let provider = SdkTracerProvider::builder()
        .with_span_processor(outlet.clone())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
        .with_resource(resource(env, service))
        .build();
    global::set_tracer_provider(provider.clone());
    Ok(Some((provider, outlet)))
}

/// Who we are. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win.
fn resource(env: &Env, service: &'static str) -> Resource {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| uuid::Uuid::now_v7().to_string());
    let ours = [
        ("service.name", service),
        ("service.namespace", "outrider"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ];
    let builder = Resource::builder_empty()
        .with_attributes(ours.map(|(key, value)| KeyValue::new(key, value.to_owned())))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env.var("OTEL_SERVICE_NAME") {
        Some(name) => builder.with_service_name(name.to_owned()).build(),
        None => builder.build(),
    }
}
