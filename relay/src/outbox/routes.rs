//! The table `relay_routes`.

use sqlx::PgConnection;

/// All of its routes: aggregate type and topic. A few rows, read whole.
///
/// # Errors
/// What the database says.
pub async fn routes(connection: &mut PgConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    let records = sqlx::query!(
        r#"-- routes
        SELECT aggregate_type, topic FROM relay_routes"#
    )
    .fetch_all(connection)
    .await?;
    Ok(records.into_iter().map(|record| (record.aggregate_type, record.topic)).collect())
}
