//! NAR files of stock Nix into stages 3 and 4. What path they are for isn't known yet: grammar, hashes and size are checked
//! now, references when the narinfo says which.

use std::{io, sync::Arc};

use pushgate_formats::{Sha256, api::ErrorBody};

use super::{Pusher, narinfo::file_name};
use crate::{
    app::App,
    blobs::{PackRange, PackWriter},
    db::StockNarRow,
    error::ApiError,
    limits::{Budget, Counted},
    push::{
        intake::{Compression, Examiner, IntakeError, Plan},
        quarantine::{self, Quarantined},
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
    #[error("{}", .0.message)]
    Full(ErrorBody),
    #[error("the disk is nearly full")]
    DiskFull,
    #[error("blob store")]
    Io(#[from] io::Error),
}

impl From<NarFileError> for ApiError {
    fn from(error: NarFileError) -> Self {
        let code = match &error {
            NarFileError::Io(_) | NarFileError::DiskFull => "",
            NarFileError::Full(body) => return Self::full(body),
            NarFileError::Intake(e) => e.code(),
            NarFileError::FileHash { .. } => "file-hash-mismatch",
        };
        match error {
            NarFileError::Io(e) => e.into(),
            NarFileError::DiskFull => Self::disk_full(),
            other => Self::new(http::StatusCode::UNPROCESSABLE_ENTITY, code, other.to_string()),
        }
    }
}

/// A NAR file that is being received. Takes pieces of the body, blocking. Dropped unfinished, it leaves nothing.
pub struct NarFile {
    /// The file's hash, where it has one for a name.
    named: (Option<Sha256>, Compression),
    examiner: Examiner,
    pack: Box<dyn PackWriter>,
    counted: Counted,
    /// Bytes of the budget that are taken.
    reserved: u64,
}

impl NarFile {
    /// Begins to receive a file. `limit` is the largest NAR that the policy allows, `announced` the body's size where it is
    /// known: it is taken from the budget before the first byte is read.
    pub fn begin(
        app: &App,
        named: (Option<Sha256>, Compression),
        limit: u64,
        budget: Budget,
        announced: Option<u64>,
    ) -> Result<Self, NarFileError> {
        // it may turn out to be a derivation's, but its text isn't kept for that
        let plan = Plan { limit, ..Plan::default() };
        let (examiner, pack) = (Examiner::new(named.1, plan), app.blobs.begin_pack()?);
        let mut file = Self { named, examiner, pack, counted: Counted::new(budget), reserved: 0 };
        file.reserve(announced.unwrap_or(0))?;
        Ok(file)
    }

    /// Takes as many bytes of the budget as make `to` together.
    fn reserve(&mut self, to: u64) -> Result<(), NarFileError> {
        let more = to.saturating_sub(self.reserved);
        if more > 0 && !self.counted.take(more) {
            return Err(NarFileError::Full(self.counted.budget().refusal(more)));
        }
        self.reserved += more;
        Ok(())
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NarFileError> {
        self.reserve(self.pack.position() + bytes.len() as u64)?;
        self.examiner.feed(bytes)?;
        self.pack.write(bytes)?;
        Ok(())
    }

    /// Ends the file and makes its bytes durable. A crash after it leaves a pack without rows, which is swept. What is
    /// counted has to be kept until the rows are stored.
    pub fn finish(self) -> Result<(Arc<Quarantined>, Counted), NarFileError> {
        let examined = self.examiner.finish()?;
        if let Some(named) = self.named.0.filter(|named| *named != examined.file_hash) {
            return Err(NarFileError::FileHash { found: examined.file_hash, named });
        }
        let length = self.pack.position();
        let range = PackRange { pack: self.pack.finish(Some(&examined.file_hash))?, start: 0, length };
        Ok((Arc::new(Quarantined { range, compression: self.named.1, examined }), self.counted))
    }
}

/// Stores the rows of a received file. The name comes first, since it keeps the bytes from being swept; a crash between
/// the two leaves a name without bytes, which says nothing and runs out.
pub async fn store(
    app: &App,
    pusher: &Pusher,
    nar: Arc<Quarantined>,
    mut counted: Counted,
) -> Result<(), ApiError> {
    let expires = app.clock.now() + WAITS.min(pusher.cache.policy().limits.quarantine_ttl);
    let row = StockNarRow {
        identity: pusher.identity,
        cache: pusher.cache.name.clone(),
        file: file_name(&nar.examined.file_hash, nar.compression),
        nar_hash: nar.examined.nar_hash,
        expires,
    };
    app.db.add_stock_nar(&row).await?;
    let stored = quarantine::store(
        app.db.as_ref(),
        &app.blobs,
        pusher.identity,
        (expires, app.clock.now()),
        vec![nar],
    )
    .await?;
    counted.give_back(stored.1);
    counted.keep();
    Ok(())
}
