//! Acts in SQLite: each is one transaction, in which the event, the act and what it changes are written. A crash leaves all
//! of it or nothing.

use pushgate_formats::acts::ActDone;
use sqlx::SqliteConnection;

use super::{events::key_bytes, *};

/// Most good tokens of one identity.
const MOST_TOKENS: i64 = 100;
/// How often one identity may say the same of the same contents: each time is kept, and every decision rests on all of them.
const MOST_WORDS: i64 = 16;

/// Why a change was not made, or how many rows it changed.
type Changed = std::result::Result<u64, Acted>;

impl Sqlite {
    pub(super) async fn carry_out(
        &self,
        event: &NewEvent,
        signed: Option<&SignedAct>,
        change: &Change,
    ) -> Result<Acted> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(act) = signed {
            if let Some(done) = find(&mut tx, &act.digest).await? {
                return Ok(Acted::Known(done));
            }
            let used: Option<i64> = sqlx::query_scalar("SELECT 1 FROM acts WHERE key = ? AND nonce = ?")
                .bind(key_bytes(&act.key))
                .bind(&act.nonce)
                .fetch_optional(&mut *tx)
                .await?;
            if used.is_some() {
                return Ok(Acted::NonceUsed);
            }
            // two admins may freeze each other at the same time: whoever is first stops the other
            let good: Option<i64> = sqlx::query_scalar(
                "SELECT 1 FROM keys k JOIN identities i ON i.id = k.identity \
                 WHERE k.public = ? AND k.revoked IS NULL AND i.frozen = 0",
            )
            .bind(key_bytes(&act.key))
            .fetch_optional(&mut *tx)
            .await?;
            if good.is_none() {
                return Ok(Acted::Barred);
            }
        }
        let changed = match make(&mut tx, change, event.time).await? {
            Ok(changed) => changed,
            Err(refused) => return Ok(refused),
        };
        // whoever has the host can make another admin; whoever has only a key can't
        if signed.is_some() && !leaves_an_admin(&mut tx, change, event.time).await? {
            return Ok(Acted::LastAdmin);
        }
        let id = events::insert(&mut tx, event).await?;
        if let Some(act) = signed {
            sqlx::query("INSERT INTO acts (digest, key, nonce, event, changed) VALUES (?, ?, ?, ?, ?)")
                .bind(act.digest.base32())
                .bind(key_bytes(&act.key))
                .bind(&act.nonce)
                .bind(id)
                .bind(sql(changed))
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(Acted::Done(ActDone { event: time(id), changed }))
    }

    pub(super) async fn known_act(&self, digest: &Sha256) -> Result<Option<ActDone>> {
        find(&mut *self.read.acquire().await?, digest).await
    }
}

async fn find(connection: &mut SqliteConnection, digest: &Sha256) -> Result<Option<ActDone>> {
    let row = sqlx::query("SELECT event, changed FROM acts WHERE digest = ?")
        .bind(digest.base32())
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok(ActDone { event: time(row.try_get(0)?), changed: time(row.try_get(1)?) })).transpose()
}

async fn make(tx: &mut SqliteConnection, change: &Change, now: u64) -> Result<Changed> {
    match change {
        Change::Nothing => Ok(Ok(0)),
        Change::Evidence(row) => {
            if super::evidence::said(tx, row).await? >= MOST_WORDS {
                return Ok(Err(Acted::TooManyWords));
            }
            Ok(Ok(super::evidence::add(tx, row, now).await?.into()))
        }
        Change::Invite(invite) => add_invite(tx, invite).await,
        Change::Groups { name, groups } => {
            set(tx, name, "groups", Some(&Value::from(groups.clone()).to_string())).await
        }
        Change::Owner { name, owner } => set(tx, name, "owner", owner.as_deref()).await,
        Change::Frozen { name, frozen } => {
            let Some(identity) = identity(tx, name).await? else { return Ok(Err(Acted::Absent)) };
            let done = sqlx::query("UPDATE identities SET frozen = ?1 WHERE id = ?2 AND frozen IS NOT ?1")
                .bind(frozen)
                .bind(identity)
                .execute(&mut *tx)
                .await?;
            // whoever is let go again has his keys let go too, also where only those were held
            let keys = match frozen {
                true => 0,
                false => sqlx::query("UPDATE keys SET held = NULL WHERE identity = ? AND held IS NOT NULL")
                    .bind(identity)
                    .execute(&mut *tx)
                    .await?
                    .rows_affected(),
            };
            Ok(Ok(done.rows_affected().max(keys)))
        }
        Change::RevokeKey(key) => revoke_key(tx, key, now).await,
        Change::Rotate { key, old_expires, invite } => {
            let known: Option<i64> =
                sqlx::query_scalar("SELECT 1 FROM keys WHERE name = ? AND revoked IS NULL")
                    .bind(key.as_str())
                    .fetch_optional(&mut *tx)
                    .await?;
            if known.is_none() {
                return Ok(Err(Acted::Absent));
            }
            if let Err(refused) = add_invite(tx, invite).await? {
                return Ok(Err(refused));
            }
            let done = sqlx::query(
                "UPDATE keys SET expires = ?1 WHERE name = ?2 AND (expires IS NULL OR expires > ?1)",
            )
            .bind(sql(*old_expires))
            .bind(key.as_str())
            .execute(tx)
            .await?;
            Ok(Ok(done.rows_affected()))
        }
        Change::MakeToken(token) => add_token(tx, token).await,
        Change::RevokeTokens { name, token } => {
            let Some(identity) = identity(tx, name).await? else { return Ok(Err(Acted::Absent)) };
            let token = token.map(|t| t.base32());
            if let Some(token) = &token {
                let known: Option<i64> =
                    sqlx::query_scalar("SELECT 1 FROM tokens WHERE identity = ? AND hash = ?")
                        .bind(identity)
                        .bind(token)
                        .fetch_optional(&mut *tx)
                        .await?;
                if known.is_none() {
                    return Ok(Err(Acted::Absent));
                }
            }
            let done = sqlx::query(
                "UPDATE tokens SET revoked = ?1 \
                 WHERE identity = ?2 AND revoked IS NULL AND (?3 IS NULL OR hash = ?3)",
            )
            .bind(sql(now))
            .bind(identity)
            .bind(token)
            .execute(tx)
            .await?;
            Ok(Ok(done.rows_affected()))
        }
    }
}

async fn identity(tx: &mut SqliteConnection, name: &str) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar("SELECT id FROM identities WHERE name = ?").bind(name).fetch_optional(tx).await?)
}

async fn set(
    tx: &mut SqliteConnection,
    name: &str,
    column: &'static str,
    value: Option<&str>,
) -> Result<Changed> {
    let Some(identity) = identity(tx, name).await? else { return Ok(Err(Acted::Absent)) };
    let text = format!("UPDATE identities SET {column} = ?1 WHERE id = ?2 AND {column} IS NOT ?1");
    let done = sqlx::query(sqlx::AssertSqlSafe(text)).bind(value).bind(identity).execute(tx).await?;
    Ok(Ok(done.rows_affected()))
}

async fn add_invite(tx: &mut SqliteConnection, invite: &InviteRow) -> Result<Changed> {
    let done = sqlx::query(
        "INSERT INTO invites (code, name, role, owner, groups, caches, created, expires, key_expires) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (code) DO NOTHING",
    )
    .bind(invite.code.base32())
    .bind(&invite.name)
    .bind(invite.role.as_str())
    .bind(&invite.owner)
    .bind(Value::from(invite.groups.clone()).to_string())
    .bind(invite.caches.clone().map(|c| Value::from(c).to_string()))
    .bind(sql(invite.created))
    .bind(sql(invite.expires))
    .bind(invite.key_expires.map(sql))
    .execute(tx)
    .await?;
    Ok(if done.rows_affected() == 1 { Ok(1) } else { Err(Acted::CodeUsed) })
}

async fn revoke_key(tx: &mut SqliteConnection, key: &KeyName, now: u64) -> Result<Changed> {
    let row = sqlx::query("SELECT identity, revoked FROM keys WHERE name = ?")
        .bind(key.as_str())
        .fetch_optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(Err(Acted::Absent)) };
    let identity: i64 = row.try_get(0)?;
    let done = sqlx::query("UPDATE keys SET revoked = ? WHERE name = ? AND revoked IS NULL")
        .bind(sql(now))
        .bind(key.as_str())
        .execute(&mut *tx)
        .await?;
    sqlx::query("UPDATE tokens SET revoked = ? WHERE identity = ? AND revoked IS NULL")
        .bind(sql(now))
        .bind(identity)
        .execute(tx)
        .await?;
    Ok(Ok(done.rows_affected()))
}

async fn add_token(tx: &mut SqliteConnection, token: &TokenRow) -> Result<Changed> {
    sqlx::query("DELETE FROM tokens WHERE identity = ? AND expires <= ?")
        .bind(token.identity)
        .bind(sql(token.created))
        .execute(&mut *tx)
        .await?;
    let good: i64 = sqlx::query_scalar("SELECT count(*) FROM tokens WHERE identity = ? AND revoked IS NULL")
        .bind(token.identity)
        .fetch_one(&mut *tx)
        .await?;
    if good >= MOST_TOKENS {
        return Ok(Err(Acted::TooManyTokens));
    }
    let done = sqlx::query(
        "INSERT INTO tokens (hash, identity, cache, created, expires) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (hash) DO NOTHING",
    )
    .bind(token.hash.base32())
    .bind(token.identity)
    .bind(&token.cache)
    .bind(sql(token.created))
    .bind(token.expires.map(sql))
    .execute(tx)
    .await?;
    Ok(if done.rows_affected() == 1 { Ok(1) } else { Err(Acted::CodeUsed) })
}

/// Whether an admin can still act after this change: now, or once a key that it lets run out has done so.
async fn leaves_an_admin(tx: &mut SqliteConnection, change: &Change, now: u64) -> Result<bool> {
    let at = match change {
        Change::Frozen { frozen: true, .. } | Change::RevokeKey(_) => now,
        Change::Rotate { old_expires, invite, .. } if invite.role == Role::Admin => (*old_expires).max(now),
        _ => return Ok(true),
    };
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM keys k JOIN identities i ON i.id = k.identity \
         WHERE i.role = 'admin' AND i.frozen = 0 AND k.revoked IS NULL AND (k.expires IS NULL OR k.expires > ?)",
    )
    .bind(sql(at))
    .fetch_one(tx)
    .await?;
    Ok(left > 0)
}
