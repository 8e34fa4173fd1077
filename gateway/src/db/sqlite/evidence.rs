//! Evidence, decisions and policies in SQLite: rows that are only ever added.

use pushgate_policies::record::{Outcome, RecordedIdentity};
use serde_json::json;
use sqlx::SqliteConnection;

use super::*;
use crate::db::sqlite::pushes::{CLAIM_COLUMNS, claim_row};

/// Facts of decisions that are read at once, in bytes, beyond those of one: a decision may rest on thousands of sources.
const DECISION_BYTES: i64 = 8 << 20;

/// The last decision among the columns of a row: policy, digest of
/// the facts, decision, rule, code, from column `at` on.
pub(super) fn decided(row: &SqliteRow, at: usize) -> Result<Option<Decided>> {
    let Some(policy) = row.try_get::<Option<String>, _>(at)? else { return Ok(None) };
    let outcome = Outcome {
        decision: row.try_get::<String, _>(at + 2)?.into(),
        rule: row.try_get(at + 3)?,
        code: row.try_get(at + 4)?,
    };
    let facts = sha256(&row.try_get::<String, _>(at + 1)?)?;
    Ok(Some(Decided { policy: sha256(&policy)?, facts, outcome }))
}

fn decision_row(row: &SqliteRow) -> Result<DecisionRow> {
    let decided = decided(row, 3)?.ok_or_else(|| corrupt("a decision", ""))?;
    Ok(DecisionRow {
        id: row.try_get(0)?,
        facts: facts(row.try_get(1)?)?,
        made: time(row.try_get(2)?),
        superseded: row.try_get(8)?,
        decided,
    })
}

fn facts(raw: Vec<u8>) -> Result<String> {
    String::from_utf8(raw).map_err(|_| corrupt("facts of a decision", "bytes that are no text"))
}

/// A claim with its push and submitter; what follows may name `c`, `d`, `p` and `i`.
fn shown(rest: &str) -> String {
    let columns = CLAIM_COLUMNS.replace(
        " FROM claims c",
        ", i.name, i.owner, p.created, p.expires, CAST(d.facts AS TEXT) ->> 'nar-size' FROM claims c JOIN pushes p ON p.id = c.push \
         JOIN identities i ON i.id = c.identity",
    );
    format!("{columns} {rest}")
}

fn claim_shown(row: &SqliteRow) -> Result<ClaimShown> {
    Ok(ClaimShown {
        claim: claim_row(row)?,
        submitter: row.try_get(14)?,
        owner: row.try_get(15)?,
        announced: time(row.try_get(16)?),
        expires: time(row.try_get(17)?),
        nar_size: row.try_get::<Option<i64>, _>(18)?.and_then(|bytes| bytes.try_into().ok()),
    })
}

/// Stores new decisions and points their claims at them.
pub(super) async fn add_decisions(tx: &mut SqliteConnection, judged: &Judged) -> Result<()> {
    let rows: Vec<Value> = (judged.claims.iter())
        .filter_map(|claim| {
            let NewDecision { decided, facts } = claim.decision.as_ref()?;
            let Outcome { decision, rule, code } = &decided.outcome;
            let (policy, digest) = (decided.policy.base32(), decided.facts.base32());
            Some(json!([claim.id, policy, decision, rule, code, facts, digest]))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let rows = Value::from(rows).to_string();
    sqlx::query(
        "INSERT INTO decisions (claim, cache, policy, decision, rule, code, facts, digest, made) \
         SELECT value ->> 0, ?1, value ->> 1, value ->> 2, value ->> 3, value ->> 4, CAST(value ->> 5 AS BLOB), \
         value ->> 6, ?2 \
         FROM json_each(?3)",
    )
    .bind(&judged.cache)
    .bind(sql(judged.now))
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE claims SET decision = (SELECT max(id) FROM decisions d WHERE d.claim = claims.id) \
         WHERE id IN (SELECT value ->> 0 FROM json_each(?))",
    )
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// How often an identity has said this of these contents.
pub(super) async fn said(tx: &mut SqliteConnection, row: &NewEvidence) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "SELECT count(*) FROM evidence WHERE cache = ? AND path = ? AND nar_hash = ? AND kind = ? AND identity = ?",
    )
    .bind(&row.cache)
    .bind(row.path.base_name())
    .bind(row.nar_hash.base32())
    .bind(row.kind.as_str())
    .bind(row.identity)
    .fetch_one(tx)
    .await?)
}

/// Adds a row; false where it is there already.
pub(super) async fn add(tx: &mut SqliteConnection, row: &NewEvidence, now: u64) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO evidence (cache, path, nar_hash, kind, identity, key, until, word, reason, envelope, created) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(&row.cache)
    .bind(row.path.base_name())
    .bind(row.nar_hash.base32())
    .bind(row.kind.as_str())
    .bind(row.identity)
    .bind(pushes::key_text(&row.key))
    .bind(row.until.map(sql))
    .bind(&row.word)
    .bind(&row.reason)
    .bind(&row.envelope)
    .bind(sql(now))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() > 0)
}

impl Sqlite {
    pub(super) async fn insert_evidence(&self, rows: &[NewEvidence], now: u64) -> Result<Vec<StorePath>> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let mut new = Vec::new();
        for row in rows {
            if add(&mut tx, row, now).await? {
                new.push(row.path.clone());
            }
        }
        tx.commit().await?;
        Ok(new)
    }

    pub(super) async fn list_evidence(&self, cache: &str, paths: &[StorePath]) -> Result<Vec<EvidenceRow>> {
        let rows = sqlx::query(
            "SELECT e.path, e.nar_hash, e.kind, i.name, i.role, i.owner, i.groups, e.until, e.word, e.reason, e.created \
             FROM json_each(?2) AS asked CROSS JOIN evidence e ON e.cache = ?1 AND e.path = asked.value \
             JOIN identities i ON i.id = e.identity JOIN keys k ON k.public = e.key \
             WHERE i.frozen = 0 AND k.revoked IS NULL ORDER BY e.id",
        )
        .bind(cache)
        .bind(paths_json(paths))
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(EvidenceRow {
                    path: path(&row.try_get::<String, _>(0)?)?,
                    nar_hash: sha256(&row.try_get::<String, _>(1)?)?,
                    kind: EvidenceKind::parse(&row.try_get::<String, _>(2)?)?,
                    by: row.try_get(3)?,
                    role: role(&row.try_get::<String, _>(4)?)?,
                    owner: row.try_get(5)?,
                    groups: list(&row.try_get::<String, _>(6)?)?,
                    until: row.try_get::<Option<i64>, _>(7)?.map(time),
                    word: row.try_get(8)?,
                    reason: row.try_get(9)?,
                    created: time(row.try_get(10)?),
                })
            })
            .collect()
    }

    pub(super) async fn insert_policy(
        &self,
        cache: &str,
        digest: &Sha256,
        text: &str,
        now: u64,
    ) -> Result<()> {
        let text = zstd::bulk::compress(text.as_bytes(), 3).map_err(sqlx::Error::Io)?;
        sqlx::query("INSERT OR IGNORE INTO policies (cache, digest, text, since) VALUES (?, ?, ?, ?)")
            .bind(cache)
            .bind(digest.base32())
            .bind(text)
            .bind(sql(now))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    pub(super) async fn list_held_decisions(
        &self,
        cache: &str,
        after: i64,
        most: u32,
    ) -> Result<Vec<HeldDecision>> {
        let rows = sqlx::query(
            "SELECT c.id, c.push, c.code, c.message, d.facts, d.policy, d.digest, d.decision, d.rule, d.code, \
             i.name, i.owner, i.groups FROM (\
             SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (\
             SELECT c.id, length(d.facts) AS size \
             FROM claims c INDEXED BY claims_held JOIN decisions d ON d.id = c.decision \
             WHERE c.cache = ? AND c.id > ? AND c.state = 'held' ORDER BY c.id LIMIT ?)) AS page \
             CROSS JOIN claims c ON c.id = page.id JOIN decisions d ON d.id = c.decision \
             JOIN identities i ON i.id = c.identity WHERE page.before < ? ORDER BY c.id",
        )
        .bind(cache)
        .bind(after)
        .bind(most)
        .bind(DECISION_BYTES)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(HeldDecision {
                    claim: row.try_get(0)?,
                    push: row.try_get(1)?,
                    code: row.try_get(2)?,
                    message: row.try_get(3)?,
                    facts: facts(row.try_get(4)?)?,
                    submitter: RecordedIdentity {
                        name: row.try_get(10)?,
                        owner: row.try_get(11)?,
                        groups: list(&row.try_get::<String, _>(12)?)?,
                    },
                    decided: decided(row, 5)?.ok_or_else(|| corrupt("a decision", ""))?,
                })
            })
            .collect()
    }

    pub(super) async fn update_held_claims(&self, judged: &Judged) -> Result<()> {
        let rows = Value::from_iter(judged.claims.iter().map(|c| {
            let waits = Value::from(c.waits.clone()).to_string();
            json!([c.id, c.state.as_str(), c.code, c.message, waits, c.again])
        }));
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            // whatever else the claim was to be looked at for still stands, such as an upstream to be asked again
            "UPDATE claims SET state = j.value ->> 1, code = j.value ->> 2, message = j.value ->> 3, \
             waits = j.value ->> 4, decided = ?1, \
             again = min(ifnull(again, j.value ->> 5), ifnull(j.value ->> 5, again)) FROM json_each(?2) AS j \
             WHERE claims.id = j.value ->> 0 AND claims.state = 'held'",
        )
        .bind(sql(judged.now))
        .bind(rows.to_string())
        .execute(&mut *tx)
        .await?;
        add_decisions(&mut tx, judged).await?;
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn take_due_pushes(&self, now: u64) -> Result<Vec<(String, String)>> {
        let rows = sqlx::query(
            "UPDATE claims SET again = NULL WHERE again <= ? AND state = 'held' RETURNING cache, push",
        )
        .bind(sql(now))
        .fetch_all(&self.write)
        .await?;
        let mut due = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<Vec<(String, String)>>>()?;
        due.sort();
        due.dedup();
        Ok(due)
    }

    pub(super) async fn list_open_pushes_of_path(
        &self,
        cache: &str,
        path: &StorePath,
    ) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT DISTINCT push FROM claims WHERE cache = ? AND path = ? \
             AND state IN ('wanted', 'checking', 'held')",
        )
        .bind(cache)
        .bind(path.base_name())
        .fetch_all(&self.read)
        .await?)
    }

    pub(super) async fn list_decisions(
        &self,
        cache: &str,
        after: i64,
        most: u32,
    ) -> Result<Vec<DecisionRow>> {
        let rows = sqlx::query(
            "SELECT d.id, d.facts, d.made, d.policy, d.digest, d.decision, d.rule, d.code, \
             EXISTS (SELECT 1 FROM decisions later WHERE later.claim = d.claim AND later.id > d.id) FROM (\
             SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM (\
             SELECT id, length(facts) AS size FROM decisions WHERE cache = ? AND id > ? ORDER BY id LIMIT ?)) AS page \
             CROSS JOIN decisions d ON d.id = page.id WHERE page.before < ? ORDER BY d.id",
        )
        .bind(cache)
        .bind(after)
        .bind(most)
        .bind(DECISION_BYTES)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(decision_row).collect()
    }

    pub(super) async fn find_last_decision(&self, claim: i64) -> Result<Option<DecisionRow>> {
        let row = sqlx::query(
            "SELECT id, facts, made, policy, digest, decision, rule, code, 0 FROM decisions WHERE claim = ? \
             ORDER BY id DESC LIMIT 1",
        )
        .bind(claim)
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(decision_row).transpose()
    }

    pub(super) async fn list_held_claims(
        &self,
        cache: &str,
        after: i64,
        most: u32,
    ) -> Result<Vec<ClaimShown>> {
        let query = shown(
            // what is kept for verifiers waits for nobody
            "WHERE c.cache = ? AND c.state = 'held' AND c.code IS NOT 'kept-as-input' AND c.id > ? ORDER BY c.id LIMIT ?",
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(cache)
            .bind(after)
            .bind(most)
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(claim_shown).collect()
    }

    pub(super) async fn list_claims_shown(
        &self,
        cache: &str,
        paths: &[StorePath],
    ) -> Result<Vec<ClaimShown>> {
        // each submitter has his turn, and what is open goes first: nobody's claims hide another's
        let query = shown(
            "WHERE c.id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY path, identity \
             ORDER BY state IN ('wanted', 'checking', 'held') DESC, id DESC) AS turn FROM claims \
             WHERE cache = ? AND path IN (SELECT value FROM json_each(?))) ORDER BY turn, id DESC LIMIT 1000) \
             ORDER BY c.id DESC",
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(cache)
            .bind(paths_json(paths))
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(claim_shown).collect()
    }

    pub(super) async fn list_conflict_paths(
        &self,
        cache: &str,
        after: Option<&StorePath>,
        most: u32,
    ) -> Result<Vec<StorePath>> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT k.path FROM conflicts k JOIN claims c ON c.id = k.claim \
             WHERE k.cache = ? AND k.path > ? AND c.state = 'held' \
             AND c.code IN ('conflicts-with-claim', 'conflicts-with-published') ORDER BY k.path LIMIT ?",
        )
        .bind(cache)
        .bind(after.map_or("", StorePath::base_name))
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|text| path(text)).collect()
    }
}
