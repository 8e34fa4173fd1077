//! Paths and derivations out of nothing: right unless a test bends them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pushgate_formats::{
    HashAlgo, NixHash, Sha256, StorePath,
    api::AnnouncedPath,
    content_address::{ContentAddress, SelfReferenceHasher, store_path_for},
    derivation::{
        Derivation, DerivationError, Facts, Method, Output, OutputName, check::check, derivation_name,
        text_path,
    },
    keys::SecretKey,
    nar::Writer,
    narinfo::fingerprint,
};

/// 32 random hexadecimal digits.
pub fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("random bytes");
    pushgate_formats::hash::hex_encode(&bytes)
}

/// The NAR of a single file.
pub fn file_nar(contents: &[u8], executable: bool) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.file(executable, contents.len() as u64).expect("a file");
    writer.contents(contents).expect("contents");
    writer.finish().expect("a NAR")
}

/// The NAR of a directory of files, which come in the order of their names.
pub fn directory_nar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.directory().expect("a directory");
    for (name, contents) in files {
        writer.entry(name.as_bytes()).expect("an entry");
        writer.file(false, contents.len() as u64).expect("a file");
        writer.contents(contents).expect("contents");
    }
    writer.end().expect("the end");
    writer.finish().expect("a NAR")
}

/// A path with its bytes, and what is claimed of it.
#[derive(Debug, Clone)]
pub struct Item {
    pub path: StorePath,
    pub nar: Vec<u8>,
    /// What is claimed: the NAR's own unless a test lies.
    pub nar_hash: Sha256,
    /// What is claimed: the NAR's own unless a test lies.
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub deriver: Option<StorePath>,
    pub ca: Option<String>,
}

impl Item {
    /// An item that claims what its bytes are.
    pub fn new(path: StorePath, nar: Vec<u8>) -> Self {
        Self {
            path,
            nar_hash: Sha256::of(&nar),
            nar_size: nar.len() as u64,
            nar,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
        }
    }

    /// A source: content-addressed by its NAR.
    pub fn source(name: &str, contents: &str) -> Self {
        Self::addressed(name, file_nar(contents.as_bytes(), false), Method::Recursive, HashAlgo::Sha256)
    }

    /// A path without references, addressed by its contents: flat ones have to be the NAR of a file.
    pub fn addressed(name: &str, nar: Vec<u8>, method: Method, algo: HashAlgo) -> Self {
        let measured = match method {
            Method::Recursive => digest(algo, &nar),
            _ => digest(algo, file_contents(&nar)),
        };
        let address = ContentAddress::new(method, measured).expect("a content address");
        let path = address.path(name).expect("a store path");
        Self { ca: Some(address.to_string()), ..Self::new(path, nar) }
    }

    /// A path addressed by its NAR, with references.
    pub fn recursive(name: &str, nar: Vec<u8>, references: &[&StorePath]) -> Self {
        let address =
            ContentAddress::new(Method::Recursive, digest(HashAlgo::Sha256, &nar)).expect("an address");
        let path = store_path_for(name, &address, references.iter().copied(), false).expect("a store path");
        let references = references.iter().copied().cloned().collect();
        Self { ca: Some(address.to_string()), references, ..Self::new(path, nar) }
    }

    /// As `builtins.toFile` makes it: the text, and references to the paths that it mentions.
    pub fn text(name: &str, contents: &[u8], references: &[&StorePath]) -> Self {
        let path = text_path(name, contents, references.iter().copied()).expect("a store path");
        let address =
            ContentAddress::new(Method::Text, digest(HashAlgo::Sha256, contents)).expect("an address");
        let references = references.iter().copied().cloned().collect();
        Self { ca: Some(address.to_string()), references, ..Self::new(path, file_nar(contents, false)) }
    }

    /// A .drv file as a path of its own.
    pub fn derivation(path: &StorePath, text: &[u8]) -> Self {
        let references = Derivation::parse(text).expect("a derivation").references();
        Self::text(path.name(), text, &references.iter().collect::<Vec<_>>())
    }

    /// A path addressed by its NAR that mentions itself.
    pub fn self_referring(name: &str, contents: &str) -> Self {
        // any hash stands for the own one, which follows from the bytes without it
        let stand_in = StorePath::from_digest(&[7; 20], name).expect("a store path");
        let nar = file_nar(format!("{contents} {stand_in}").as_bytes(), false);
        let mut hasher = SelfReferenceHasher::new(&stand_in);
        hasher.feed(&nar);
        let hash = hasher.finish().expect("few self-references").with_positions;
        let address = ContentAddress::new(Method::Recursive, NixHash::from(hash)).expect("an address");
        let path = store_path_for(name, &address, [], true).expect("a store path");
        let nar = replace(&nar, stand_in.hash_part(), path.hash_part());
        let mut item = Self { ca: Some(address.to_string()), ..Self::new(path.clone(), nar) };
        item.references.insert(path);
        item
    }

    /// The same claim of other bytes.
    pub fn with_nar(&self, nar: Vec<u8>) -> Self {
        let fresh = Self::new(self.path.clone(), nar);
        Self { nar: fresh.nar, nar_hash: fresh.nar_hash, nar_size: fresh.nar_size, ..self.clone() }
    }

    /// As it stands in an announcement.
    pub fn announced(&self, key: &SecretKey) -> AnnouncedPath {
        let print = fingerprint(&self.path, &self.nar_hash, self.nar_size, &self.references);
        AnnouncedPath {
            path: self.path.clone(),
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            references: self.references.iter().cloned().collect(),
            deriver: self.deriver.clone(),
            ca: self.ca.clone(),
            signature: key.sign(print.as_bytes()),
        }
    }
}

fn digest(algo: HashAlgo, bytes: &[u8]) -> NixHash {
    let mut hasher = pushgate_formats::content_address::ContentHasher::new(algo);
    hasher.feed(bytes);
    hasher.finish()
}

/// The contents of a NAR that is one file, not executable.
fn file_contents(nar: &[u8]) -> &[u8] {
    // magic, `(`, `type`, `regular`, `contents`: 24 + 16 + 16 + 16 + 16 bytes, then the length
    let length = u64::from_le_bytes(nar[88..96].try_into().expect("eight bytes"));
    &nar[96..96 + length as usize]
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = out[at..].windows(from.len()).position(|w| w == from.as_bytes()) {
        out[at + found..at + found + from.len()].copy_from_slice(to.as_bytes());
        at += found + from.len();
    }
    out
}

/// A derivation and the paths that it makes.
#[derive(Debug, Clone)]
pub struct Package {
    pub drv: StorePath,
    pub text: Vec<u8>,
    pub derivation: Derivation,
    /// By the output's name. A floating output has the path that follows from its bytes.
    pub outputs: BTreeMap<String, Item>,
    /// The derivation closure with its texts, inputs first, this one last.
    pub closure: Vec<(StorePath, Vec<u8>)>,
    facts: HashMap<StorePath, Facts>,
}

impl Package {
    #[expect(clippy::new_ret_no_self, reason = "begins a package, as the tests read")]
    pub fn new(name: &str) -> PackageBuilder {
        PackageBuilder {
            name: name.to_owned(),
            outputs: vec!["out".to_owned()],
            kind: Kind::InputAddressed,
            inputs: vec![],
            sources: vec![],
            env: vec![],
            mentions: vec![],
            own: vec![],
            salt: String::new(),
        }
    }

    /// The output `out`.
    pub fn out(&self) -> &Item {
        &self.outputs["out"]
    }

    pub fn path(&self) -> &StorePath {
        &self.out().path
    }

    /// `sha256:HEX!out`.
    pub fn realisation_id(&self) -> String {
        let out = OutputName::parse("out").expect("a name");
        self.facts[&self.drv].realisation_id(&out).expect("an output")
    }

    /// The output with other contents that mention these paths and no others.
    pub fn out_mentioning(&self, contents: &str, mentions: &[&StorePath]) -> Item {
        let mut item = self.out().with_nar(mentioning(contents, mentions.iter().copied()));
        item.references = mentions.iter().copied().cloned().collect();
        item
    }
}

/// A directory with one file that mentions these paths.
fn mentioning<'a>(contents: &str, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<u8> {
    let mut text = contents.to_owned();
    for path in paths {
        text.push_str(&format!("\n{path}/bin"));
    }
    directory_nar(&[("file", text.as_bytes())])
}

#[derive(Debug, Clone)]
enum Kind {
    InputAddressed,
    Fixed(Method, HashAlgo, Vec<u8>),
    Floating,
}

/// See [`Package::new`].
#[derive(Debug, Clone)]
pub struct PackageBuilder {
    name: String,
    outputs: Vec<String>,
    kind: Kind,
    inputs: Vec<Package>,
    sources: Vec<StorePath>,
    env: Vec<(String, String)>,
    mentions: Vec<StorePath>,
    own: Vec<String>,
    salt: String,
}

impl PackageBuilder {
    /// Adds the output `out` of another package to the inputs.
    pub fn input(mut self, package: &Package) -> Self {
        self.inputs.push(package.clone());
        self
    }

    /// Adds a source.
    pub fn source(mut self, item: &Item) -> Self {
        self.sources.push(item.path.clone());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The output's contents mention this path, and it is declared as a reference.
    pub fn mention(mut self, path: &StorePath) -> Self {
        self.mentions.push(path.clone());
        self
    }

    /// The output `out` mentions this output of the same derivation.
    pub fn mention_own(mut self, output: &str) -> Self {
        self.own.push(output.to_owned());
        self
    }

    pub fn outputs(mut self, names: &[&str]) -> Self {
        self.outputs = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    /// A fixed output with these contents: a NAR.
    pub fn fixed(mut self, method: Method, algo: HashAlgo, nar: Vec<u8>) -> Self {
        self.kind = Kind::Fixed(method, algo, nar);
        self
    }

    /// A floating content-addressed output.
    pub fn floating(mut self) -> Self {
        self.kind = Kind::Floating;
        self
    }

    /// Other contents of the outputs.
    pub fn contents(mut self, salt: &str) -> Self {
        self.salt = salt.to_owned();
        self
    }

    pub fn build(self) -> Package {
        let name = |n: &str| OutputName::parse(n).expect("an output's name");
        let unknown = StorePath::from_digest(&[0; 20], &self.name).expect("a store path");
        let mut env: BTreeMap<Vec<u8>, Vec<u8>> =
            self.env.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone().into_bytes())).collect();
        env.insert(b"name".to_vec(), self.name.clone().into_bytes());
        env.insert(b"system".to_vec(), b"x86_64-linux".to_vec());
        let fixed = match &self.kind {
            Kind::Fixed(method, algo, nar) => Some(Item::addressed(&self.name, nar.clone(), *method, *algo)),
            _ => None,
        };
        let mut outputs = BTreeMap::new();
        for output in &self.outputs {
            let described = match (&self.kind, &fixed) {
                (Kind::Fixed(method, ..), Some(item)) => {
                    let address = ContentAddress::parse(item.ca.as_deref().expect("a content address"))
                        .expect("a content address");
                    Output::Fixed { path: item.path.clone(), method: *method, hash: address.hash().clone() }
                }
                (Kind::Floating, _) => Output::Floating { method: Method::Recursive, algo: HashAlgo::Sha256 },
                _ => Output::InputAddressed(unknown.clone()),
            };
            let variable = fixed.as_ref().map_or_else(|| unknown.absolute(), |i| i.path.absolute());
            env.insert(output.clone().into_bytes(), variable.into_bytes());
            outputs.insert(name(output), described);
        }
        let mut derivation = Derivation {
            outputs,
            input_srcs: self.sources.iter().cloned().collect(),
            input_drvs: self.inputs.iter().map(|i| (i.drv.clone(), BTreeSet::from([name("out")]))).collect(),
            system: "x86_64-linux".to_owned(),
            builder: b"/bin/sh".to_vec(),
            args: vec![b"-c".to_vec(), b"echo > $out".to_vec()],
            env,
        };
        let mut facts: HashMap<StorePath, Facts> = self.inputs.iter().flat_map(|i| i.facts.clone()).collect();
        let (drv, text) = settle(&self.name, &mut derivation, &mut facts);
        let paths = facts[&drv].outputs().clone();
        let mut made = BTreeMap::new();
        for (output, path) in &paths {
            let item = match (&fixed, path) {
                (Some(item), _) => item.clone(),
                (None, Some(path)) => {
                    let own = self
                        .own
                        .iter()
                        .filter(|_| output.as_str() == "out")
                        .map(|o| paths[o.as_str()].clone());
                    let mut references: BTreeSet<StorePath> = own.flatten().collect();
                    references.extend(self.mentions.iter().cloned());
                    let contents = format!("{} {output} {}", self.name, self.salt);
                    let mut item = Item::new(path.clone(), mentioning(&contents, &references));
                    item.references = references;
                    item
                }
                (None, None) => {
                    let contents = format!("{} {output} {}", self.name, self.salt);
                    let references: Vec<&StorePath> = self.mentions.iter().collect();
                    Item::recursive(
                        derivation_name(&drv).expect("a name"),
                        mentioning(&contents, references.iter().copied()),
                        &references,
                    )
                }
            };
            // a fixed output speaks for itself by its derivation; a floating one needs the field
            let ca = if fixed.is_some() { None } else { item.ca.clone() };
            made.insert(output.to_string(), Item { deriver: Some(drv.clone()), ca, ..item });
        }
        let mut closure: Vec<(StorePath, Vec<u8>)> = vec![];
        for one in self.inputs.iter().flat_map(|i| &i.closure).chain([&(drv.clone(), text.clone())]) {
            if !closure.iter().any(|(path, _)| *path == one.0) {
                closure.push(one.clone());
            }
        }
        Package { drv, text, derivation, outputs: made, closure, facts }
    }
}

/// Puts in the output paths that the checks compute: one a round.
fn settle(
    name: &str,
    derivation: &mut Derivation,
    facts: &mut HashMap<StorePath, Facts>,
) -> (StorePath, Vec<u8>) {
    loop {
        let text = derivation.print();
        let drv = text_path(&format!("{name}.drv"), &text, &derivation.references()).expect("a store path");
        match check(&drv, &text, |input| facts.get(input)) {
            Ok(checked) => {
                facts.insert(drv.clone(), checked.facts);
                return (drv, text);
            }
            Err(DerivationError::Mismatch { output, computed, .. }) => {
                derivation.env.insert(output.as_str().into(), computed.absolute().into_bytes());
                derivation.outputs.insert(output, Output::InputAddressed(computed));
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }
}
