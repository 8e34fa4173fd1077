//! Caches, identities, keys and invites in SQLite.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;

const KEY_COLUMNS: &str = "SELECT k.name, k.public, k.identity, i.name, i.role, i.owner, i.frozen, k.caches, k.expires, \
     k.revoked, i.groups, k.held FROM keys k JOIN identities i ON i.id = k.identity";

fn key_row(row: &SqliteRow) -> Result<EnrolledKey> {
    let (name, public): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let caches: Option<String> = row.try_get(7)?;
    Ok(EnrolledKey {
        key: public_key(&format!("{name}:{public}"))?,
        identity: row.try_get(2)?,
        identity_name: row.try_get(3)?,
        role: role(&row.try_get::<String, _>(4)?)?,
        owner: row.try_get(5)?,
        groups: list(&row.try_get::<String, _>(10)?)?,
        frozen: row.try_get(6)?,
        caches: caches.map(|c| list(&c)).transpose()?,
        expires: row.try_get::<Option<i64>, _>(8)?.map(time),
        revoked: row.try_get::<Option<i64>, _>(9)?.map(time),
        held: row.try_get::<Option<i64>, _>(11)?.map(time),
    })
}

impl Sqlite {
    pub(super) async fn list_caches(&self) -> Result<Vec<CacheRow>> {
        let rows = sqlx::query("SELECT name, public_key, created FROM caches ORDER BY created, name")
            .fetch_all(&self.read)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(CacheRow {
                    name: row.try_get(0)?,
                    public_key: public_key(&row.try_get::<String, _>(1)?)?,
                    created: time(row.try_get(2)?),
                })
            })
            .collect()
    }

    pub(super) async fn insert_cache(&self, row: &CacheRow) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO caches (name, public_key, created) SELECT ?1, ?2, ?3 \
             WHERE NOT EXISTS (SELECT 1 FROM keys WHERE name = ?4) ON CONFLICT DO NOTHING",
        )
        .bind(&row.name)
        .bind(row.public_key.to_string())
        .bind(sql(row.created))
        .bind(row.public_key.name().as_str())
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(super) async fn has_invite(&self, code: &Sha256) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM invites WHERE code = ?")
            .bind(code.base32())
            .fetch_optional(&self.read)
            .await?;
        Ok(found.is_some())
    }

    /// One transaction: a crash leaves the invite unused and the key unknown, or both done.
    pub(super) async fn redeem_invite(&self, code: &Sha256, key: &PublicKey, now: u64) -> Result<Redeemed> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let invite = sqlx::query(
            "SELECT name, role, owner, groups, caches, key_expires FROM invites \
             WHERE code = ? AND used IS NULL AND expires > ?",
        )
        .bind(code.base32())
        .bind(sql(now))
        .fetch_optional(&mut *tx)
        .await?;
        let public = STANDARD.encode(key.bytes());
        let Some(invite) = invite else {
            // the very key that used it asks again: its first answer was lost
            let again =
                sqlx::query("SELECT name, role FROM invites WHERE code = ? AND used_by = ? AND expires > ?")
                    .bind(code.base32())
                    .bind(&public)
                    .bind(sql(now))
                    .fetch_optional(&mut *tx)
                    .await?;
            let Some(again) = again else { return Ok(Redeemed::Invalid) };
            let role = role(&again.try_get::<String, _>(1)?)?;
            return Ok(Redeemed::Enrolled { identity: again.try_get(0)?, role });
        };
        let taken: Option<String> = sqlx::query_scalar(
            "SELECT 'key' FROM keys WHERE public = ?1 \
             UNION ALL SELECT 'key' FROM caches WHERE substr(public_key, instr(public_key, ':') + 1) = ?1 \
             UNION ALL SELECT 'name' FROM keys WHERE name = ?2 \
             UNION ALL SELECT 'name' FROM caches WHERE substr(public_key, 1, instr(public_key, ':') - 1) = ?2 LIMIT 1",
        )
        .bind(&public)
        .bind(key.name().as_str())
        .fetch_optional(&mut *tx)
        .await?;
        match taken.as_deref() {
            Some("key") => return Ok(Redeemed::KeyTaken),
            Some(_) => return Ok(Redeemed::NameTaken),
            None => {}
        }
        let name: String = invite.try_get(0)?;
        let role = role(&invite.try_get::<String, _>(1)?)?;
        sqlx::query(
            "INSERT INTO identities (name, role, owner, groups, created) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&name)
        .bind(role.as_str())
        .bind(invite.try_get::<Option<String>, _>(2)?)
        .bind(invite.try_get::<String, _>(3)?)
        .bind(sql(now))
        .execute(&mut *tx)
        .await?;
        // An invite for a known name adds a key to it. Its role may have come to be another since the invite was made.
        let added = sqlx::query(
            "INSERT INTO keys (public, name, identity, caches, created, expires) \
             SELECT ?, ?, id, ?, ?, ? FROM identities WHERE name = ? AND role = ?",
        )
        .bind(&public)
        .bind(key.name().as_str())
        .bind(invite.try_get::<Option<String>, _>(4)?)
        .bind(sql(now))
        .bind(invite.try_get::<Option<i64>, _>(5)?)
        .bind(&name)
        .bind(role.as_str())
        .execute(&mut *tx)
        .await?;
        if added.rows_affected() == 0 {
            return Ok(Redeemed::Invalid);
        }
        let event = NewEvent {
            key: Some(key.name().clone()),
            subject: Some(name.clone()),
            detail: format!("a key for the {} `{name}`", role.as_str()),
            ..NewEvent::new(now, &name, "enrolled")
        };
        events::insert(&mut tx, &event).await?;
        sqlx::query("UPDATE invites SET used = ?, used_by = ? WHERE code = ?")
            .bind(sql(now))
            .bind(&public)
            .bind(code.base32())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Redeemed::Enrolled { identity: name, role })
    }

    pub(super) async fn key_by_bytes(&self, key: &[u8; 32]) -> Result<Option<EnrolledKey>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{KEY_COLUMNS} WHERE k.public = ?")))
            .bind(STANDARD.encode(key))
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(key_row).transpose()
    }

    pub(super) async fn key_by_name(&self, name: &KeyName) -> Result<Option<EnrolledKey>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{KEY_COLUMNS} WHERE k.name = ?")))
            .bind(name.as_str())
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(key_row).transpose()
    }

    pub(super) async fn list_keys(&self) -> Result<Vec<EnrolledKey>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{KEY_COLUMNS} ORDER BY i.name, k.created")))
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(key_row).collect()
    }
}
