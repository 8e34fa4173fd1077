//! Closures in a Nix store: of references, with what the daemon knows of each path, and of derivations, with their
//! texts. Doesn't know what a derivation's text says: which inputs it names is asked of a function. Doesn't look at
//! files, but for derivations' texts, where that saves asking the daemon.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    fs::File,
    io::Read,
};

use pushgate_formats::StorePath;

use super::{Daemon, PathInfo, StoreError};

/// Most paths in one closure: several times all of nixpkgs.
const MAX_PATHS: usize = 1 << 20;
/// Longest text of a derivation.
pub const MAX_DERIVATION: u64 = 64 << 20;
/// What a NAR adds to the text of its only file.
const NAR_OVERHEAD: u64 = 128;

#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("`{0}` is not valid in this store; build or fetch it first")]
    InvalidRoot(StorePath),
    #[error(
        "`{path}` is not valid in this store, but `{referrer}` refers to it; repair with `nix-store --verify`"
    )]
    InvalidReference { path: StorePath, referrer: StorePath },
    #[error("`{0}` refers to itself by way of other paths")]
    Cycle(StorePath),
    #[error("the closure has more than {MAX_PATHS} paths")]
    TooMany,
    #[error("`{0}` is not a derivation")]
    NotADerivation(StorePath),
    #[error("the derivation `{path}` has more than {MAX_DERIVATION} bytes")]
    DerivationTooLong { path: StorePath },
    #[error("the derivation `{0}` is not a single plain file")]
    NotAPlainFile(StorePath),
    #[error("the derivation `{path}` can't be read: {why}")]
    Derivation { path: StorePath, why: String },
}

/// The roots and all that they refer to, references first; of paths that may come in either order the lesser first, so
/// that the order depends on nothing but the closure.
pub fn closure(
    daemon: &mut Daemon,
    roots: impl IntoIterator<Item = StorePath>,
) -> Result<Vec<PathInfo>, ClosureError> {
    let mut level: Vec<StorePath> = roots.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let mut graph = Graph::default();
    let mut infos: Vec<PathInfo> = Vec::new();
    graph.add_roots(&level)?;
    while !level.is_empty() {
        let answers = daemon.path_infos(&level)?;
        let mut next = Vec::new();
        for (path, info) in level.into_iter().zip(answers) {
            let Some(info) = info else { return Err(graph.invalid(path)) };
            // numbers are given in the order of `level`, so this one is the next
            graph.point(infos.len(), &info.references, &mut next)?;
            infos.push(info);
        }
        level = next;
    }
    let order = graph.inputs_first()?;
    let mut infos: Vec<Option<PathInfo>> = infos.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|number| infos[number].take()).collect())
}

/// The derivations that `roots` are built from, themselves included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Derivations {
    /// Each with its text, inputs first.
    pub texts: Vec<(StorePath, Vec<u8>)>,
    /// Named as roots or inputs, but not in the store: collected, most likely.
    pub missing: Vec<StorePath>,
}

/// The derivation closure of `roots`, with all texts in memory; [`visit_derivations`] holds one at a time.
pub fn derivations(
    daemon: &mut Daemon,
    roots: impl IntoIterator<Item = StorePath>,
    inputs: impl Fn(&[u8]) -> Result<Vec<StorePath>, String>,
) -> Result<Derivations, ClosureError> {
    let mut texts = Vec::new();
    let missing = visit_derivations(daemon, roots, inputs, |path, text| {
        texts.push((path.clone(), text.to_vec()));
        Ok::<(), ClosureError>(())
    })?;
    Ok(Derivations { texts, missing })
}

/// Shows `visit` each derivation that `roots` are built from and its text, inputs first, and returns those that are
/// missing. `inputs` finds the derivations that a text names. Texts are read twice, once to find the inputs and once to
/// be shown, so that only one is in memory.
pub fn visit_derivations<E: From<ClosureError>>(
    daemon: &mut Daemon,
    roots: impl IntoIterator<Item = StorePath>,
    inputs: impl Fn(&[u8]) -> Result<Vec<StorePath>, String>,
    mut visit: impl FnMut(&StorePath, &[u8]) -> Result<(), E>,
) -> Result<Vec<StorePath>, E> {
    let mut level: Vec<StorePath> = roots.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let mut graph = Graph::default();
    let mut missing = BTreeSet::new();
    let mut text = Vec::new();
    let mut first_of_level = 0;
    graph.add_roots(&level)?;
    while !level.is_empty() {
        if let Some(other) = level.iter().find(|path| !path.is_derivation()) {
            return Err(ClosureError::NotADerivation(other.clone()).into());
        }
        let valid = daemon.valid_paths(&level).map_err(ClosureError::from)?;
        let mut next = Vec::new();
        for (index, path) in level.iter().enumerate() {
            if !valid.contains(path) || !read_derivation(daemon, path, &mut text)? {
                missing.insert(path.clone());
                continue;
            }
            let found = inputs(&text).map_err(|why| ClosureError::Derivation { path: path.clone(), why })?;
            let found: BTreeSet<StorePath> = found.into_iter().collect();
            graph.point(first_of_level + index, &found, &mut next)?;
        }
        first_of_level += level.len();
        level = next;
    }
    for number in graph.inputs_first()? {
        let path = &graph.nodes[number].path;
        if missing.contains(path) {
            continue;
        }
        if read_derivation(daemon, path, &mut text)? {
            visit(path, &text)?;
        } else {
            missing.insert(path.clone()); // collected since it was first read
        }
    }
    Ok(missing.into_iter().collect())
}

/// Reads a valid derivation's text: its file, or where that can't be read (a store of which only the daemon's socket
/// is shared), its NAR from the daemon. `false` if it turns out to be gone.
fn read_derivation(daemon: &mut Daemon, path: &StorePath, text: &mut Vec<u8>) -> Result<bool, ClosureError> {
    let too_long = || ClosureError::DerivationTooLong { path: path.clone() };
    text.clear();
    let file = daemon.physical(path);
    // Not through a link: anybody may add one to the store, to a file that only this user can read.
    if file.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        return Err(ClosureError::NotAPlainFile(path.clone()));
    }
    match File::open(file).and_then(|file| file.take(MAX_DERIVATION + 1).read_to_end(text)) {
        Ok(len) if len as u64 > MAX_DERIVATION => return Err(too_long()),
        Ok(_) => return Ok(true),
        Err(_) => text.clear(),
    }
    let Some(info) = daemon.path_info(path)? else { return Ok(false) };
    if info.nar_size > MAX_DERIVATION + NAR_OVERHEAD {
        return Err(too_long());
    }
    daemon.nar_from_path(&info, text)?;
    let contents = plain_contents(text).ok_or_else(|| ClosureError::NotAPlainFile(path.clone()))?;
    text.truncate(contents.end);
    text.drain(..contents.start);
    Ok(true)
}

/// Where in a NAR of one file, which isn't executable, the contents are.
fn plain_contents(nar: &[u8]) -> Option<std::ops::Range<usize>> {
    const TOKENS: [&[u8]; 5] = [b"nix-archive-1", b"(", b"type", b"regular", b"contents"];
    let mut at = 0;
    let length = |at: usize| -> Option<usize> {
        let bytes = nar.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    for token in TOKENS {
        let end = at + 8 + token.len();
        if length(at)? != token.len() || nar.get(at + 8..end)? != token {
            return None;
        }
        at = end.next_multiple_of(8);
    }
    let start = at + 8;
    let end = start.checked_add(length(at)?)?;
    // what follows is the padding and one closing parenthesis
    (end.checked_next_multiple_of(8)?.checked_add(16)? == nar.len()).then_some(start..end)
}

/// Paths, numbered as they are met, and which of them need which.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    numbers: HashMap<StorePath, usize>,
}

struct Node {
    path: StorePath,
    /// The node that it was first met at; itself, for a root.
    met_at: usize,
    /// Those that need this one.
    needed_by: Vec<u32>,
    /// How many this one needs.
    needs: u32,
}

impl Graph {
    fn add_roots(&mut self, roots: &[StorePath]) -> Result<(), ClosureError> {
        for root in roots {
            let number = self.nodes.len();
            self.add(root, number)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &StorePath, met_at: usize) -> Result<usize, ClosureError> {
        let number = self.nodes.len();
        if number >= MAX_PATHS {
            return Err(ClosureError::TooMany);
        }
        self.numbers.insert(path.clone(), number);
        self.nodes.push(Node { path: path.clone(), met_at, needed_by: Vec::new(), needs: 0 });
        Ok(number)
    }

    /// Notes what a node needs; paths not met before are added to `new` too.
    fn point(
        &mut self,
        from: usize,
        to: &BTreeSet<StorePath>,
        new: &mut Vec<StorePath>,
    ) -> Result<(), ClosureError> {
        for path in to {
            let number = match self.numbers.get(path) {
                Some(number) if *number == from => continue,
                Some(number) => *number,
                None => {
                    new.push(path.clone());
                    self.add(path, from)?
                }
            };
            // numbers stay below MAX_PATHS
            self.nodes[number].needed_by.push(from as u32);
            self.nodes[from].needs += 1;
        }
        Ok(())
    }

    fn invalid(&self, path: StorePath) -> ClosureError {
        let number = self.numbers[&path];
        let met_at = self.nodes[number].met_at;
        if met_at == number {
            return ClosureError::InvalidRoot(path);
        }
        ClosureError::InvalidReference { path, referrer: self.nodes[met_at].path.clone() }
    }

    /// All numbers, each after those that it needs, the least path first of those that may come next.
    fn inputs_first(&self) -> Result<Vec<usize>, ClosureError> {
        let mut needs: Vec<u32> = self.nodes.iter().map(|node| node.needs).collect();
        let mut ready: BinaryHeap<Reverse<(&StorePath, usize)>> = BinaryHeap::new();
        let nodes = self.nodes.iter().enumerate();
        ready.extend(nodes.filter(|(_, n)| n.needs == 0).map(|(i, n)| Reverse((&n.path, i))));
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(Reverse((_, number))) = ready.pop() {
            order.push(number);
            for other in &self.nodes[number].needed_by {
                let other = *other as usize;
                needs[other] -= 1;
                if needs[other] == 0 {
                    ready.push(Reverse((&self.nodes[other].path, other)));
                }
            }
        }
        if order.len() < self.nodes.len() {
            return Err(self.cycle(&needs));
        }
        Ok(order)
    }

    /// Names a path on a cycle. What waits in vain is on one or refers to one: go from any such node to one that it
    /// waits for, and again, as often as there are nodes, and the last is on a cycle.
    fn cycle(&self, needs: &[u32]) -> ClosureError {
        let mut waits_for = vec![None; self.nodes.len()];
        for (number, node) in self.nodes.iter().enumerate().filter(|(number, _)| needs[*number] > 0) {
            for by in &node.needed_by {
                waits_for[*by as usize] = Some(number);
            }
        }
        let mut at = needs.iter().position(|needs| *needs > 0).unwrap_or_default();
        for _ in 0..self.nodes.len() {
            at = waits_for[at].unwrap_or(at);
        }
        ClosureError::Cycle(self.nodes[at].path.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::testing::Store, *};

    /// Finds `"/nix/store/….drv",[` in a derivation: enough for a test.
    fn inputs(text: &[u8]) -> Result<Vec<StorePath>, String> {
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        let (_, rest) = text.split_once("],[(\"/nix").map_or(("", ""), |x| x);
        let inputs = rest.split_once(")],").map_or(rest, |(inputs, _)| inputs);
        let inputs = if inputs.is_empty() { String::new() } else { format!("\"/nix{inputs}") };
        inputs
            .split('"')
            .filter(|part| part.ends_with(".drv"))
            .map(|part| StorePath::parse(part).map_err(|e| e.to_string()))
            .collect()
    }

    const CHAIN: &str = r#"rec {
        drv = name: inputs: derivation { inherit name inputs; system = "none"; builder = "/bin/sh"; };
        a = drv "a" [ ]; b = drv "b" [ a ]; c = drv "c" [ a ]; d = drv "d" [ b c a ];
    }.d"#;

    #[test]
    fn references_come_first() {
        let Some(store) = Store::new() else { return };
        let top = store.eval(
            r#"let t = builtins.toFile; a = t "a" "a"; b = t "b" "b ${a}"; c = t "c" "c ${a}"; z = t "0" "z"; in
            t "d" "d ${b} ${c} ${z}""#,
        );
        let mut daemon = store.daemon();
        let infos = closure(&mut daemon, [top.clone(), top.clone()]).unwrap();
        assert_eq!(infos.len(), 5);
        for (at, info) in infos.iter().enumerate() {
            assert!(info.references.iter().all(|r| infos[..at].iter().any(|i| i.path == *r)), "{infos:#?}");
        }
        assert_eq!(infos[4].path, top);
        assert_eq!(infos[4].references.len(), 3);
        assert!(infos[4].ca.as_deref().unwrap().starts_with("text:sha256:"));
        // the order depends on nothing but the closure
        let all: Vec<StorePath> = infos.iter().rev().map(|i| i.path.clone()).collect();
        assert_eq!(closure(&mut daemon, all).unwrap(), infos);
        assert!(closure(&mut daemon, []).unwrap().is_empty());
    }

    #[test]
    fn an_invalid_root_is_named() {
        let Some(store) = Store::new() else { return };
        let valid = store.add_text("valid", "");
        let absent = StorePath::parse("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-absent").unwrap();
        let mut daemon = store.daemon();
        let error = closure(&mut daemon, [valid.clone(), absent.clone()]).unwrap_err();
        assert!(matches!(&error, ClosureError::InvalidRoot(path) if *path == absent), "{error}");
        assert!(error.to_string().starts_with(&format!("`{absent}` is not valid")), "{error}");
        // and the connection is still good
        assert_eq!(closure(&mut daemon, [valid]).unwrap().len(), 1);
    }

    #[test]
    fn derivations_inputs_first() {
        let Some(store) = Store::new() else { return };
        let top = store.instantiate(CHAIN);
        let mut daemon = store.daemon();
        let found = derivations(&mut daemon, [top.clone()], inputs).unwrap();
        let names: Vec<&str> = found.texts.iter().map(|(path, _)| path.name()).collect();
        assert_eq!((names[0], names[3]), ("a.drv", "d.drv"));
        assert_eq!(names.len(), 4);
        assert!(found.missing.is_empty());
        for (path, text) in &found.texts {
            assert_eq!(fs::read(daemon.physical(path)).unwrap(), *text);
        }

        // the same through the daemon alone, the files being out of sight
        let mut hidden = store.daemon();
        hidden.hide_files();
        assert_eq!(derivations(&mut hidden, [top], inputs).unwrap(), found);
    }

    #[test]
    fn a_collected_derivation_is_missing_and_no_error() {
        let Some(store) = Store::new() else { return };
        let top = store.instantiate(CHAIN);
        let all = derivations(&mut store.daemon(), [top.clone()], inputs).unwrap().texts;
        // nothing keeps the top one
        store.run("nix-store", &["--delete", &top.absolute()], "");
        let b = all.iter().find(|(path, _)| path.name() == "b.drv").unwrap().0.clone();
        let found = derivations(&mut store.daemon(), [top.clone(), b], inputs).unwrap();
        assert_eq!(found.missing, [top]);
        let names: Vec<&str> = found.texts.iter().map(|(path, _)| path.name()).collect();
        assert_eq!(names, ["a.drv", "b.drv"]);
    }

    #[test]
    fn bad_derivations() {
        let Some(store) = Store::new() else { return };
        let text = store.add_text("text", "");
        let top = store.instantiate(CHAIN);
        let mut daemon = store.daemon();
        let got = derivations(&mut daemon, [text.clone()], inputs);
        assert!(matches!(got, Err(ClosureError::NotADerivation(path)) if path == text));
        let got = derivations(&mut daemon, [top.clone()], |_| Err("odd".into()));
        assert!(matches!(got, Err(ClosureError::Derivation { path, why }) if path == top && why == "odd"));
        // what the caller's visitor says is passed on
        #[derive(Debug)]
        struct Mine;
        impl From<ClosureError> for Mine {
            fn from(_: ClosureError) -> Self {
                panic!("no other error")
            }
        }
        assert!(visit_derivations(&mut daemon, [top], inputs, |_, _| Err(Mine)).is_err());
    }

    #[test]
    fn a_cycle_is_named() {
        let path = |name: &str| {
            StorePath::parse(&format!("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-{name}")).unwrap()
        };
        let mut graph = Graph::default();
        let mut new = Vec::new();
        graph.add_roots(&[path("top")]).unwrap();
        graph.point(0, &BTreeSet::from([path("x"), path("top")]), &mut new).unwrap();
        graph.point(1, &BTreeSet::from([path("y"), path("leaf")]), &mut new).unwrap();
        assert_eq!(new, [path("x"), path("leaf"), path("y")]);
        let y = graph.numbers[&path("y")];
        assert_eq!(graph.inputs_first().unwrap().len(), 4);
        graph.point(y, &BTreeSet::from([path("x")]), &mut new).unwrap();
        assert!(
            matches!(graph.inputs_first(), Err(ClosureError::Cycle(p)) if p != path("top") && p != path("leaf"))
        );
    }

    #[test]
    fn contents_of_a_plain_nar() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for text in ["", "a", "12345678", "a longer text"] {
            fs::write(&file, text).unwrap();
            let mut nar = Vec::new();
            super::super::dump::dump(&file, &mut nar).unwrap();
            assert_eq!(&nar[plain_contents(&nar).unwrap()], text.as_bytes());
            for cut in 0..nar.len() {
                assert_eq!(plain_contents(&nar[..cut]), None);
            }
        }
        let mut nar = Vec::new();
        super::super::dump::dump(dir.path(), &mut nar).unwrap();
        assert_eq!(plain_contents(&nar), None);
    }
}
