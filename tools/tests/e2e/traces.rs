//! One order's trace through all three services, as a real Jaeger tells it; and what is traced although nobody asked for it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use shared::testing::eventually;
use tools::http::client;
use tools::jaeger::{Query, Span};
use tools::stack::{Jaeger, Kind, Service, free_port};

use super::command_line::outrider;
use super::pipeline::{RELAY_ENV, Stage, stop_all};

/// The caller's context, but for its flags.
const CALLER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER_SPAN: &str = "b7ad6b7169203331";

/// A pipeline whose services send their spans to a Jaeger, or would like to.
struct Traced {
    stage: Stage,
    services: Vec<Service>,
    url: String,
}

impl Traced {
    async fn start(test: &str, env: &[(&str, &str)]) -> Result<Self> {
        let mut stage = Stage::new(test).await?;
        let env = [&[("OTEL_BSP_SCHEDULE_DELAY", "50")], env].concat();
        stage.surroundings.env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { stage, services: Vec::new(), url: String::new() })
    }

    async fn start_services(&mut self) -> Result<()> {
        for kind in Kind::ALL {
            let env =
                if kind == Kind::Relay { &RELAY_ENV[..] } else { &[("PROCESSOR_SESSION_TIMEOUT_MS", "6000")][..1] };
            let env = if kind == Kind::Api { &[] } else { env };
            self.services.push(self.stage.start(kind, kind.name(), env).await?);
        }
        self.url = self.services.iter().find_map(Service::api_url).context("the api has a URL")?;
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        stop_all(&mut self.services).await
    }

    /// Posts an order and waits until it is Pending no more.
    async fn post(&self, traceparent: Option<&str>) -> Result<i64> {
        let order = self.send(traceparent, "wait=30").await?;
        assert_ne!(order["status"], "Pending", "{order}");
        order["ID"].as_i64().context("an id")
    }

    async fn send(&self, traceparent: Option<&str>, prefer: &str) -> Result<Value> {
        let request = client()?
            .post(format!("{}/orders", self.url))
            .header("content-type", "application/json")
            .header("prefer", prefer)
            .body(json!({"user_id": 1, "product_id": 42, "quantity": 3}).to_string());
        let request = match traceparent {
            Some(traceparent) => request.header("traceparent", traceparent).header("tracestate", "vendor=x"),
            None => request,
        };
        let answer = request.send().await?;
        assert_eq!(answer.status().as_u16(), 201);
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    async fn trace_id(&self, order: i64) -> Result<String> {
        let answer = client()?.get(format!("{}/orders/{order}/timeline", self.url)).send().await?;
        let told: Value = serde_json::from_str(&answer.text().await?)?;
        Ok(told["changes"][0]["trace_id"].as_str().context("a trace id")?.to_owned())
    }
}

/// The trace once so many spans of it are there, and no more are.
async fn trace(query: &Query, trace_id: &str, count: usize) -> Vec<Span> {
    let mut last = Vec::new();
    let found = eventually("all spans are in Jaeger", async || {
        let spans = query.trace(trace_id).await.ok()?;
        (spans.len() >= count).then_some(spans)
    });
    if let Ok(spans) = tokio::time::timeout(Duration::from_secs(30), found).await {
        last = spans;
    }
    if last.len() != count {
        let spans = query.trace(trace_id).await.unwrap_or_default();
        let told: Vec<_> = spans.iter().map(|span| (&span.service, &span.name, &span.parent_id)).collect();
        panic!("{count} spans of {trace_id}: {told:?}");
    }
    last
}

fn one<'a>(spans: &'a [Span], service: &str, name: &str, event_type: Option<&str>) -> &'a Span {
    let found: Vec<&Span> = spans
        .iter()
        .filter(|span| span.service == format!("outrider-{service}") && span.name == name)
        .filter(|span| event_type.is_none_or(|wanted| span.attributes["cloudevents.event_type"] == wanted))
        .collect();
    let [span] = found.as_slice() else { panic!("one span {service} {name} {event_type:?}: {spans:#?}") };
    span
}

fn assert_seconds(span: &Span, attributes: &[&str]) {
    for attribute in attributes {
        let seconds = span.attribute(attribute).and_then(Value::as_f64);
        assert!(seconds.is_some_and(|seconds| (0.0..60.0).contains(&seconds)), "{attribute} of {span:#?}");
    }
}

fn assert_has(span: &Span, attributes: &[(&str, Value)]) {
    for (name, value) in attributes {
        assert_eq!(span.attribute(name), Some(value), "{name} of {span:#?}");
    }
}

fn assert_whole(spans: &[Span], order: i64, caller: Option<&str>) {
    let created = Some("order.created");
    let request = one(spans, "api", "POST /orders", None);
    assert_eq!(request.parent_id.as_deref(), caller);
    assert_has(
        request,
        &[
            ("span.kind", "server".into()),
            ("http.request.method", "POST".into()),
            ("http.route", "/orders".into()),
            ("http.response.status_code", 201.into()),
            ("url.path", "/orders".into()),
        ],
    );
    let statement = one(spans, "api", "INSERT orders", None);
    assert_eq!(statement.parent_id.as_ref(), Some(&request.id));
    assert_has(
        statement,
        &[
            ("span.kind", "client".into()),
            ("db.system.name", "postgresql".into()),
            ("db.operation.name", "INSERT".into()),
            ("db.collection.name", "orders".into()),
            ("db.operation.batch.size", 1.into()),
        ],
    );
    let publish = one(spans, "relay", "publish orders", created);
    assert_eq!(publish.parent_id.as_ref(), Some(&request.id));
    assert_has(
        publish,
        &[
            ("span.kind", "producer".into()),
            ("messaging.system", "kafka".into()),
            ("messaging.operation.name", "publish".into()),
            ("messaging.operation.type", "send".into()),
            ("messaging.destination.name", "orders".into()),
            ("messaging.kafka.message.key", order.to_string().into()),
        ],
    );
    assert!(publish.attribute("outbox.lane").is_some_and(Value::is_i64), "{publish:#?}");
    assert_seconds(publish, &["outbox.age", "relay.queue_time"]);
    let process = one(spans, "processor", "process orders", created);
    assert_eq!(process.parent_id.as_ref(), Some(&publish.id));
    assert_has(
        process,
        &[
            ("span.kind", "consumer".into()),
            ("messaging.operation.type", "process".into()),
            ("messaging.consumer.group.name", "outrider-processor".into()),
            ("processor.outcome", "applied".into()),
            ("messaging.message.id", publish.attributes["messaging.message.id"].clone()),
            ("messaging.kafka.offset", publish.attributes["messaging.kafka.offset"].clone()),
            ("messaging.destination.partition.id", publish.attributes["messaging.destination.partition.id"].clone()),
        ],
    );
    assert_seconds(process, &["kafka.queue_time", "processor.queue_time", "event.age"]);
    let handle = one(spans, "processor", "handle order.created", None);
    assert_eq!(handle.parent_id.as_ref(), Some(&process.id));
    let again = one(spans, "relay", "publish orders", Some("order.processed"));
    assert_eq!(again.parent_id.as_ref(), Some(&process.id), "what the status update causes is part of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_orders_trace_has_spans_of_all_three_services_and_tells_the_waiting() -> Result<()> {
    let mut traced = Traced::start("one_orders_trace", &[]).await?;
    let folder = traced.stage.servers.folder();
    let jaeger = Jaeger::start(&traced.stage.supply, &folder.join("jaeger"), &folder.join("jaeger.log"), false).await?;
    traced.stage.surroundings.env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), jaeger.otlp_http()));
    traced.start_services().await?;
    let query = Query::new(&jaeger.url())?;

    let order = traced.post(Some(&format!("00-{CALLER_TRACE}-{CALLER_SPAN}-01"))).await?;
    let spans = trace(&query, CALLER_TRACE, 6).await;
    assert_whole(&spans, order, Some(CALLER_SPAN));
    for span in &spans {
        assert_eq!(span.resource["service.namespace"], "outrider");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        let instance = span.resource["service.instance.id"].as_str().context("an instance")?;
        assert!(uuid_like(instance), "{instance}");
    }
    // The batch is a trace of its own, and each leads to the other.
    let process = one(&spans, "processor", "process orders", None);
    let [(batch_trace, batch_span)] = process.links.as_slice() else { panic!("one link: {process:#?}") };
    let batches = trace(&query, batch_trace, 2).await;
    let batch = one(&batches, "processor", "process_batch orders", None);
    assert_eq!((&batch.id, &batch.parent_id), (batch_span, &None));
    assert_eq!(batch.links, [(CALLER_TRACE.to_owned(), process.id.clone())]);
    assert_has(batch, &[("messaging.batch.message_count", 1.into())]);
    let update = one(&batches, "processor", "UPDATE orders", None);
    assert_eq!(update.parent_id.as_ref(), Some(&batch.id));
    assert_has(
        update,
        &[
            ("span.kind", "client".into()),
            ("db.system.name", "postgresql".into()),
            ("db.collection.name", "orders".into()),
            ("db.operation.batch.size", 1.into()),
        ],
    );
    assert!(batch.start_us <= process.start_us && process.duration_us <= batch.duration_us + 1);

    // Who comes without a trace gets a new one.
    let order = traced.post(None).await?;
    let trace_id = traced.trace_id(order).await?;
    assert_whole(&trace(&query, &trace_id, 6).await, order, None);

    // Whoever has decided against it is obeyed, and yet the context goes on.
    let unsampled = CALLER_TRACE.replace("0af7", "0bf7");
    let order = traced.post(Some(&format!("00-{unsampled}-{CALLER_SPAN}-00"))).await?;
    assert_eq!(traced.trace_id(order).await?, unsampled);
    let next = traced.post(None).await?;
    trace(&query, &traced.trace_id(next).await?, 6).await;
    assert_eq!(query.trace(&unsampled).await?, [], "nothing of it, though a later order is there");

    assert_terminal(&traced, &jaeger, order)?;
    traced.stop().await
}

/// What `outrider trace` prints of order 1, and of one that was not sampled.
fn assert_terminal(traced: &Traced, jaeger: &Jaeger, unsampled: i64) -> Result<()> {
    let trace = |order: i64, more: &str| {
        outrider(&format!("trace {order} {more}"))
            .env("DATABASE_URL", &traced.stage.database.url)
            .env("DB_ROLE", "outrider_operator")
            .env("OUTRIDER_JAEGER_URL", jaeger.url())
            .output()
    };
    let shown = trace(1, "")?;
    let text = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&format!("order 1, trace {CALLER_TRACE}").as_str()), "{text}");
    for (name, waited) in [
        ("POST /orders", ""),
        ("  publish orders", "in the outbox"),
        ("    process orders", "in Kafka"),
        ("      handle order.created", ""),
    ] {
        assert!(
            lines.iter().any(|line| line.contains(&format!("  {name}")) && line.contains(waited)),
            "{name} in\n{text}"
        );
    }
    let json = trace(1, "--json")?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!(json["traces"][0]["spans"].as_array().map(Vec::len), Some(6), "{json}");
    let none = trace(unsampled, "")?;
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stdout).contains("it was not sampled"), "{none:?}");
    Ok(())
}

fn uuid_like(text: &str) -> bool {
    text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_or_is_slow_is_traced_though_it_was_not_sampled() -> Result<()> {
    // Over gRPC, and everything that takes a millisecond is slow to the relay.
    let env = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let mut traced = Traced::start("what_fails_or_is_slow", &env).await?;
    let folder = traced.stage.servers.folder();
    let jaeger = Jaeger::start(&traced.stage.supply, &folder.join("jaeger"), &folder.join("jaeger.log"), false).await?;
    traced.stage.surroundings.env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), jaeger.otlp_grpc()));
    traced.start_services().await?;
    let query = Query::new(&jaeger.url())?;
    sqlx::query(
        "ALTER TABLE order_transitions ADD CONSTRAINT test_check CHECK (to_status <> 'Processed' OR order_id <> 1) NOT VALID",
    )
    .execute(&traced.stage.database.pool)
    .await?;

    // It fails in the processor: that is all there is of it.
    let failed = traced.post(None).await?;
    let spans = trace(&query, &traced.trace_id(failed).await?, 1).await;
    let process = one(&spans, "processor", "process orders", None);
    assert_has(process, &[("error", true.into()), ("processor.outcome", "failed".into())]);
    let why = process.attributes["otel.status_description"].as_str().context("a reason")?;
    assert!(why.contains("test_check"), "{why}");
    assert!(process.parent_id.is_some(), "under the request, which was not recorded");

    // It is slow when the relay reads it: from there on its trace is whole.
    traced.services.remove(1).stop().await?;
    let order = traced.send(None, "wait=0").await?["ID"].as_i64().context("an id")?;
    let slow = [&RELAY_ENV[..], &[("TRACES_SLOW_MS", "1")]].concat();
    traced.services.insert(1, traced.stage.start(Kind::Relay, "slow-relay", &slow).await?);
    let spans = trace(&query, &traced.trace_id(order).await?, 4).await;
    let publish = one(&spans, "relay", "publish orders", Some("order.created"));
    assert_seconds(publish, &["outbox.age"]);
    let process = one(&spans, "processor", "process orders", None);
    assert_eq!(process.parent_id.as_ref(), Some(&publish.id));
    assert!(spans.iter().all(|span| span.service != "outrider-api"));
    traced.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_no_order_is_lost_and_each_service_says_so_once() -> Result<()> {
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let mut traced = Traced::start("without_a_collector", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &nobody)]).await?;
    traced.start_services().await?;
    for _ in 0..20 {
        traced.post(None).await?;
    }
    for kind in Kind::ALL {
        let log = traced.stage.servers.folder().join(format!("{}.log", kind.name()));
        let lines = eventually("the service says that spans are lost", async || {
            let text = std::fs::read_to_string(&log).ok()?;
            let lines = text.lines().filter(|line| line.contains("spans are lost")).count();
            (lines > 0).then_some(lines)
        })
        .await;
        assert_eq!(lines, 1, "lines in the log of {kind:?}");
    }
    assert_eq!(traced.stage.count("SELECT count(*) FROM orders WHERE status = 'Processed'").await, 20);
    traced.stop().await
}
