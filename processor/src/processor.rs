//! Putting the processor together, and running it.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use shared::backoff::Backoff;
use shared::config::ConfigError;
use shared::db::ConnectError;
use shared::health::{self, Readiness};
use shared::kafka::TopicUse;
use shared::shutdown::Shutdown;
use shared::telemetry;

use crate::apply::Applier;
use crate::census;
use crate::config::ProcessorConfig;
use crate::consumer::{ASSIGNMENT, Consumer, ConsumerError};
use crate::handler::{EventHandler, Handlers};
use crate::inbox;
use crate::joint::Joint;
use crate::metrics::Metrics;
use crate::partition::{POSTGRES, Shop};

/// Why the processor has ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// The health and metrics port is not to be had.
    #[error("ADMIN_BIND: {0}")]
    Admin(std::io::Error),
    /// The database will not do.
    #[error(transparent)]
    Database(ConnectError),
    /// A setting does not go with what the brokers say.
    #[error("{0}")]
    Config(#[source] ConfigError),
    /// The consumer cannot go on.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
}

/// A processor to be put together: which handler gets which events.
///
/// Events of a type without a handler are passed over. Each consumer group (`PROCESSOR_GROUP`) keeps its own positions, so a second program
/// with another group and other handlers gets all events as well. `examples/loyalty` is a whole program, and `processor::testing` (feature
/// `testing`) tries handlers without Kafka.
///
/// ```no_run
/// # use processor::{Processor, config::ProcessorConfig, handlers::orders::{ORDER_CREATED, OrderCreated}};
/// # use shared::{config::Env, shutdown::Shutdown};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ProcessorConfig::from_env(&Env::load()?)?;
/// Processor::builder(config).handler(ORDER_CREATED, OrderCreated).run(&Shutdown::new()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Processor {
    config: ProcessorConfig,
    handlers: Handlers,
    metrics: Metrics,
}

impl Processor {
    /// A processor without handlers: it would pass over everything.
    #[must_use]
    pub fn builder(config: ProcessorConfig) -> Self {
        Self { config, handlers: Handlers::default(), metrics: Metrics::default() }
    }

    /// Gives events of `event_type` to `handler`.
    #[must_use]
    pub fn handler(mut self, event_type: impl Into<String>, handler: impl EventHandler) -> Self {
        self.handlers.insert(event_type, handler);
        self
    }

    /// Counts in `metrics`, for whoever wants to look at them otherwise than over the admin port.
    #[must_use]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Runs until the shutdown is asked for.
    ///
    /// # Errors
    /// When the admin port, the schema, the retention or the position of a partition will not do, or Kafka's client fails for good.
    pub async fn run(self, shutdown: &Shutdown) -> Result<(), ProcessorError> {
        let Self { config, handlers, metrics } = self;
        let readiness = Readiness::waiting_for(&[POSTGRES, ASSIGNMENT]);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        health::serve(config.admin_bind, readiness.clone(), registry, shutdown).map_err(ProcessorError::Admin)?;

        let database = match config.database.connect(shutdown).await {
            Ok(database) => database,
            Err(ConnectError::ShutDown) => return Ok(()),
            Err(error) => return Err(ProcessorError::Database(error)),
        };
        readiness.met(POSTGRES);
        let settings = &config.settings;
        if !config.kafka.wait_until_up(&settings.group, shutdown).await || !ensure_topics(&config, shutdown).await {
            return Ok(());
        }
        if !inbox::check_retention(&config.kafka, CLIENT_ID, settings, shutdown)
            .await
            .map_err(ProcessorError::Config)?
        {
            return Ok(());
        }
        let uses = settings.topics.iter().map(|topic| TopicUse {
            topic: topic.clone(),
            written: false,
            group: Some(settings.group.clone()),
        });
        tokio::spawn(config.kafka.clone().say_findings(CLIENT_ID, uses.collect()));
        let upkeep = inbox::Upkeep::begin(&database, settings, &metrics).await;
        let upkeep = tokio::spawn(upkeep.run(shutdown.clone()));
        let census = census::run(database.clone(), settings.group.clone(), metrics.clone(), shutdown.clone());
        let census = tokio::spawn(census);
        let shop = Shop {
            applier: Applier {
                database: database.clone(),
                group: settings.group.as_str().into(),
                handlers,
                schedule: settings.key_schedule(),
                page: settings.page(),
                failpoint: settings.failpoint,
                spans: telemetry::spans(),
                metrics: metrics.clone(),
            },
            metrics,
            readiness,
            batch_rows_max: settings.batch_rows_max,
            retry_max: settings.retry_max(),
            joint: Joint::default(),
            room: tokio::sync::Notify::new(),
        };
        let shop = Arc::new(shop);
        let joint = tokio::spawn(Joint::run(Arc::clone(&shop)));
        let client = config.kafka.consumer(CLIENT_ID, &settings.group);
        let consumed = match Consumer::subscribe(client, settings, shop) {
            Ok(consumer) => consumer.run(shutdown).await,
            Err(error) => Err(error),
        };
        joint.abort();
        upkeep.abort();
        census.abort();
        consumed?;
        // A connection whose server has vanished may wait for an answer for longer: it ends with the process.
        let _ = tokio::time::timeout(CLOSE_PATIENCE, database.close()).await;
        Ok(())
    }
}

/// How long the connections may take to close in order.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Our name in the brokers' logs.
const CLIENT_ID: &str = "outrider-processor";

/// Makes the topics that are missing, for as long as it takes. Returns whether to go on: not if the shutdown came first.
async fn ensure_topics(config: &ProcessorConfig, shutdown: &Shutdown) -> bool {
    let topics: Vec<&str> = config.settings.topics.iter().map(String::as_str).collect();
    let mut backoff = Backoff::new(Duration::from_millis(200), config.settings.retry_max());
    loop {
        let Err(error) = config.kafka.ensure_topics(CLIENT_ID, &topics).await else { return true };
        let delay = backoff.random_delay();
        tracing::warn!(error = %error, retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), "waiting for topics");
        if !shutdown.sleep(delay).await {
            return false;
        }
    }
}
