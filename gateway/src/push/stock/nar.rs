//! NAR files of stock Nix into stages 3 and 4. What path they are for isn't known yet: grammar, hashes and size are checked
//! now, references when the narinfo says which.

use std::{io, sync::Arc};

use pushgate_formats::Sha256;

use super::{Pusher, narinfo::file_name};
use crate::{
    app::App,
    blobs::{PackRange, PackWriter},
    db::StockNarRow,
    error::ApiError,
    push::{
        intake::{Compression, Examiner, IntakeError, Plan},
        quarantine::{self, Quarantined},
        upload::Budget,
    },
};

/// How long a NAR file waits for its narinfo, in seconds. Nix sends the largest NARs first and narinfos after all that
/// they refer to.
pub const WAITS: u64 = 86_400;

#[derive(Debug, thiserror::Error)]
pub enum NarFileError {
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("the file's hash is `{found}`, its name says `{named}`")]
    FileHash { found: Sha256, named: Sha256 },
    #[error(
        "the submitter's quarantine is full ({0} bytes are allowed): wait for held paths to be decided, or ask the admin"
    )]
    Quota(u64),
    #[error("blob store")]
    Io(#[from] io::Error),
}

impl NarFileError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Intake(e) => e.code(),
            Self::FileHash { .. } => "file-hash-mismatch",
            Self::Quota(_) => "quota-exceeded",
            Self::Io(_) => "unavailable",
        }
    }
}

impl From<NarFileError> for ApiError {
    fn from(error: NarFileError) -> Self {
        let status = match error {
            NarFileError::Io(e) => return e.into(),
            // the same is good again once something was decided, but not in a moment
            NarFileError::Quota(_) => http::StatusCode::INSUFFICIENT_STORAGE,
            _ => http::StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

/// A NAR file that is being received. Takes pieces of the body, blocking. Dropped unfinished, it leaves nothing.
pub struct NarFile {
    named: (Sha256, Compression),
    examiner: Examiner,
    pack: Box<dyn PackWriter>,
    taken: Taken,
}

impl NarFile {
    /// Begins to receive a file. `limit` is the largest NAR that the policy allows, `announced` the body's size where it is
    /// known: it is taken from the budget before the first byte is read.
    pub fn begin(
        app: &App,
        named: (Sha256, Compression),
        limit: u64,
        budget: Budget,
        announced: Option<u64>,
    ) -> Result<Self, NarFileError> {
        let mut taken = Taken { budget, bytes: 0 };
        taken.grow(announced.unwrap_or(0))?;
        // it may turn out to be a derivation's, but its text isn't kept for that
        let plan = Plan { limit, ..Plan::default() };
        Ok(Self { named, examiner: Examiner::new(named.1, plan), pack: app.blobs.begin_pack()?, taken })
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NarFileError> {
        self.taken.grow(self.pack.position() + bytes.len() as u64)?;
        self.examiner.feed(bytes)?;
        self.pack.write(bytes)?;
        Ok(())
    }

    /// Ends the file and makes its bytes durable. A crash after it leaves a pack without rows, which is swept.
    pub fn finish(self) -> Result<Arc<Quarantined>, NarFileError> {
        let examined = self.examiner.finish()?;
        if examined.file_hash != self.named.0 {
            return Err(NarFileError::FileHash { found: examined.file_hash, named: self.named.0 });
        }
        let length = self.pack.position();
        let range = PackRange { pack: self.pack.finish()?, start: 0, length };
        self.taken.keep();
        Ok(Arc::new(Quarantined { range, compression: self.named.1, examined }))
    }
}

/// Bytes of a budget, given back unless they are kept.
struct Taken {
    budget: Budget,
    bytes: u64,
}

impl Taken {
    /// Takes as many as make `to` together.
    fn grow(&mut self, to: u64) -> Result<(), NarFileError> {
        let more = to.saturating_sub(self.bytes);
        if more > 0 && !self.budget.take(more) {
            return Err(NarFileError::Quota(self.budget.most));
        }
        self.bytes += more;
        Ok(())
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Stores the rows of a received file. The name comes first, since it keeps the bytes from being swept; a crash between
/// the two leaves a name without bytes, which says nothing and runs out.
pub async fn store(app: &App, pusher: &Pusher, nar: Arc<Quarantined>) -> Result<(), ApiError> {
    let expires = app.clock.now() + WAITS.min(pusher.cache.policy().limits.quarantine_ttl);
    let row = StockNarRow {
        identity: pusher.identity,
        cache: pusher.cache.name.clone(),
        file: file_name(&nar.examined.file_hash, nar.compression),
        nar_hash: nar.examined.nar_hash,
        expires,
    };
    app.db.add_stock_nar(&row).await?;
    quarantine::store(app.db.as_ref(), &app.blobs, pusher.identity, expires, vec![nar]).await?;
    Ok(())
}
