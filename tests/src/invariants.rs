//! What must hold of a data directory at any moment, whatever was killed when: read from its files alone, as a web
//! server would serve them, and from its database, by SQL, so that nothing here rests on the code under test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use pushgate_formats::{
    Sha256, StorePath,
    keys::{PublicKey, SecretKey},
    log_leaf::{CHAIN_START, PublishLeaf, chain},
    narinfo::{Dialect, UnverifiedNarInfo},
    store_path::is_hash_part,
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::process::{names, read};

/// A row of what is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub nar_hash: Sha256,
    pub narinfo: String,
    /// Of its leaf.
    pub seq: u64,
    /// Marked as being visible for good.
    pub visible: bool,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub push: String,
    pub path: String,
    pub state: String,
    pub code: Option<String>,
    /// JSON.
    pub waits: String,
}

/// What the database says of one cache.
#[derive(Debug)]
pub struct Books {
    pub published: BTreeMap<StorePath, Published>,
    pub leaves: Vec<PublishLeaf>,
    pub claims: Vec<Claim>,
    /// Packs that quarantined NARs lie in.
    pub packs: BTreeSet<String>,
}

impl Books {
    /// Reads them. Fails unless the leaves are a chain, each path is logged once, and rows and leaves belong together, one
    /// to one.
    pub async fn read(database: &Path, cache: &str) -> Self {
        let options = SqliteConnectOptions::new().filename(database);
        let mut db = SqliteConnection::connect_with(&options).await.expect("the database opens");
        // one moment for all questions
        let mut db = db.begin().await.expect("a transaction");
        let leaves: Vec<(i64, Vec<u8>, String)> =
            sqlx::query_as("SELECT seq, body, hash FROM leaves WHERE cache = ? ORDER BY seq")
                .bind(cache)
                .fetch_all(&mut *db)
                .await
                .expect("the leaves");
        let published: Vec<(String, String, String, String, i64, bool)> = sqlx::query_as(
            "SELECT path, hash_part, nar_hash, narinfo, seq, visible FROM published WHERE cache = ? ORDER BY seq",
        )
        .bind(cache)
        .fetch_all(&mut *db)
        .await
        .expect("what is published");
        let claims: Vec<(String, String, String, Option<String>, String)> =
            sqlx::query_as("SELECT push, path, state, code, waits FROM claims WHERE cache = ? ORDER BY id")
                .bind(cache)
                .fetch_all(&mut *db)
                .await
                .expect("the claims");
        let packs: Vec<(String,)> =
            sqlx::query_as("SELECT pack FROM quarantine").fetch_all(&mut *db).await.expect("the packs");
        let leaves = check_chain(leaves);
        let mut rows = BTreeMap::new();
        for (path, hash_part, nar_hash, narinfo, seq, visible) in published {
            let path = StorePath::from_base_name(&path).expect("a store path");
            assert_eq!(path.hash_part(), hash_part);
            let nar_hash = Sha256::from_base32(&nar_hash).expect("a sha256");
            let leaf = leaves.get(seq as usize).unwrap_or_else(|| panic!("{path} has no leaf"));
            assert_eq!((&leaf.path, leaf.nar_hash), (&path, nar_hash), "the leaf of {path} is another's");
            let row = Published { nar_hash, narinfo, seq: seq as u64, visible };
            assert_eq!(rows.insert(path, row), None, "published twice");
        }
        assert_eq!(rows.len(), leaves.len(), "leaves without rows");
        let claims = claims.into_iter();
        let claims = claims.map(|(push, path, state, code, waits)| Claim { push, path, state, code, waits });
        let packs = packs.into_iter().map(|(pack,)| pack).collect();
        let books = Self { published: rows, leaves, claims: claims.collect(), packs };
        books.check_claims();
        books
    }

    /// The same of a directory in which nothing runs: of a copy, since opening a database repairs it, and that is left to
    /// the gateway.
    pub async fn read_dead(data: &Path, cache: &str) -> Self {
        let copy = tempfile::tempdir().expect("a temporary directory");
        for file in ["gateway.db", "gateway.db-wal"] {
            let from = data.join(file);
            if from.exists() {
                fs::copy(from, copy.path().join(file)).expect("a copy");
            }
        }
        Self::read(&copy.path().join("gateway.db"), cache).await
    }

    /// Every claim is over, or waits for something that has a name.
    fn check_claims(&self) {
        for claim in &self.claims {
            match claim.state.as_str() {
                "published" => {
                    let path = StorePath::from_base_name(&claim.path).expect("a store path");
                    assert!(self.published.contains_key(&path), "{claim:?}, but there is no such row");
                }
                // for bytes, for the gateway; a refusal's reason may come in a write of its own
                "wanted" | "checking" | "upstream" | "rejected" => {}
                "held" if claim.code.is_none() || claim.waits != "[]" => {}
                _ => panic!("nobody knows what it waits for: {claim:?}"),
            }
        }
    }

    /// Claims that aren't over.
    pub fn open_claims(&self) -> Vec<&Claim> {
        self.claims.iter().filter(|c| matches!(c.state.as_str(), "wanted" | "checking" | "held")).collect()
    }

    pub fn paths(&self) -> BTreeSet<StorePath> {
        self.published.keys().cloned().collect()
    }
}

fn check_chain(rows: Vec<(i64, Vec<u8>, String)>) -> Vec<PublishLeaf> {
    let (mut hash, mut seen) = (CHAIN_START, BTreeSet::new());
    let check = |(number, (seq, body, stored)): (usize, (i64, Vec<u8>, String))| {
        assert_eq!(seq, number as i64, "a leaf is missing");
        hash = chain(&hash, &body);
        assert_eq!(stored, hash.base32(), "the chain is broken at {seq}");
        let kind: serde_json::Value = serde_json::from_slice(&body).expect("a leaf");
        if kind["kind"] != "publish" {
            assert!(["epoch", "draw"].iter().any(|known| kind["kind"] == *known), "{kind}");
            return None;
        }
        let leaf: PublishLeaf = serde_json::from_slice(&body).expect("a leaf");
        assert_eq!(leaf.to_bytes(), body, "leaf {seq} isn't canonical");
        assert!(seen.insert(leaf.path.clone()), "{} is logged twice", leaf.path);
        Some(leaf)
    };
    rows.into_iter().enumerate().filter_map(check).collect()
}

/// The cache's key from its file: a gateway that is dead can't be asked.
pub fn cache_key(data: &Path, cache: &str) -> PublicKey {
    let text = read(&data.join(format!("keys/{cache}.secret")));
    SecretKey::parse(&String::from_utf8(text).expect("text")).expect("a key").public()
}

/// What is public in one cache must be whole, signed, closed under references, in the books and logged, at any moment.
pub fn check_public(data: &Path, cache: &str, books: &Books) -> BTreeSet<StorePath> {
    check_names(data, cache, books, &names(&data.join("blobs").join(cache)))
}

/// The same of these files, where a gateway runs: `books` were read after they became public.
pub fn check_names(data: &Path, cache: &str, books: &Books, files: &[String]) -> BTreeSet<StorePath> {
    let (public, key) = (data.join("blobs").join(cache), cache_key(data, cache));
    let mut published = BTreeSet::new();
    for name in files {
        match name.rsplit_once('.') {
            Some((hash, "narinfo")) if is_hash_part(hash) => {}
            Some((hash, "ls")) if is_hash_part(hash) => {
                let listing: serde_json::Value =
                    serde_json::from_slice(&read(&public.join(name))).expect("a listing");
                assert_eq!(listing["version"], 1, "{name}");
                continue;
            }
            _ if name == "nix-cache-info" => {
                assert!(read(&public.join(name)).starts_with(b"StoreDir: /nix/store\n"));
                continue;
            }
            _ if name == "nar" => continue,
            _ => panic!("`{name}` is public and has no business there"),
        }
        published.insert(check_narinfo(&public, name, cache, &key, books));
    }
    for name in names(&public.join("nar")) {
        // also those that nothing names yet are whole: their names are their hashes
        let hash = name.split_once(".nar").and_then(|(hash, _)| Sha256::from_base32(hash));
        assert_eq!(hash, Some(Sha256::of(&read(&public.join("nar").join(&name)))), "{name}");
    }
    published
}

fn check_narinfo(public: &Path, name: &str, cache: &str, key: &PublicKey, books: &Books) -> StorePath {
    let text = read(&public.join(name));
    let info = UnverifiedNarInfo::parse(&text, Dialect::Push).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(format!("{}.narinfo", info.path.hash_part()), name);
    assert!(info.is_signed_by(key), "{} is not signed by the cache", info.path);
    let file = read(&public.join(&info.url));
    assert_eq!(Some(Sha256::of(&file)), info.file_hash, "file of {}", info.path);
    assert_eq!(Some(file.len() as u64), info.file_size, "file of {}", info.path);
    let nar = match info.compression.as_str() {
        "zstd" => zstd::decode_all(file.as_slice()).expect("zstd"),
        "none" => file,
        "xz" => {
            let mut nar = Vec::new();
            let mut reader = liblzma::read::XzDecoder::new(file.as_slice());
            std::io::Read::read_to_end(&mut reader, &mut nar).expect("xz");
            nar
        }
        other => panic!("{} is compressed with `{other}`", info.path),
    };
    assert_eq!(Sha256::of(&nar), info.nar_hash, "NAR of {}", info.path);
    assert_eq!(nar.len() as u64, info.nar_size, "NAR of {}", info.path);
    for reference in &info.references {
        let there = public.join(format!("{}.narinfo", reference.hash_part())).exists();
        assert!(there, "{} refers to {reference}, which isn't published", info.path);
    }
    let Some(row) = books.published.get(&info.path) else { panic!("{} is public without a row", info.path) };
    assert_eq!(row.narinfo.as_bytes(), text, "{} is public with another text", info.path);
    let leaf = &books.leaves[row.seq as usize];
    assert_eq!((leaf.cache.as_str(), leaf.nar_hash), (cache, info.nar_hash));
    assert_eq!((leaf.nar_size, Some(leaf.file_hash)), (info.nar_size, info.file_hash));
    assert!(leaf.references.iter().map(String::as_str).eq(info.references.iter().map(|r| r.base_name())));
    info.path
}

/// Where files are while they are written.
pub fn temporary(data: &Path) -> PathBuf {
    data.join("blobs/quarantine/tmp")
}

/// Packs that are there.
pub fn packs(data: &Path) -> BTreeSet<String> {
    names(&data.join("blobs/quarantine/packs")).into_iter().collect()
}
