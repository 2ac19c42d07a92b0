//! Everything comes once more: the offsets are reset in Kafka and in Postgres, and only the inbox knows better.

use std::time::Duration;

use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::{Scale, drained, orders};
use crate::bench::figure::{Bound, Figure};
use crate::bench::ground::{Ground, Scene};
use crate::bench::topic::config;

/// Effects of the second time, and its rate against the first.
pub async fn measure(ground: &mut Ground, scale: Scale) -> Result<Vec<Figure>> {
    let mut scene = ground.scene("again").await?;
    orders::write(&scene.pool, scale.orders).await?;
    orders::produce(ground, &scene, None).await?;
    let first = drained(ground, &mut scene, scale.orders, &[]).await?;
    orders::check(&scene.pool, scale.orders).await?;
    scene.stop().await?;

    let before = effects(&scene).await?;
    reset(ground, &scene).await?;
    sqlx::query("CHECKPOINT").execute(&scene.pool).await?;
    let second = drained(ground, &mut scene, scale.orders, &[]).await?;
    scene.stop().await?;
    let again = effects(&scene).await? - before;
    if again == 0 {
        orders::check(&scene.pool, scale.orders).await?;
    }
    scene.close().await?;
    Ok(vec![
        Figure::new(
            "second effects when all is delivered again",
            f64::from(i32::try_from(again)?),
            "effects",
            Bound::AtMost(0.0),
        ),
        Figure::new("the second delivery against the first", second / first, "times", Bound::AtLeast(2.0)),
    ])
}

/// Rows that stand for an effect.
async fn effects(scene: &Scene) -> Result<i64> {
    let count = "SELECT (SELECT count(*) FROM order_transitions) + (SELECT count(*) FROM outbox)
        + (SELECT sum(version) FROM orders)::bigint";
    Ok(sqlx::query_scalar(count).fetch_one(&scene.pool).await?)
}

/// Sets the group, of which no member runs, back to the beginning.
async fn reset(ground: &Ground, scene: &Scene) -> Result<()> {
    let rows: Vec<i32> =
        sqlx::query_scalar("UPDATE consumer_offsets SET next_offset = 0 WHERE group_id = $1 RETURNING partition")
            .bind(&scene.name)
            .fetch_all(&scene.pool)
            .await?;
    let (config, topic) =
        (config(&ground.brokers)?.consumer("outrider-bench", &scene.name), format!("{}s", scene.name));
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create()?;
        let mut list = TopicPartitionList::new();
        for partition in rows {
            list.add_partition_offset(&topic, partition, Offset::Offset(0))?;
        }
        // The coordinator of the group is to be found first.
        consumer.committed_offsets(list.clone(), Duration::from_secs(10))?;
        consumer.commit(&list, CommitMode::Sync)?;
        anyhow::Ok(())
    })
    .await?
}
