//! In place of the gateway's database: the rows that the checks look at. No target asks a database anything.

use std::collections::HashSet;

use async_trait::async_trait;
use pushgate_formats::{
    Sha256,
    keys::{KeyName, PublicKey},
};

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("the database holds `{value}` where {what} is expected")]
    Corrupt { what: &'static str, value: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Submitter,
    Verifier,
    Admin,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Verifier => "verifier",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Clone)]
pub struct EnrolledKey {
    pub key: PublicKey,
    pub identity: i64,
    pub identity_name: String,
    pub role: Role,
    pub owner: Option<String>,
    pub frozen: bool,
    pub caches: Option<Vec<String>>,
    pub expires: Option<u64>,
    pub revoked: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct QuarantineRow {
    pub nar_hash: Sha256,
    pub pack: String,
    pub start: u64,
    pub length: u64,
    pub compression: String,
    pub examined: String,
}

#[async_trait]
pub trait Db: Send + Sync + 'static {
    async fn key_named(&self, name: &KeyName) -> Result<Option<EnrolledKey>, DbError>;
    async fn quarantined(&self, identity: i64, nars: &[Sha256]) -> Result<Vec<QuarantineRow>, DbError>;
    async fn add_quarantined(
        &self,
        identity: i64,
        rows: &[QuarantineRow],
        expires: u64,
        now: u64,
    ) -> Result<HashSet<Sha256>, DbError>;
}
