//! Compares the formats with the Nix on this machine: `corpus/make` lets it evaluate and build derivations of every kind,
//! here every path and hash is computed again. Knows no server and no client.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use pushgate_formats::{
    NixHash, Sha256, StorePath,
    content_address::{
        ContentAddress, ContentHasher, Form, Measure, Measured, SelfReferenceHasher, check_path,
    },
    derivation::{Collision, Derivation, DerivationError, Facts, Kind, check},
};
use serde_json::Value;

/// What was compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Derivations whose text, path and outputs are right, by the kind of their outputs.
    pub derivations: BTreeMap<Kind, usize>,
    /// Output paths that follow from derivations.
    pub output_paths: usize,
    /// Derivations with inputs that share a hash, from which different outputs are wanted.
    pub collisions: usize,
    /// Paths whose NAR hash, size and deriver are right.
    pub paths: usize,
    /// Paths that follow from their contents, by the method and algorithm, and with self-references by their form.
    pub content_addressed: BTreeMap<String, usize>,
    pub realisations: usize,
}

/// Makes the corpus in `PUSHGATE_CORPUS`, or in a temporary directory, and compares all of it.
pub fn run() -> Result<Counts> {
    if let Some(dir) = env::var_os("PUSHGATE_CORPUS").map(PathBuf::from) {
        if !dir.join("manifest.json").exists() {
            make(&dir)?;
        }
        return compare(&dir);
    }
    let dir = tempfile::tempdir()?;
    make(dir.path())?;
    let counts = compare(dir.path());
    // Nix takes the write permission from directories in its store: without it they can't be removed
    let _ = Command::new("chmod").arg("-R").arg("u+w").arg(dir.path()).status();
    counts
}

/// Runs the script; what Nix says goes to this test's standard error.
pub fn make(dir: &Path) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/make");
    let status = Command::new(script).arg(dir).status().with_context(|| format!("cannot run `{script}`"))?;
    ensure!(status.success(), "`{script}` failed; it needs Nix with `nix-build` on the path");
    Ok(())
}

/// Compares a corpus that was made before.
pub fn compare(dir: &Path) -> Result<Counts> {
    let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?;
    let mut counts = Counts::default();
    let (derivations, facts) = derivations(dir, &manifest, &mut counts)?;
    let built = paths(dir, &manifest, &derivations, &facts, &mut counts)?;
    // what nix-build printed, by evaluation alone
    for line in fs::read_to_string(dir.join("built"))?.lines() {
        let path = StorePath::parse(line)?;
        let known = facts.values().any(|facts| facts.outputs().values().flatten().any(|p| *p == path));
        ensure!(known, "`{path}` was built, but follows from no derivation");
    }
    realisations(&manifest, &derivations, &facts, &built, &mut counts)?;
    Ok(counts)
}

type Derivations = BTreeMap<StorePath, Derivation>;
type AllFacts = BTreeMap<StorePath, Facts>;

fn derivations(dir: &Path, manifest: &Value, counts: &mut Counts) -> Result<(Derivations, AllFacts)> {
    let (mut derivations, mut facts) = (Derivations::new(), AllFacts::new());
    let mut waiting = list(&manifest["drvs"])?.map(StorePath::parse).collect::<Result<Vec<_>, _>>()?;
    // As the gateway does: check one; where an input is missing, check that one first.
    while let Some(path) = waiting.last() {
        if facts.contains_key(path) {
            waiting.pop();
            continue;
        }
        let raw = fs::read(dir.join("drvs").join(path.base_name()))
            .with_context(|| format!("`{path}` is not in the corpus"))?;
        match check(path, &raw, |input| facts.get(input)) {
            Err(DerivationError::MissingInput(input)) => waiting.push(input),
            Err(error) => bail!("`{path}`: {error}"),
            Ok(checked) => {
                ensure!(checked.derivation.print() == raw, "`{path}` prints differently");
                checked.derivation.attributes().with_context(|| format!("attributes of `{path}`"))?;
                let known = &checked.facts;
                let stored: Facts = serde_json::from_slice(&serde_json::to_vec(known)?)?;
                ensure!(stored == *known, "the facts of `{path}` change when they are stored");
                *counts.derivations.entry(known.kind()).or_default() += 1;
                counts.output_paths += known.outputs().values().flatten().count();
                counts.collisions += usize::from(known.collision() != Collision::None);
                derivations.insert(path.clone(), checked.derivation);
                facts.insert(path.clone(), checked.facts);
            }
        }
    }
    Ok((derivations, facts))
}

/// Checks every valid path and gives them with their references.
fn paths(
    dir: &Path,
    manifest: &Value,
    derivations: &Derivations,
    facts: &AllFacts,
    counts: &mut Counts,
) -> Result<BTreeMap<StorePath, BTreeSet<StorePath>>> {
    let mut all = BTreeMap::new();
    for info in manifest["paths"].as_array().context("`paths` is no list")? {
        let path = StorePath::parse(text(&info["path"])?)?;
        let nar = fs::read(dir.join("nars").join(format!("{}.nar", path.base_name())))?;
        ensure!(Sha256::of(&nar) == Sha256::parse(text(&info["narHash"])?)?, "NAR hash of `{path}`");
        ensure!(info["narSize"].as_u64() == Some(nar.len() as u64), "NAR size of `{path}`");
        let references =
            list(&info["references"])?.map(StorePath::from_base_name).collect::<Result<BTreeSet<_>, _>>()?;
        if let Some(derivation) = derivations.get(&path) {
            ensure!(derivation.references() == references, "references of `{path}`");
        }
        check_deriver(&path, text(&info["deriver"])?, facts)?;
        let ca = text(&info["ca"])?;
        if !ca.is_empty() {
            let kind = content_address(&path, ca, &references, &nar)?;
            *counts.content_addressed.entry(kind).or_default() += 1;
        }
        counts.paths += 1;
        all.insert(path, references);
    }
    Ok(all)
}

fn check_deriver(path: &StorePath, deriver: &str, facts: &AllFacts) -> Result<()> {
    if deriver.is_empty() {
        return Ok(());
    }
    let deriver = StorePath::from_base_name(deriver)?;
    let facts = facts.get(&deriver).with_context(|| format!("`{deriver}` is not in the corpus"))?;
    let mut outputs = facts.outputs().values();
    let fits = match facts.kind() {
        Kind::InputAddressed | Kind::Fixed => outputs.any(|output| output.as_ref() == Some(path)),
        Kind::Floating | Kind::Deferred | Kind::Impure => outputs.all(Option::is_none),
    };
    ensure!(fits, "`{path}` doesn't follow from its deriver `{deriver}`");
    Ok(())
}

/// Checks the contents against the address and says what it was.
fn content_address(
    path: &StorePath,
    ca: &str,
    references: &BTreeSet<StorePath>,
    nar: &[u8],
) -> Result<String> {
    let address = ContentAddress::parse(ca)?;
    ensure!(address.to_string() == ca, "`{ca}` prints differently");
    let measured = match address.measure(references.contains(path)) {
        Measure::Nar(algo) => Measured::Nar(hash(ContentHasher::new(algo), nar)),
        Measure::File(algo) => {
            let contents = plain_file(nar).with_context(|| format!("`{path}` is no plain file"))?;
            Measured::File { hash: hash(ContentHasher::new(algo), contents), executable: false }
        }
        Measure::NarModuloSelf => {
            let mut hasher = SelfReferenceHasher::new(path);
            // awkward pieces, so that hits lie across them
            nar.chunks(37).for_each(|piece| hasher.feed(piece));
            Measured::NarModuloSelf(hasher.finish()?)
        }
        Measure::Git => bail!("nothing in the corpus is addressed by git's hash"),
    };
    let form = check_path(path, &address, references, &measured)?;
    let what = ca.rsplit_once(':').map_or(ca, |(what, _)| what);
    Ok(match form {
        Form::Plain => what.to_owned(),
        Form::WithPositions => format!("{what}, self-references with positions"),
        Form::WithoutPositions => format!("{what}, self-references without positions"),
    })
}

fn hash(mut hasher: ContentHasher, bytes: &[u8]) -> NixHash {
    hasher.feed(bytes);
    hasher.finish()
}

/// The contents of a NAR that is one file, not executable. By hand, so as not to test the formats with themselves.
fn plain_file(nar: &[u8]) -> Option<&[u8]> {
    let mut head = Vec::new();
    for token in ["nix-archive-1", "(", "type", "regular", "contents"] {
        head.extend_from_slice(&(token.len() as u64).to_le_bytes());
        head.extend_from_slice(token.as_bytes());
        head.resize(head.len().next_multiple_of(8), 0);
    }
    let rest = nar.strip_prefix(&head[..])?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// Checks that each realisation bears the id of an output of a derivation in the corpus, and leads to a path of that name.
fn realisations(
    manifest: &Value,
    derivations: &Derivations,
    facts: &AllFacts,
    built: &BTreeMap<StorePath, BTreeSet<StorePath>>,
    counts: &mut Counts,
) -> Result<()> {
    let mut ids = BTreeMap::new();
    for (path, facts) in facts {
        for output in derivations[path].outputs.keys() {
            ids.insert(facts.realisation_id(output).context("no id of an own output")?, (path, output));
        }
    }
    for realisation in manifest["realisations"].as_array().context("`realisations` is no list")? {
        let id = text(&realisation["id"])?;
        let path = StorePath::from_base_name(text(&realisation["outPath"])?)?;
        let (deriver, output) =
            ids.get(id).with_context(|| format!("`{id}` belongs to no derivation in the corpus"))?;
        let name = deriver.name().strip_suffix(".drv").context("no derivation")?;
        ensure!(path.name() == output.path_name(name), "`{id}` is `{path}`, but belongs to `{deriver}`");
        ensure!(built.contains_key(&path), "`{id}` is `{path}`, which was not built");
        counts.realisations += 1;
    }
    Ok(())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("not a string")
}

fn list(value: &Value) -> Result<impl Iterator<Item = &str>> {
    Ok(value.as_array().context("not a list")?.iter().filter_map(Value::as_str))
}
