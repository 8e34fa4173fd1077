//! Forgetting what ended long ago, in SQLite.
//!
//! What stays for ever: rows of published paths, leaves, claims that were published or that are in conflict with the
//! announcement that made them, and the derivation closures of published paths.

use std::collections::BTreeMap;

use pushgate_formats::derivation::Derivation;

use super::*;

/// States in which something can still happen to a claim.
const OPEN: &str = "('wanted', 'checking', 'held')";
/// Pushes that are forgotten in one transaction.
const PUSHES: u32 = 50;
/// Derivations whose inputs are marked, or that are forgotten, in one transaction.
const DERIVATIONS: u32 = 500;

impl Sqlite {
    /// Each step is a transaction of its own; a crash between two leaves the rest for the next time.
    pub(super) async fn forget_ended(&self, pushes: u64, derivations: u64) -> Result<Forgotten> {
        let (pushes, claims) = self.forget_pushes(pushes).await?;
        let mut forgotten = Forgotten { pushes, claims, more: pushes > 0, ..Forgotten::default() };
        if self.mark_inputs().await? {
            forgotten.more = true;
        } else {
            let unused;
            (unused, forgotten.derivations, forgotten.freed) = self.forget_derivations(derivations).await?;
            forgotten.more |= unused > 0;
        }
        Ok(forgotten)
    }

    /// What is left of a push is what it published, and what is in conflict: evidence. The announcement stays with it,
    /// since the signatures are there.
    async fn forget_pushes(&self, before: u64) -> Result<(u64, u64)> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let ids: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT id FROM pushes p WHERE forgotten = 0 AND expires <= ? \
             AND NOT EXISTS (SELECT 1 FROM claims c WHERE c.push = p.id AND c.state IN {OPEN}) \
             ORDER BY expires LIMIT {PUSHES}"
        )))
        .bind(sql(before))
        .fetch_all(&mut *tx)
        .await?;
        if ids.is_empty() {
            return Ok((0, 0));
        }
        let ids = Value::from(ids).to_string();
        let mut changed = [0; 5];
        let steps = [
            // what was decided of them goes with them
            "DELETE FROM decisions WHERE claim IN (SELECT c.id FROM claims c WHERE c.push IN (SELECT value FROM json_each(?)) \
             AND c.state <> 'published' AND NOT EXISTS (SELECT 1 FROM conflicts k WHERE k.claim = c.id))",
            "DELETE FROM claims WHERE push IN (SELECT value FROM json_each(?)) AND state <> 'published' \
             AND NOT EXISTS (SELECT 1 FROM conflicts k WHERE k.claim = claims.id)",
            "DELETE FROM realisations WHERE push IN (SELECT value FROM json_each(?)) AND state <> 'published'",
            "DELETE FROM pushes WHERE id IN (SELECT value FROM json_each(?)) \
             AND NOT EXISTS (SELECT 1 FROM claims c WHERE c.push = pushes.id) \
             AND NOT EXISTS (SELECT 1 FROM realisations r WHERE r.push = pushes.id)",
            "UPDATE pushes SET forgotten = 1 WHERE id IN (SELECT value FROM json_each(?))",
        ];
        for (changed, step) in changed.iter_mut().zip(steps) {
            *changed = sqlx::query(step).bind(&ids).execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        let [_, claims, _, gone, left] = changed;
        Ok((gone + left, claims))
    }

    /// What a derivation that stays is made from stays too. True where there was something to mark.
    async fn mark_inputs(&self) -> Result<bool> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT path, text FROM derivations WHERE evidence = 1 LIMIT {DERIVATIONS}"
        )))
        .fetch_all(&self.read)
        .await?;
        if rows.is_empty() {
            return Ok(false);
        }
        let (mut marked, mut inputs) = (Vec::new(), BTreeSet::new());
        for row in &rows {
            let base: String = row.try_get(0)?;
            let text = zstd::bulk::decompress(row.try_get(1)?, pushgate_formats::derivation::MAX_DERIVATION)
                .map_err(|_| corrupt("a derivation", base.as_str()))?;
            // one that can't be parsed is evidence for nothing
            inputs.extend(Derivation::parse(&text).map(|d| d.input_drvs).unwrap_or_default().into_keys());
            marked.push(base);
        }
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "UPDATE derivations SET evidence = 1 WHERE evidence = 0 AND path IN (SELECT value FROM json_each(?))",
        )
        .bind(paths_json(&inputs))
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE derivations SET evidence = 2 WHERE path IN (SELECT value FROM json_each(?))")
            .bind(Value::from(marked).to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Derivations that no push has announced for long: they don't count for their senders any more, and go unless they are
    /// evidence or somebody else uses them.
    async fn forget_derivations(&self, before: u64) -> Result<(usize, u64, Vec<(i64, u64)>)> {
        let old = "SELECT identity, path FROM derivation_senders WHERE used <= ?";
        let any: Option<i64> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT 1 FROM ({old}) LIMIT 1")))
                .bind(sql(before))
                .fetch_optional(&self.read)
                .await?;
        if any.is_none() {
            return Ok((0, 0, vec![]));
        }
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        // something was published meanwhile: its inputs come first
        let unmarked: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM derivations WHERE evidence = 1 LIMIT 1")
                .fetch_optional(&mut *tx)
                .await?;
        if unmarked.is_some() {
            return Ok((0, 0, vec![]));
        }
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "DELETE FROM derivation_senders WHERE (identity, path) IN ({old} LIMIT {DERIVATIONS}) \
             RETURNING identity, path"
        )))
        .bind(sql(before))
        .fetch_all(&mut *tx)
        .await?;
        let gone = rows
            .iter()
            .map(|row| Ok(serde_json::json!([row.try_get::<i64, _>(0)?, row.try_get::<String, _>(1)?])))
            .collect::<Result<Vec<Value>>>()?;
        let gone = Value::from(gone).to_string();
        let released = sqlx::query(
            "SELECT d.payer, length(d.text) FROM json_each(?) AS j \
             JOIN derivations d ON d.path = j.value ->> 1 AND d.payer = j.value ->> 0",
        )
        .bind(&gone)
        .fetch_all(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE derivations SET payer = NULL FROM json_each(?) AS j \
             WHERE derivations.path = j.value ->> 1 AND derivations.payer = j.value ->> 0",
        )
        .bind(&gone)
        .execute(&mut *tx)
        .await?;
        let freed = by_identity(&released)?;
        for (identity, bytes) in &freed {
            sqlx::query("UPDATE identities SET derivation_bytes = max(derivation_bytes - ?, 0) WHERE id = ?")
                .bind(sql(*bytes))
                .bind(identity)
                .execute(&mut *tx)
                .await?;
        }
        let forgotten = sqlx::query(
            "DELETE FROM derivations WHERE path IN (SELECT value ->> 1 FROM json_each(?)) AND evidence = 0 \
             AND NOT EXISTS (SELECT 1 FROM derivation_senders s WHERE s.path = derivations.path)",
        )
        .bind(&gone)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok((rows.len(), forgotten.rows_affected(), freed))
    }
}

/// Sums bytes: rows of identity and bytes.
pub(super) fn by_identity(rows: &[SqliteRow]) -> Result<Vec<(i64, u64)>> {
    let mut sums: BTreeMap<i64, u64> = BTreeMap::new();
    for row in rows {
        *sums.entry(row.try_get(0)?).or_default() += time(row.try_get(1)?);
    }
    Ok(sums.into_iter().collect())
}
