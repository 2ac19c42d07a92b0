//! What may be published twice.

use std::collections::BTreeMap;

use super::check::Violation;
use super::database::Row;
use super::ground::Ground;

/// The tokens under which the row was handed out again, since it lay beyond a cursor from which its type began again.
pub fn came_again(ground: &Ground, row: &Row) -> impl Iterator<Item = i64> {
    let key = row.key;
    let of_row = ground.again.iter().filter(move |again| {
        again.lane == key.lane && again.of == key.type_index.place() && !again.cursor.covers(key.id, key.txid)
    });
    of_row.map(|again| again.token)
}

/// Between two records of one event, some hold of the lane ended in a crash, a lost lease or an unknown outcome, or its type began again
/// behind it. Under one token it is published once, and once more each time that its type began again.
pub fn repeats_have_a_cause(ground: &Ground) -> Result<(), Violation> {
    let mut records: BTreeMap<i64, (Row, BTreeMap<i64, usize>)> = BTreeMap::new();
    for written in &ground.log {
        let (_, tokens) = records.entry(written.row.key.id).or_insert_with(|| (written.row, BTreeMap::new()));
        *tokens.entry(written.token).or_default() += 1;
    }
    for (id, (row, tokens)) in records {
        let again: Vec<i64> = came_again(ground, &row).collect();
        for (token, count) in &tokens {
            if *count > 1 + again.iter().filter(|of| *of == token).count() {
                return Err(Violation::Repeated(format!("id {id}, {count} times under the token {token}")));
            }
        }
        let tokens: Vec<i64> = tokens.into_keys().collect();
        for pair in tokens.windows(2) {
            let is_cause = |token: i64| ground.disturbed.contains(&(row.key.lane, token)) || again.contains(&token);
            if !(pair[0]..pair[1]).any(is_cause) {
                return Err(Violation::Repeated(format!("id {id}, under the tokens {pair:?}")));
            }
        }
    }
    Ok(())
}
