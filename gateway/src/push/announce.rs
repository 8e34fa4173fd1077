//! Stage 1: parse the announcement, its envelope first. What comes out has the right form and bounded size. The envelope's
//! signature is checked between the two steps, so that nobody without an enrolled key has a payload parsed.

use std::collections::{BTreeSet, HashSet};

use pushgate_formats::{
    Sha256, StorePath, api,
    content_address::ContentAddress,
    derivation::OutputName,
    dsse::{self, DsseError, Envelope},
    keys::{PublicKey, Signature},
    store_path::StorePathError,
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    #[error("the announcement is not what the protocol describes: {0}")]
    Malformed(String),
    #[error("the announcement has {found} {what}; {most} are allowed, split the push")]
    TooLarge { what: &'static str, found: usize, most: usize },
    #[error("`{0}` is announced twice")]
    Duplicate(StorePath),
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    #[error(transparent)]
    Envelope(DsseError),
}

impl AnnounceError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "announcement-malformed",
            Self::TooLarge { .. } => "announcement-too-large",
            Self::Duplicate(_) => "announcement-duplicate-path",
            Self::StorePath(_) => "store-path-invalid",
            Self::Envelope(DsseError::Unsigned) => "signature-missing",
            Self::Envelope(_) => "announcement-malformed",
        }
    }
}

/// One claim, parsed: "store path P has NAR hash H, NAR size S, references R", and where to look for its proof.
#[derive(Debug, Clone)]
pub struct Claim {
    pub path: StorePath,
    pub nar_hash: Sha256,
    /// Bytes.
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    /// A hint only.
    pub deriver: Option<StorePath>,
    /// A hint only.
    pub ca: Option<ContentAddress>,
    pub signature: Signature,
}

/// A well-formed envelope with one signature; its payload is bytes. Only [`Sealed::parse`] makes it.
#[derive(Debug)]
pub struct Sealed {
    digest: Sha256,
    raw: Vec<u8>,
    envelope: Envelope,
    payload: Vec<u8>,
}

/// A well-formed announcement. Proof of stage 1: only [`Sealed::open`] makes it.
#[derive(Debug)]
pub struct Announcement {
    sealed: Sealed,
    audience: api::Audience,
    nonce: String,
    issued: u64,
    expires: u64,
    claims: Vec<Claim>,
    derivations: Vec<StorePath>,
    realisations: Vec<api::AnnouncedRealisation>,
    inputs: bool,
    builds: Vec<StorePath>,
}

impl Sealed {
    /// Parses the JSON of a DSSE envelope. Blocks for as long as the parsing takes; the input's size is bounded by
    /// [`api::MAX_ANNOUNCEMENT`].
    pub fn parse(raw: Vec<u8>) -> Result<Self, AnnounceError> {
        too_large("bytes", raw.len(), api::MAX_ANNOUNCEMENT)?;
        let mut envelope: Envelope = serde_json::from_slice(&raw).map_err(malformed)?;
        let payload = envelope.unverified_payload(dsse::ANNOUNCEMENT).map_err(AnnounceError::Envelope)?;
        envelope.only_signature().map_err(AnnounceError::Envelope)?;
        // it is here twice already, as sent and decoded
        envelope.payload = String::new();
        Ok(Self { digest: Sha256::of(&raw), raw, envelope, payload })
    }

    /// The name of the key that it says it is signed by.
    pub fn keyid(&self) -> &str {
        self.envelope.signatures.first().map_or("", |s| s.keyid.as_str())
    }

    /// Checks the one signature, over the payload's bytes.
    pub fn verify(&self, key: &PublicKey) -> Result<(), DsseError> {
        self.envelope.verify(&self.payload, key)
    }

    /// Parses the payload. Blocks as [`Sealed::parse`] does.
    pub fn open(self) -> Result<Announcement, AnnounceError> {
        let payload = &self.payload;
        let body: api::Announcement = serde_json::from_slice(payload)
            .map_err(|e| invalid_path(payload).map_or_else(|| malformed(e), AnnounceError::StorePath))?;
        if body.version != 1 {
            return Err(AnnounceError::Malformed(format!("version `{}` is not known", body.version)));
        }
        if !(16..=64).contains(&body.nonce.len()) || !body.nonce.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(AnnounceError::Malformed("the nonce is not 16 to 64 hexadecimal digits".into()));
        }
        if body.paths.is_empty() && body.builds.is_empty() {
            return Err(AnnounceError::Malformed("no paths".into()));
        }
        if body.inputs && !(body.builds.is_empty() && body.realisations.is_empty()) {
            return Err(AnnounceError::Malformed(
                "an announcement of inputs has builds or realisations".into(),
            ));
        }
        too_large("builds", body.builds.len(), api::MAX_BUILDS)?;
        let known: HashSet<&StorePath> = body.derivations.iter().collect();
        let mut asked = HashSet::new();
        for build in &body.builds {
            if !known.contains(build) {
                return Err(AnnounceError::Malformed(format!(
                    "`{build}` is to be built but not among the derivations"
                )));
            }
            if !asked.insert(build) {
                return Err(AnnounceError::Duplicate(build.clone()));
            }
        }
        too_large("paths", body.paths.len(), api::MAX_PATHS)?;
        too_large("derivations", body.derivations.len(), api::MAX_DERIVATIONS)?;
        too_large("realisations", body.realisations.len(), api::MAX_PATHS)?;
        if let Some(path) = body.derivations.iter().find(|d| !d.is_derivation()) {
            return Err(AnnounceError::Malformed(format!("`{path}` is listed among the derivations")));
        }
        if let Some(r) = body.realisations.iter().find(|r| !is_realisation_id(&r.id)) {
            let id = crate::error::clean(&r.id);
            return Err(AnnounceError::Malformed(format!(
                "the realisation `{id}` is not `sha256:HEX!OUTPUT`"
            )));
        }
        // two names behind one hash would share a narinfo, so the hash part alone must differ
        let mut seen = HashSet::with_capacity(body.paths.len());
        let mut claims = Vec::with_capacity(body.paths.len());
        for announced in body.paths {
            if !seen.insert(announced.path.hash_part().to_owned()) {
                return Err(AnnounceError::Duplicate(announced.path));
            }
            claims.push(claim(announced)?);
        }
        Ok(Announcement {
            sealed: self,
            audience: body.audience,
            nonce: body.nonce.to_ascii_lowercase(),
            issued: body.issued,
            expires: body.expires,
            claims,
            derivations: body.derivations,
            realisations: body.realisations,
            inputs: body.inputs,
            builds: body.builds,
        })
    }
}

impl Announcement {
    /// Both steps at once, for what was verified before it was stored.
    pub fn parse(raw: Vec<u8>) -> Result<Self, AnnounceError> {
        Sealed::parse(raw)?.open()
    }

    /// The envelope that it came in.
    pub const fn sealed(&self) -> &Sealed {
        &self.sealed
    }
    /// sha256 of the envelope as sent: the same envelope is the same push.
    pub const fn digest(&self) -> Sha256 {
        self.sealed.digest
    }
    pub fn raw(&self) -> &[u8] {
        &self.sealed.raw
    }
    pub const fn audience(&self) -> &api::Audience {
        &self.audience
    }
    pub fn nonce(&self) -> &str {
        &self.nonce
    }
    pub const fn issued(&self) -> u64 {
        self.issued
    }
    pub const fn expires(&self) -> u64 {
        self.expires
    }
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }
    pub fn derivations(&self) -> &[StorePath] {
        &self.derivations
    }
    pub fn realisations(&self) -> &[api::AnnouncedRealisation] {
        &self.realisations
    }
    /// Whether the paths are inputs for verifiers, never to be published.
    pub const fn is_of_inputs(&self) -> bool {
        self.inputs
    }
    /// Derivations, each among [`Announcement::derivations`], that verifiers are to build.
    pub fn builds(&self) -> &[StorePath] {
        &self.builds
    }
}

/// The first store path that is none, in a payload that can't be read: names that Nix doesn't allow are a reason of their
/// own.
fn invalid_path(payload: &[u8]) -> Option<StorePathError> {
    use std::borrow::Cow;
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Paths<'a> {
        #[serde(borrow)]
        paths: Vec<Path<'a>>,
        #[serde(borrow, default)]
        derivations: Vec<Cow<'a, str>>,
        #[serde(borrow, default)]
        realisations: Vec<Realisation<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct Path<'a> {
        #[serde(borrow)]
        path: Cow<'a, str>,
        #[serde(borrow)]
        references: Vec<Cow<'a, str>>,
        #[serde(borrow)]
        deriver: Option<Cow<'a, str>>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Realisation<'a> {
        #[serde(borrow)]
        out_path: Cow<'a, str>,
    }
    let found: Paths<'_> = serde_json::from_slice(payload).ok()?;
    let paths = found.paths.iter().flat_map(|p| [&p.path].into_iter().chain(&p.references).chain(&p.deriver));
    paths
        .chain(&found.derivations)
        .chain(found.realisations.iter().map(|r| &r.out_path))
        .find_map(|text| StorePath::parse(text).err())
}

/// `sha256:`, 64 lower-case hexadecimal digits, `!`, an output's name.
pub fn is_realisation_id(id: &str) -> bool {
    let hex = |h: &str| h.len() == 64 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    id.strip_prefix("sha256:")
        .and_then(|rest| rest.split_once('!'))
        .is_some_and(|(h, output)| hex(h) && OutputName::parse(output).is_ok())
}

fn malformed(error: serde_json::Error) -> AnnounceError {
    // serde's message may quote a hostile value at any length
    let mut text = error.to_string();
    if text.len() > 300 {
        text = text.chars().take(300).chain(['…']).collect();
    }
    AnnounceError::Malformed(text.escape_debug().to_string())
}

const fn too_large(what: &'static str, found: usize, most: usize) -> Result<(), AnnounceError> {
    if found > most { Err(AnnounceError::TooLarge { what, found, most }) } else { Ok(()) }
}

fn claim(announced: api::AnnouncedPath) -> Result<Claim, AnnounceError> {
    let path = announced.path;
    too_large("references of one path", announced.references.len(), api::MAX_REFERENCES)?;
    if !announced.references.is_sorted_by(|a, b| a < b) {
        return Err(AnnounceError::Malformed(format!(
            "the references of `{path}` are not sorted, or one stands there twice"
        )));
    }
    if announced.nar_size == 0 {
        return Err(AnnounceError::Malformed(format!("the NAR size of `{path}` is 0")));
    }
    if let Some(deriver) = announced.deriver.as_ref().filter(|d| !d.is_derivation()) {
        return Err(AnnounceError::Malformed(format!("the deriver `{deriver}` of `{path}` is no .drv")));
    }
    let ca = match &announced.ca {
        None => None,
        Some(text) => Some(
            ContentAddress::parse(text)
                .map_err(|e| AnnounceError::Malformed(format!("the content address of `{path}`: {e}")))?,
        ),
    };
    Ok(Claim {
        nar_hash: announced.nar_hash,
        nar_size: announced.nar_size,
        references: announced.references.into_iter().collect(),
        deriver: announced.deriver,
        ca,
        signature: announced.signature,
        path,
    })
}
