//! All SQL of the processor itself: positions in [`offsets`], the inbox in [`inbox`], dead letters. That of the order handler is in [`orders`].

use sqlx::PgConnection;
use uuid::Uuid;

use crate::dead_letter::DeadLetter;
use crate::record::{Partition, Record};

pub(crate) use inbox::take_in;
pub(crate) use offsets::{advance, positions};

pub(crate) mod inbox;
pub(crate) mod offsets;
pub mod orders;

/// Writes dead letters.
pub(crate) async fn bury(
    connection: &mut PgConnection,
    group: &str,
    partition: &Partition,
    letters: &[DeadLetter<'_>],
) -> Result<(), sqlx::Error> {
    let records = || letters.iter().map(|letter| letter.record);
    let offsets: Vec<i64> = records().map(|record| record.offset).collect();
    let keys: Vec<Option<&[u8]>> = records().map(|record| record.key.as_deref()).collect();
    let payloads: Vec<Option<&[u8]>> = records().map(|record: &Record| record.payload.as_deref()).collect();
    let event_ids: Vec<Option<Uuid>> = letters.iter().map(|letter| letter.event_id).collect();
    let event_types: Vec<Option<&str>> = letters.iter().map(|letter| letter.event_type.as_deref()).collect();
    let headers: Vec<&serde_json::Value> = letters.iter().map(|letter| &letter.headers).collect();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    let fingerprints: Vec<&str> = letters.iter().map(|letter| letter.fingerprint.as_str()).collect();
    // The conflict is a record that was given up before its partition was set back.
    sqlx::query!(
        r#"-- bury
        INSERT INTO dead_letters
            (group_id, topic, partition, record_offset, record_key, event_id, event_type, headers, payload, reason,
                fingerprint)
        SELECT $1, $2, $3, record_offset, record_key, event_id, event_type, headers, payload, reason, fingerprint
        FROM UNNEST($4::bigint[], $5::bytea[], $6::uuid[], $7::text[], $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
            AS new (record_offset, record_key, event_id, event_type, headers, payload, reason, fingerprint)
        ON CONFLICT ON CONSTRAINT dead_letters_record_key DO NOTHING"#,
        group,
        &partition.topic,
        partition.number,
        &offsets,
        &keys as _,
        &event_ids as _,
        &event_types as _,
        &headers as _,
        &payloads as _,
        &reasons as _,
        &fingerprints as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
