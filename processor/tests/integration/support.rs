//! What the tests need around a processor: a database with orders, a topic with their events, and the processor itself, in this
//! process or as the real binary.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use processor::config::ProcessorConfig;
use processor::handlers::orders::{ORDER_CREATED, OrderCreated};
use processor::metrics::Metrics;
use processor::{Processor, ProcessorError};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use shared::config::Env;
use shared::kafka::KafkaConfig;
use shared::shutdown::Shutdown;
use shared::testing::{TestDatabase, eventually, kafka_brokers, unique};
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A database, a topic and a group.
pub struct World {
    pub database: TestDatabase,
    pub topic: String,
    pub group: String,
    kafka: KafkaConfig,
    partitions: i32,
}

/// An order as the api would have written it, with the event of its creation.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: i64,
    pub payload: String,
    pub event_id: Uuid,
}

/// A record to produce.
#[derive(Debug, Clone, Default)]
pub struct Produced {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    pub partition: i32,
}

impl World {
    /// An empty one, its topic with `partitions`.
    pub async fn new(test: &str, partitions: i32) -> Self {
        // `RUST_LOG=processor=debug` shows what the processors of a failing test have to say.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let database = TestDatabase::create(&format!("processor_{test}")).await;
        // For tables that were never analyzed the planner expects so many rows that it compiles queries, for a second each.
        sqlx::raw_sql("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = off', current_database()); END $$")
            .execute(&database.pool)
            .await
            .expect("jit is off");
        let count = partitions.to_string();
        let brokers = kafka_brokers();
        let env = Env::from_pairs([("KAFKA_BROKERS", brokers.as_str()), ("KAFKA_TOPIC_PARTITIONS", &count)]);
        let kafka = KafkaConfig::from_env(&env).expect("brokers");
        let topic = unique("orders");
        kafka.ensure_topics("test", &[&topic]).await.expect("a topic");
        Self { database, topic, group: unique("processor"), kafka, partitions }
    }

    /// Makes the topic, unless it is there.
    pub async fn make_topic(&self) {
        self.kafka.ensure_topics("test", &[&self.topic]).await.expect("a topic");
    }

    /// The variables of a processor here.
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("ADMIN_BIND", "127.0.0.1:0"),
            ("DATABASE_URL", self.database.url.as_str()),
            ("DB_ROLE", "outrider_processor"),
            ("KAFKA_BROKERS", &kafka_brokers()),
            ("KAFKA_TOPIC_PARTITIONS", &self.partitions.to_string()),
            ("PROCESSOR_TOPICS", &self.topic),
            ("PROCESSOR_GROUP", &self.group),
            ("PROCESSOR_SESSION_TIMEOUT_MS", "6000"),
            ("PROCESSOR_RETRY_MAX_MS", "200"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// The configuration of a processor here; `more` variables win.
    pub fn config(&self, more: &[(&str, &str)]) -> ProcessorConfig {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = Env::from_pairs(self.variables().into_iter().chain(more));
        ProcessorConfig::from_env(&env).expect("a good configuration")
    }

    /// A processor with the order handler.
    pub fn start(&self, more: &[(&str, &str)]) -> Running {
        Running::start(Processor::builder(self.config(more)).handler(ORDER_CREATED, OrderCreated))
    }

    /// Writes `count` orders as the api does: order and first transition.
    pub async fn orders(&self, count: i64) -> Vec<Order> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "WITH new AS (
                INSERT INTO orders (user_id, product_id, quantity) SELECT 1, 2, 3 FROM generate_series(1, $1) RETURNING *
            ), history AS (
                INSERT INTO order_transitions (order_id, version, to_status, event_id)
                SELECT id, 1, 'Pending', gen_random_uuid() FROM new
            )
            SELECT id, row_to_json(ROW(id, user_id, product_id, quantity, status, version, created_at, updated_at, NULL)
                ::order_document)::text FROM new ORDER BY id",
        )
        .bind(count)
        .fetch_all(&self.database.pool)
        .await
        .expect("orders");
        rows.into_iter().map(|(id, payload)| Order { id, payload, event_id: Uuid::now_v7() }).collect()
    }

    /// Writes `count` orders and produces their events.
    pub async fn created_orders(&self, count: i64) -> Vec<Order> {
        let orders = self.orders(count).await;
        self.produce(orders.iter().map(|order| order.created(self.partitions)));
        orders
    }

    /// Produces records and waits until the broker has them.
    pub fn produce(&self, records: impl IntoIterator<Item = Produced>) {
        let producer: ThreadedProducer<DefaultProducerContext> =
            self.kafka.producer("test", Duration::from_secs(30)).create().expect("a producer");
        for record in records {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let mut base: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&self.topic).partition(record.partition).headers(headers);
            base.key = record.key.as_deref();
            base.payload = record.payload.as_deref();
            producer.send(base).map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(Duration::from_secs(30)).expect("the broker takes all");
    }

    /// One number from the database.
    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.database.pool).await.expect("a number")
    }

    /// Orders that are Processed.
    pub async fn processed(&self) -> i64 {
        self.count("SELECT count(*) FROM orders WHERE status = 'Processed'").await
    }

    /// Waits until `count` orders are Processed.
    pub async fn eventually_processed(&self, count: i64) {
        eventually(&format!("{count} orders are Processed"), async || (self.processed().await == count).then_some(()))
            .await;
    }

    /// Checks that `count` orders have gone from Pending to Processed, each with one transition and one event, and no more.
    pub async fn assert_processed_once(&self, count: i64) {
        assert_eq!(self.processed().await, count);
        assert_eq!(self.count("SELECT count(*) FROM order_transitions WHERE version = 2").await, count);
        assert_eq!(self.count("SELECT count(*) FROM order_transitions WHERE version > 2").await, 0);
        let matching = self
            .count(
                "SELECT count(DISTINCT o.event_id) FROM outbox o
                JOIN order_transitions t ON t.event_id = o.event_id AND t.order_id::text = o.aggregate_id
                    AND t.version = o.aggregate_version
                WHERE o.type = 'order.processed' AND o.aggregate_type = 'order' AND t.version = 2",
            )
            .await;
        assert_eq!(matching, count);
        assert_eq!(self.count("SELECT count(*) FROM outbox").await, count);
    }

    /// Waits until the processor has passed `offset` of `partition`.
    pub async fn eventually_at(&self, partition: i32, offset: i64) {
        eventually(&format!("partition {partition} is at {offset}"), async || {
            (self.position(partition).await == Some(offset)).then_some(())
        })
        .await;
    }

    /// Offset of the next record of a partition.
    pub fn end(&self, partition: i32) -> i64 {
        let client: BaseConsumer = self.kafka.client("test").create().expect("a client");
        client.fetch_watermarks(&self.topic, partition, Duration::from_secs(10)).expect("the broker answers").1
    }

    /// Position of a partition in Postgres.
    pub async fn position(&self, partition: i32) -> Option<i64> {
        sqlx::query_scalar(
            "SELECT next_offset FROM consumer_offsets WHERE group_id = $1 AND topic = $2 AND partition = $3",
        )
        .bind(&self.group)
        .bind(&self.topic)
        .bind(partition)
        .fetch_optional(&self.database.pool)
        .await
        .expect("a position")
    }

    /// Makes a table that the processor may use.
    pub async fn table(&self, definition: &str) {
        let name = definition.split(' ').next().expect("a name");
        let sql = format!("CREATE TABLE {definition}; GRANT ALL ON {name} TO outrider_processor");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.database.pool).await.expect("a table");
    }

    /// How a client reaches the brokers as one of the group.
    pub fn consumer_config(&self) -> ClientConfig {
        self.kafka.consumer("test", &self.group)
    }

    /// How many members the group has.
    pub fn members(&self) -> usize {
        self.groups(|_| true).expect("the broker answers")
    }

    /// Waits until the group has settled on `count` members.
    pub async fn eventually_settled(&self, count: usize) {
        let what = format!("the group has settled on {count} members");
        eventually(&what, async || (self.groups(|state| state == "Stable") == Some(count)).then_some(())).await;
    }

    /// None while the broker cannot say, as just after it has started.
    fn groups(&self, counts: impl Fn(&str) -> bool) -> Option<usize> {
        let client: BaseConsumer = self.kafka.client("test").create().expect("a client");
        let list = client.fetch_group_list(Some(&self.group), Duration::from_secs(10)).ok()?;
        Some(list.groups().iter().filter(|group| counts(group.state())).map(|group| group.members().len()).sum())
    }

    /// Starts the real binary; `more` variables win.
    pub fn spawn(&self, more: &[(&str, &str)]) -> Process {
        self.spawn_to(more, Stdio::null())
    }

    /// Starts the real binary, and waits until it ends by itself. Its exit code, and what it said on standard error.
    pub async fn spawn_refused(&self, more: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut process = self.spawn_to(more, Stdio::piped());
        process.ended().await;
        let mut said = String::new();
        process.0.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        (process.0.wait().expect("it has ended").code(), said)
    }

    /// Starts the real binary, and keeps what it says.
    pub fn spawn_listened(&self, more: &[(&str, &str)]) -> Listened {
        let path = format!("{}/{}.log", env!("CARGO_TARGET_TMPDIR"), self.group);
        let log = File::create(&path).expect("a file");
        let process = self.spawn_with(more, log.try_clone().expect("a handle").into(), log.into());
        Listened { process, path }
    }

    fn spawn_to(&self, more: &[(&str, &str)], stderr: Stdio) -> Process {
        self.spawn_with(more, Stdio::null(), stderr)
    }

    fn spawn_with(&self, more: &[(&str, &str)], stdout: Stdio, stderr: Stdio) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_outrider-processor"))
            .env_clear()
            .envs(self.variables())
            .envs(more.iter().copied())
            .current_dir(env!("CARGO_TARGET_TMPDIR")) // No `.env` of a developer's.
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        Process(child)
    }
}

impl Order {
    /// Its `order.created`, in the partition that its id falls to.
    pub fn created(&self, partitions: i32) -> Produced {
        let partition = i32::try_from(self.id % i64::from(partitions)).expect("small");
        self.event(self.event_id, partition)
    }

    /// An `order.created` with this event id.
    pub fn event(&self, event_id: Uuid, partition: i32) -> Produced {
        Produced { partition, ..event("order.created", event_id, &self.id.to_string(), &self.payload) }
    }
}

/// An event of version 1.
pub fn event(event_type: &str, event_id: Uuid, key: &str, payload: &str) -> Produced {
    Produced {
        key: Some(key.as_bytes().to_vec()),
        payload: Some(payload.as_bytes().to_vec()),
        headers: vec![
            ("id", event_id.to_string().into_bytes()),
            ("ce_type", event_type.as_bytes().to_vec()),
            ("aggregate_version", b"1".to_vec()),
        ],
        partition: 0,
    }
}

/// A processor in this process.
pub struct Running {
    pub metrics: Metrics,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), ProcessorError>>,
}

impl Running {
    pub fn start(processor: Processor) -> Self {
        let (metrics, shutdown) = (Metrics::default(), Shutdown::new());
        let processor = processor.metrics(metrics.clone());
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { processor.run(&shutdown).await }
        });
        Self { metrics, shutdown, task }
    }

    /// Shuts it down in order. What it has counted is complete then: a batch is counted after its commit, hence after Postgres shows it.
    pub async fn stop(self) -> Metrics {
        self.shutdown.request();
        self.task.await.expect("no panic").expect("an ordered end");
        self.metrics
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Result<(), ProcessorError> {
        tokio::time::timeout(shared::testing::PATIENCE, self.task).await.expect("it ends").expect("no panic")
    }
}

/// The real binary, and the file with what it says.
pub struct Listened {
    process: Process,
    path: String,
}

impl Listened {
    /// Kills it, and returns all that it has said.
    pub fn killed(mut self) -> String {
        self.process.kill();
        let said = std::fs::read_to_string(&self.path).expect("text");
        std::fs::remove_file(&self.path).expect("removed");
        said
    }
}

/// The real binary. Killed when dropped.
pub struct Process(Child);

impl Process {
    /// Another binary than the processor.
    pub const fn of(child: Child) -> Self {
        Self(child)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it can be waited for");
    }

    /// Waits until it ends by itself. Returns whether that was in order.
    pub async fn ended(&mut self) -> bool {
        eventually("the process ends", async || self.0.try_wait().expect("a child")).await.success()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
