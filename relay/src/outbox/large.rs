//! Payloads and headers that a read leaves out because they are large.

use futures_util::TryStreamExt;
use sqlx::error::DatabaseError;
use sqlx::{PgConnection, Row};

use super::rows;
use crate::batch::Batch;

// A statement of its own sees another snapshot than the read, which is safe: a row of the outbox is never changed, and none is dropped
// before the relay has settled beyond it. Goes over (lane, id).
const READ_LARGE: &str = "-- read_large
SELECT k.number, o.payload, o.headers
FROM UNNEST($1::integer[], $2::smallint[], $3::bigint[]) k (number, lane, id)
CROSS JOIN LATERAL (
    SELECT payload, CASE WHEN pg_column_size(headers) <= 32768 THEN headers END AS headers FROM outbox WHERE lane = k.lane AND id = k.id
    OFFSET 0
) o";

/// Fetches payload and headers of the rows that are to be published and still wait for them. A row that the server cannot read becomes
/// one that no record can be made of, and the others come all the same.
///
/// # Errors
/// What the database says of anything but one row's content.
pub async fn fetch(connection: &mut PgConnection, batch: &mut Batch) -> Result<(), sqlx::Error> {
    while batch.awaited().next().is_some() {
        match fetch_all(connection, batch, usize::MAX).await {
            Ok(0) => return Err(sqlx::Error::RowNotFound),
            Ok(_) => {}
            Err(error) if is_of_content(&error) => fetch_one(connection, batch).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The first row that waits, alone.
async fn fetch_one(connection: &mut PgConnection, batch: &mut Batch) -> Result<(), sqlx::Error> {
    let Some((number, _)) = batch.awaited().next() else { return Ok(()) };
    match fetch_all(connection, batch, 1).await {
        Ok(0) => Err(sqlx::Error::RowNotFound),
        Ok(_) => Ok(()),
        Err(error) if is_of_content(&error) => {
            batch.set_fault(number, &format!("it cannot be read: {error}"));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// At most `rows_max` rows. Returns how many came.
async fn fetch_all(connection: &mut PgConnection, batch: &mut Batch, rows_max: usize) -> Result<usize, sqlx::Error> {
    let (mut numbers, mut lanes, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (number, key) in batch.awaited().take(rows_max) {
        numbers.push(i32::try_from(number).unwrap_or(i32::MAX));
        lanes.push(key.lane);
        ids.push(key.id);
    }
    let mut rows = sqlx::query(READ_LARGE).bind(&numbers).bind(&lanes).bind(&ids).fetch(connection);
    let mut came = 0;
    while let Some(row) = rows.try_next().await? {
        let number = usize::try_from(row.try_get_unchecked::<i32, _>(0)?).unwrap_or(usize::MAX);
        let mut fault = None;
        let payload = rows::json(&row.try_get_raw(1)?, &mut fault)?;
        let headers = rows::jsonb(&row.try_get_raw(2)?, &mut fault)?;
        match fault {
            None => batch.set_body(number, &payload, &headers),
            Some(reason) => batch.set_fault(number, &reason),
        }
        came += 1;
    }
    Ok(came)
}

/// Whether the server says this of what a row holds: it is too large for a message (54), does not convert (22), or is damaged (XX001).
fn is_of_content(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code.starts_with("54") || code.starts_with("22") || code == "XX001")
}
