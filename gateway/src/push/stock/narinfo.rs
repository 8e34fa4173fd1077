//! Narinfos as a submitter sends them: strictly parsed, used for comparison, never published. What is published is
//! composed anew.

use pushgate_formats::{
    Sha256,
    api::MAX_REFERENCES,
    content_address::ContentAddress,
    keys::{PublicKey, Signature},
    narinfo::{Dialect, UnverifiedNarInfo},
};

use super::refusal;
use crate::{
    error::ApiError,
    push::{
        announce::Claim,
        intake::Compression,
        signature::{SignatureValid, verify_claim},
    },
};

/// A narinfo that has the right form.
#[derive(Debug)]
pub struct Sent {
    pub info: UnverifiedNarInfo,
    /// Name of the NAR file, without `nar/`.
    pub file: String,
    ca: Option<ContentAddress>,
}

/// The name of a NAR file, as Nix makes it: by the hash of the file itself.
pub fn file_name(file_hash: &Sha256, compression: Compression) -> String {
    format!("{}.nar{}", file_hash.base32(), compression.suffix())
}

/// Reads such a name.
pub fn parse_file_name(name: &str) -> Option<(Sha256, Compression)> {
    let (hash, rest) = name.split_once('.')?;
    let suffix = rest.strip_prefix("nar")?;
    let compression = Compression::ALL.into_iter().find(|c| c.suffix() == suffix)?;
    Some((Sha256::from_base32(hash)?, compression))
}

/// What makes the push of a narinfo unique: the same narinfo may be sent again after it was refused.
pub fn digest(cache: &str, nonce: &str, text: &[u8]) -> Sha256 {
    Sha256::of(&[b"pushgate narinfo\0", cache.as_bytes(), b"\0", nonce.as_bytes(), b"\0", text].concat())
}

impl Sent {
    /// Parses a narinfo that was sent under a name with this hash part.
    pub fn parse(text: &[u8], hash_part: &str) -> Result<Self, ApiError> {
        let info = UnverifiedNarInfo::parse(text, Dialect::Push)
            .map_err(|e| ApiError::bad_request(e.code(), e.to_string()))?;
        let malformed = |why: String| {
            let path = Some(info.path.absolute());
            ApiError { path, ..ApiError::bad_request("narinfo-malformed", why) }
        };
        if info.path.hash_part() != hash_part {
            return Err(malformed(format!(
                "the narinfo of `{}` was sent as `{hash_part}.narinfo`",
                info.path
            )));
        }
        if info.references.len() > MAX_REFERENCES {
            let found = info.references.len();
            return Err(malformed(format!(
                "`{}` has {found} references; {MAX_REFERENCES} are allowed",
                info.path
            )));
        }
        if let Some(deriver) = info.deriver.as_ref().filter(|d| !d.is_derivation()) {
            return Err(malformed(format!("the deriver `{deriver}` of `{}` is no .drv", info.path)));
        }
        let ca = match &info.ca {
            None => None,
            Some(text) => Some(
                ContentAddress::parse(text)
                    .map_err(|e| malformed(format!("the content address of `{}`: {e}", info.path)))?,
            ),
        };
        let foreign = || foreign(&info);
        let (hash, compression) =
            info.url.strip_prefix("nar/").and_then(parse_file_name).ok_or_else(foreign)?;
        if compression.as_str() != info.compression {
            return Err(malformed(format!(
                "the compression of `{}` is `{}`, but the file is named `{}`",
                info.path,
                crate::error::clean(&info.compression),
                info.url
            )));
        }
        // the file is known by its hash alone
        if info.file_hash.is_some_and(|stated| stated != hash) {
            return Err(foreign());
        }
        let file = file_name(&hash, compression);
        Ok(Self { info, file, ca })
    }

    /// The claim, under one of the narinfo's signatures.
    pub fn claim(&self, signature: Signature) -> Claim {
        let info = &self.info;
        Claim {
            path: info.path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            deriver: info.deriver.clone(),
            ca: self.ca.clone(),
            signature,
        }
    }

    /// The refusal of a narinfo whose file its submitter didn't send.
    pub fn foreign(&self) -> ApiError {
        foreign(&self.info)
    }
}

fn foreign(info: &UnverifiedNarInfo) -> ApiError {
    let message = format!(
        "the URL `{}` of `{}` is not that of a NAR file that you sent here before",
        crate::error::clean(&info.url),
        info.path
    );
    refusal(&info.path, "narinfo-url-foreign", message)
}

/// Makes the proof of a stored narinfo again, with the key that it was taken under.
pub fn reopen(text: &[u8], key: &PublicKey) -> Result<SignatureValid, String> {
    let info = UnverifiedNarInfo::parse(text, Dialect::Push).map_err(|e| e.to_string())?;
    let hash_part = info.path.hash_part().to_owned();
    let sent = Sent::parse(text, &hash_part).map_err(|e| e.message)?;
    let own = info.signatures.iter().find(|s| s.name == *key.name());
    let own = own.ok_or_else(|| format!("it has no signature by `{}`", key.name()))?;
    verify_claim(sent.claim(own.clone()), key).map_err(|e| e.to_string())
}
