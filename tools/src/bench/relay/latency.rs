use super::Scale;
use crate::bench::figure::Figure;
use crate::bench::ground::Ground;
use anyhow::Result;
pub async fn measure(_ground: &Ground, _scale: Scale) -> Result<Vec<Figure>> {
    Ok(Vec::new())
}
