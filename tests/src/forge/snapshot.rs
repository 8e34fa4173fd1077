//! What a gateway holds and shows, so that tests can say what did *not* change.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::Path,
    sync::PoisonError,
};

use pushgate_formats::{Sha256, StorePath, log_leaf, narinfo::Dialect, narinfo::UnverifiedNarInfo};

use super::Forge;

/// Everything that a refusal must leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Public files with the hash of their contents.
    pub files: BTreeMap<String, Sha256>,
    /// Hashes of the chain, one for each leaf.
    pub leaves: Vec<Sha256>,
    /// Paths that count as published, of those ever claimed.
    pub published: BTreeSet<StorePath>,
    /// Packs that rows of the quarantine name.
    pub rows: HashSet<String>,
    /// Packs that are there, and files being written.
    pub packs: BTreeSet<String>,
}

fn walk(root: &Path, below: &str, out: &mut BTreeMap<String, Sha256>) {
    for entry in fs::read_dir(root.join(below)).expect("a directory") {
        let entry = entry.expect("an entry");
        let file = entry.file_name().into_string().expect("names are text");
        let name = if below.is_empty() { file } else { format!("{below}/{file}") };
        if entry.file_type().expect("a type").is_dir() {
            walk(root, &name, out);
        } else {
            out.insert(name.clone(), Sha256::of(&fs::read(root.join(&name)).expect("a file")));
        }
    }
}

impl Forge {
    /// Takes stock, after a sweep.
    pub async fn snapshot(&self) -> Snapshot {
        self.sweep().await;
        let blobs = self.dir().join("blobs");
        let (mut files, mut quarantine) = (BTreeMap::new(), BTreeMap::new());
        walk(&blobs.join("main"), "", &mut files);
        walk(&blobs.join("quarantine"), "", &mut quarantine);
        let leaves = self.app.db.leaves("main", 0, u32::MAX).await.expect("the leaves");
        let mut chain = log_leaf::CHAIN_START;
        for (_, body, hash) in &leaves {
            chain = log_leaf::chain(&chain, body);
            assert_eq!(chain, *hash, "the log's chain is broken");
        }
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let parts: Vec<&str> = claimed.iter().map(StorePath::hash_part).collect();
        let rows = self.app.db.published("main", &parts).await.expect("the published paths");
        Snapshot {
            files,
            leaves: leaves.into_iter().map(|(_, _, hash)| hash).collect(),
            published: rows.into_values().map(|row| row.path).collect(),
            rows: self.app.db.packs().await.expect("the packs"),
            packs: quarantine.into_keys().collect(),
        }
    }

    /// Nothing became public, nothing was logged, nothing was left behind.
    pub async fn assert_unchanged(&self, before: &Snapshot) {
        let after = self.snapshot().await;
        assert_eq!(after, *before, "the refusal left something behind");
    }

    /// Nothing became public or was logged; the quarantine may hold something.
    pub async fn assert_nothing_public(&self, before: &Snapshot) {
        self.assert_published_only(before, &[]).await;
    }

    /// These paths became public since, each with its narinfo, listing and NAR and one leaf; nothing else did, and what
    /// was there is what it was.
    pub async fn assert_published_only(&self, before: &Snapshot, paths: &[&StorePath]) {
        let after = self.snapshot().await;
        let mut expected: BTreeSet<String> = before.files.keys().cloned().collect();
        for path in paths {
            let narinfo = self.narinfo(path).await.unwrap_or_else(|| panic!("{path} is not public"));
            let narinfo = UnverifiedNarInfo::parse(narinfo.as_bytes(), Dialect::Push).expect("a narinfo");
            assert_eq!(narinfo.path, **path);
            let key =
                self.app.caches.all().into_iter().find(|c| c.name == "main").expect("the cache").public_key();
            assert!(narinfo.is_signed_by(&key), "{path} is not signed by the cache");
            expected.extend([
                format!("{}.narinfo", path.hash_part()),
                format!("{}.ls", path.hash_part()),
                narinfo.url,
            ]);
            // beside the cache and the submitter: a verifier, whose attestation is there then
            if narinfo.signatures.len() > 2 {
                expected.insert(format!("attestations/{}.jsonl", path.hash_part()));
            }
        }
        assert_eq!(after.files.keys().cloned().collect::<BTreeSet<_>>(), expected);
        for (name, hash) in &before.files {
            assert_eq!(after.files[name], *hash, "{name} changed");
        }
        assert_eq!(after.leaves.len(), before.leaves.len() + paths.len());
        assert_eq!(after.leaves[..before.leaves.len()], before.leaves);
        let mut published = before.published.clone();
        published.extend(paths.iter().map(|p| (*p).clone()));
        assert_eq!(after.published, published);
    }
}
