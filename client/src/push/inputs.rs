//! What verifiers need and nobody else has: sources, fixed outputs and other things that their contents prove. Finds them
//! in the store on this machine and sends them. Doesn't know which builds need them; what it can't find or send harms no
//! push, and is only told of.

use std::collections::{BTreeSet, HashMap, HashSet};

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus},
    derivation::{Derivation, Output},
};
use tokio::time::Instant;

use super::{
    PushError,
    send::{Parcel, Sender},
    wait::{self, Waited},
};
use crate::{
    api::{Until, printable},
    nix::{
        Daemon, PathInfo,
        closure::{ClosureError, closure, visit_derivations},
    },
};

/// Code of a held path that only verifiers get: that is all that becomes of it.
const KEPT: &str = "kept-as-input";
/// The gateway may find out what it needs bit by bit, but not for ever.
const MAX_ROUNDS: u32 = 32;
/// Most paths that one note names.
const MOST_NAMED: usize = 5;

/// Whether a path was sent for verifiers, and has arrived.
pub fn is_kept(path: &PathStatus) -> bool {
    path.state == PathState::Held && path.code.as_deref() == Some(KEPT)
}

/// What was looked for.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    sent: HashSet<StorePath>,
    /// Not in the store, when last looked at.
    lacking: HashSet<StorePath>,
    rounds: u32,
}

impl Inputs {
    /// Whether something among these was not looked for before.
    pub(crate) fn are_new(&self, wanted: &[StorePath]) -> bool {
        self.rounds < MAX_ROUNDS
            && wanted.iter().any(|path| !self.sent.contains(path) && !self.lacking.contains(path))
    }

    /// Whether something among these could be sent if only it were there.
    pub(crate) fn are_lacking(&self, wanted: &[StorePath]) -> bool {
        wanted.iter().any(|path| self.lacking.contains(path))
    }
}

/// What the store has of what is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// References first.
    paths: Vec<PathInfo>,
    /// What isn't there, and the derivation that would fetch it.
    lacking: Vec<(StorePath, Option<StorePath>)>,
}

impl Sender<'_> {
    /// Sends what the store has of what verifiers need; `derivations` are those whose inputs these are.
    pub(crate) async fn serve(
        &mut self,
        inputs: &mut Inputs,
        wanted: &[StorePath],
        derivations: &[StorePath],
        deadline: Instant,
    ) {
        if inputs.are_new(wanted) {
            inputs.rounds += 1;
        }
        let open: BTreeSet<StorePath> =
            wanted.iter().filter(|path| !inputs.sent.contains(path)).cloned().collect();
        let roots = derivations.to_vec();
        let asked = open.clone();
        let found = match self.ask_store(move |daemon| find(daemon, asked, roots)).await {
            Ok(found) => found,
            Err(error) => {
                inputs.sent.extend(open);
                self.notices.push(format!("what a rebuild needs can't be looked for: {}", in_words(&error)));
                return;
            }
        };
        let lacking: Vec<_> =
            found.lacking.into_iter().filter(|(path, _)| inputs.lacking.insert(path.clone())).collect();
        self.notices.extend(about_lacking(&lacking));
        for path in open.into_iter().filter(|path| found.paths.iter().any(|info| info.path == *path)) {
            inputs.lacking.remove(&path);
            inputs.sent.insert(path);
        }
        for paths in super::plan::announcements(found.paths, self.greeting.max_paths()) {
            if let Err(error) = self.send_inputs(paths, deadline).await {
                self.notices.push(format!("what a rebuild needs couldn't be sent: {}", in_words(&error)));
            }
        }
    }

    async fn send_inputs(&mut self, paths: Vec<PathInfo>, deadline: Instant) -> Result<(), PushError> {
        self.progress.doing(format!("announcing {} paths that a rebuild needs", paths.len()));
        let pushed = self.send(Parcel { paths, inputs: true, ..Parcel::default() }).await?;
        let (api, lost) = (&self.session.api, &pushed.lost);
        let waited =
            wait::wait(api, &pushed.handle, Until::Settled, deadline, lost, None, &self.progress).await;
        let Waited { status, .. } =
            waited.map_err(|error| PushError::Outcome { error, push: pushed.handle.id.clone() })?;
        self.notices.extend(status.notices.iter().map(|notice| printable(notice)));
        self.notices.extend(status.paths.iter().filter_map(|path| about(path, lost)));
        Ok(())
    }
}

/// What to say of a path that was sent for verifiers and isn't with them.
fn about(path: &PathStatus, lost: &HashMap<StorePath, String>) -> Option<String> {
    let why = match path.state {
        PathState::Rejected => path.message.as_ref().or(path.code.as_ref())?,
        PathState::Wanted => lost.get(&path.path)?,
        _ => return None,
    };
    Some(format!("`{}`, which a rebuild needs, didn't get there: {}", path.path, printable(why)))
}

fn about_lacking(lacking: &[(StorePath, Option<StorePath>)]) -> Vec<String> {
    let mut notes: Vec<String> = lacking
        .iter()
        .take(MOST_NAMED)
        .map(|(path, fetched_by)| {
            let how = match fetched_by {
                Some(derivation) => format!("get it with `nix-store --realise {derivation}`, and push again"),
                None => "evaluate what it is the source of, and push again".into(),
            };
            format!("the gateway wants `{path}` for a rebuild, but this store doesn't have it: {how}")
        })
        .collect();
    if lacking.len() > MOST_NAMED {
        notes.push(format!(
            "and {} more paths that a rebuild needs and this store doesn't have",
            lacking.len() - MOST_NAMED
        ));
    }
    notes
}

fn in_words(error: &PushError) -> String {
    let mut words = printable(&error.to_string());
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        words = format!("{words}: {}", printable(&inner.to_string()));
        cause = inner;
    }
    words
}

/// Looks for paths, and for what they refer to, and keeps what there is from being collected.
fn find(daemon: &mut Daemon, wanted: BTreeSet<StorePath>, roots: Vec<StorePath>) -> Result<Found, PushError> {
    let valid = daemon.valid_paths(&wanted)?;
    let infos = closure(daemon, valid.iter().cloned())?;
    // derivations are read only where something isn't known without them
    let unproven = infos.iter().filter(|info| info.ca.is_none()).map(|info| &info.path);
    let unknown: HashSet<StorePath> = wanted.difference(&valid).chain(unproven).cloned().collect();
    let fixed = if unknown.is_empty() { HashMap::new() } else { fixed_outputs(daemon, roots, &unknown)? };
    let paths = select(infos, &wanted, &fixed);
    let sent: Vec<StorePath> = paths.iter().map(|info| info.path.clone()).collect();
    daemon.add_temp_roots(&sent)?;
    let lacking = wanted.difference(&valid).map(|path| (path.clone(), fixed.get(path).cloned())).collect();
    Ok(Found { paths, lacking })
}

/// Of a closure, what contents can prove: all that has a content address and, with the derivation that says so, fixed
/// outputs without one. What the gateway itself names is left in: it may know better.
fn select(
    infos: Vec<PathInfo>,
    wanted: &BTreeSet<StorePath>,
    fixed: &HashMap<StorePath, StorePath>,
) -> Vec<PathInfo> {
    let with_hint = |mut info: PathInfo| {
        if info.ca.is_none() {
            match fixed.get(&info.path) {
                Some(derivation) => info.deriver = Some(derivation.clone()),
                None if wanted.contains(&info.path) => {}
                None => return None,
            }
        }
        Some(info)
    };
    infos.into_iter().filter_map(with_hint).collect()
}

/// Which of the paths are fixed outputs in the derivation closures of `roots`, and of which derivation.
fn fixed_outputs(
    daemon: &mut Daemon,
    roots: Vec<StorePath>,
    paths: &HashSet<StorePath>,
) -> Result<HashMap<StorePath, StorePath>, ClosureError> {
    let inputs = |text: &[u8]| {
        Ok(Derivation::parse(text)
            .map_or_else(|_| Vec::new(), |derivation| derivation.input_drvs.into_keys().collect()))
    };
    let mut fixed = HashMap::new();
    visit_derivations(daemon, roots, inputs, |derivation, text| {
        let parsed = Derivation::parse(text).ok();
        if let Some(Output::Fixed { path, .. }) = parsed.as_ref().and_then(|d| d.outputs.values().next())
            && paths.contains(path)
        {
            fixed.entry(path.clone()).or_insert_with(|| derivation.clone());
        }
        Ok::<(), ClosureError>(())
    })?;
    Ok(fixed)
}

#[cfg(test)]
mod tests {
    use pushgate_formats::Sha256;

    use super::*;
    use crate::nix::testing::Store;

    fn path(n: u8, name: &str) -> StorePath {
        StorePath::from_digest(&[n; 20], name).unwrap()
    }

    fn info(n: u8, ca: Option<&str>) -> PathInfo {
        PathInfo {
            path: path(n, "x"),
            deriver: None,
            nar_hash: Sha256([n; 32]),
            references: BTreeSet::new(),
            registration_time: 0,
            nar_size: 120,
            ultimate: false,
            signatures: vec![],
            ca: ca.map(Into::into),
        }
    }

    #[test]
    fn what_contents_can_prove() {
        let infos = vec![info(1, Some("text:sha256:0")), info(2, None), info(3, None), info(4, None)];
        let drv = path(9, "source.drv");
        let fixed = [(path(3, "x"), drv.clone())].into();
        let wanted = [path(4, "x"), path(3, "x")].into();
        let sent = select(infos, &wanted, &fixed);
        // a built path that only a reference led to isn't an input that contents prove
        let numbers: Vec<_> = sent.iter().map(|info| (info.path.digest()[0], info.deriver.clone())).collect();
        assert_eq!(numbers, [(1, None), (3, Some(drv)), (4, None)]);
    }

    #[test]
    fn nothing_is_looked_for_twice_or_for_ever() {
        let mut inputs = Inputs::default();
        let wanted = [path(1, "x"), path(2, "x")];
        assert!(inputs.are_new(&wanted) && !inputs.are_new(&[]) && !inputs.are_lacking(&wanted));
        inputs.sent.insert(path(1, "x"));
        assert!(inputs.are_new(&wanted));
        inputs.lacking.insert(path(2, "x"));
        assert!(!inputs.are_new(&wanted) && inputs.are_lacking(&wanted));
        inputs.rounds = MAX_ROUNDS;
        assert!(!inputs.are_new(&[path(3, "x")]));
    }

    #[test]
    fn what_isn_t_there_is_told_with_what_to_do() {
        let drv = path(9, "source.drv");
        let notes = about_lacking(&[(path(1, "x"), Some(drv.clone())), (path(2, "x"), None)]);
        assert!(notes[0].contains(&format!("`nix-store --realise {drv}`")), "{notes:?}");
        assert!(notes[1].contains("evaluate what it is the source of"), "{notes:?}");
        let many: Vec<_> = (0..8).map(|n| (path(n, "x"), None)).collect();
        assert_eq!(about_lacking(&many).len(), MOST_NAMED + 1);
    }

    #[test]
    fn what_became_of_an_input() {
        let status = |state, message: &str| PathStatus {
            path: path(1, "x"),
            state,
            code: None,
            message: Some(message.into()),
            waits_for: vec![],
        };
        let lost: HashMap<_, _> = [(path(1, "x"), "gone".to_owned())].into();
        assert!(about(&status(PathState::Rejected, "not \u{1b}it"), &lost).unwrap().ends_with("not it"));
        assert!(about(&status(PathState::Wanted, ""), &lost).unwrap().ends_with("gone"));
        assert_eq!(about(&status(PathState::Held, "kept"), &lost), None);
    }

    #[test]
    fn inputs_of_a_real_derivation() {
        let Some(store) = Store::new() else { return };
        let source = store.add_text("source", "text");
        let drv = store.instantiate(
            r#"derivation {
                name = "top"; system = "none"; builder = "/bin/sh";
                fetched = derivation {
                    name = "fetched"; system = "none"; builder = "/bin/sh"; outputHashMode = "flat"; outputHashAlgo = "sha256";
                    outputHash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
                };
            }"#,
        );
        let mut daemon = store.daemon();
        let fixed = daemon.output_map(&drv).unwrap();
        let top = fixed["out"].clone().unwrap();
        let fetched = {
            let text = std::fs::read(store.location().physical(&drv)).unwrap();
            Derivation::parse(&text).unwrap().input_drvs.into_keys().next().unwrap()
        };
        let out = daemon.output_map(&fetched).unwrap()["out"].clone().unwrap();
        let wanted = [source.clone(), out.clone(), top.clone()].into();
        let found = find(&mut daemon, wanted, vec![drv]).unwrap();
        assert_eq!(found.paths.iter().map(|info| &info.path).collect::<Vec<_>>(), [&source]);
        let mut lacking = vec![(out, Some(fetched)), (top, None)];
        lacking.sort();
        assert_eq!(found.lacking, lacking);
    }
}
