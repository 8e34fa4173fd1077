//! Which derivations to ask verifiers for. Begins with those that a person wants, and goes down from there only as far as
//! the gateway says that it lacks something: what the cache or an upstream has is never built again, and neither are the
//! hundreds of derivations below it. Pure, but for reading the closure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pushgate_formats::{
    StorePath,
    derivation::{Derivation, Output, OutputName},
    jobs::BuiltOutput,
};

use super::name;
use crate::nix::{
    Daemon, PathInfo,
    closure::{ClosureError, visit_derivations},
};

/// What matters of a derivation here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outline {
    /// By name; without a path where that depends on what gets built.
    pub(super) outputs: BTreeMap<String, Option<StorePath>>,
    /// Its contents are known beforehand: it is fetched, not built.
    pub(super) fixed: bool,
    pub(super) inputs: Vec<StorePath>,
}

impl From<Derivation> for Outline {
    fn from(derivation: Derivation) -> Self {
        let fixed = derivation.outputs.values().any(|output| matches!(output, Output::Fixed { .. }));
        let path = |output| match output {
            Output::InputAddressed(path) | Output::Fixed { path, .. } => Some(path),
            Output::Floating { .. } | Output::Deferred | Output::Impure { .. } => None,
        };
        Self {
            outputs: derivation.outputs.into_iter().map(|(name, o)| (name.into(), path(o))).collect(),
            fixed,
            inputs: derivation.input_drvs.into_keys().collect(),
        }
    }
}

/// A derivation closure, inputs first, and what of it was asked for.
#[derive(Debug)]
pub(super) struct Plan {
    roots: Vec<StorePath>,
    order: Vec<StorePath>,
    outlines: HashMap<StorePath, Outline>,
    /// Which derivation makes an output.
    makers: HashMap<StorePath, StorePath>,
    asked: HashSet<StorePath>,
}

impl Plan {
    /// Reads the derivation closure of what is to be built; also returns what the store lacks of it.
    pub(super) fn read(
        daemon: &mut Daemon,
        roots: Vec<StorePath>,
    ) -> Result<(Self, Vec<StorePath>), ClosureError> {
        let inputs = |text: &[u8]| {
            let parsed = Derivation::parse(text).map_err(|e| e.to_string())?;
            Ok(parsed.input_drvs.into_keys().collect())
        };
        let mut outlines = Vec::new();
        let missing = visit_derivations(daemon, roots.clone(), inputs, |path, text| {
            let parsed = Derivation::parse(text)
                .map_err(|e| ClosureError::Derivation { path: path.clone(), why: e.to_string() })?;
            outlines.push((path.clone(), parsed.into()));
            Ok::<(), ClosureError>(())
        })?;
        Ok((Self::new(roots, outlines), missing))
    }

    fn new(roots: Vec<StorePath>, outlines: Vec<(StorePath, Outline)>) -> Self {
        let order = outlines.iter().map(|(path, _)| path.clone()).collect();
        let makers = outlines.iter().flat_map(|(derivation, outline)| {
            outline.outputs.values().flatten().map(|output| (output.clone(), derivation.clone()))
        });
        let makers = makers.collect();
        let outlines = outlines.into_iter().collect();
        Self { roots, order, outlines, makers, asked: HashSet::new() }
    }

    pub(super) fn roots(&self) -> &[StorePath] {
        &self.roots
    }

    /// The outputs of what is to be built, as far as their paths are known beforehand.
    pub(super) fn root_outputs(&self) -> Vec<StorePath> {
        let outlines = self.roots.iter().filter_map(|root| self.outlines.get(root));
        outlines.flat_map(|outline| outline.outputs.values().flatten().cloned()).collect()
    }

    /// What to ask for first, given which outputs the cache has: the roots that it doesn't have whole.
    pub(super) fn first(&mut self, there: &HashSet<StorePath>) -> Vec<StorePath> {
        let is_there = |root: &StorePath| {
            self.outlines.get(root).is_some_and(|outline| {
                outline
                    .outputs
                    .values()
                    .all(|output| output.as_ref().is_some_and(|path| there.contains(path)))
            })
        };
        let open = self.roots.iter().filter(|root| !is_there(root)).cloned().collect();
        self.ask(open)
    }

    /// The paths, of those that builds wait for, that a build could make that nobody asked for yet.
    pub(super) fn lacking<'a>(
        &self,
        waits_for: impl IntoIterator<Item = &'a StorePath>,
    ) -> BTreeSet<StorePath> {
        let is_open = |path: &&StorePath| {
            self.made_by(path).is_some_and(|maker| !self.asked.contains(maker) && !self.outlines[maker].fixed)
        };
        waits_for.into_iter().filter(is_open).cloned().collect()
    }

    /// What to ask for to get these paths, inputs first.
    pub(super) fn further(&mut self, lacking: &BTreeSet<StorePath>) -> Vec<StorePath> {
        let makers = lacking.iter().filter_map(|path| self.made_by(path)).cloned().collect();
        self.ask(makers)
    }

    /// The derivation that makes a path. A derivation itself stands for outputs whose paths aren't known; for others, what is
    /// waited for is its text.
    fn made_by<'a>(&'a self, path: &'a StorePath) -> Option<&'a StorePath> {
        let stands_for_outputs =
            || self.outlines.get(path).is_some_and(|outline| outline.outputs.values().any(Option::is_none));
        self.makers.get(path).or_else(|| stands_for_outputs().then_some(path))
    }

    fn ask(&mut self, open: HashSet<StorePath>) -> Vec<StorePath> {
        let new: Vec<StorePath> = self
            .order
            .iter()
            .filter(|path| open.contains(path) && !self.asked.contains(path))
            .cloned()
            .collect();
        self.asked.extend(new.iter().cloned());
        new
    }

    /// All that a derivation is built from, as far as it was asked for.
    pub(super) fn asked_below(&self, derivation: &StorePath) -> BTreeSet<StorePath> {
        let mut seen = HashSet::new();
        let mut open = vec![derivation];
        while let Some(at) = open.pop() {
            for input in self.outlines.get(at).iter().flat_map(|outline| &outline.inputs) {
                if seen.insert(input) {
                    open.push(input);
                }
            }
        }
        seen.into_iter().filter(|path| self.asked.contains(*path)).cloned().collect()
    }

    /// What a verifier built, as paths to be claimed, references first; or why this client doesn't put its name to them.
    pub(super) fn claimable(
        &self,
        derivation: &StorePath,
        outputs: &[BuiltOutput],
    ) -> Result<Vec<PathInfo>, String> {
        let outline = self.outlines.get(derivation).ok_or_else(|| "it was never asked for".to_owned())?;
        // what is signed here is someone else's word: at least it has to be about what was asked for
        let names: BTreeSet<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        if names.len() != outputs.len() || !outline.outputs.keys().map(String::as_str).eq(names) {
            return Err("the gateway names other outputs than it has".into());
        }
        for output in outputs {
            let good = match outline.outputs.get(&output.name) {
                Some(Some(path)) => *path == output.path,
                // of a path that follows from what was built, only the name is known
                _ => OutputName::parse(&output.name)
                    .is_ok_and(|one| one.path_name(name(derivation)) == output.path.name()),
            };
            if !good {
                return Err(format!("the gateway names `{}`, which isn't an output of it", output.path));
            }
        }
        let mut open: Vec<&BuiltOutput> = outputs.iter().collect();
        let mut paths = Vec::new();
        while !open.is_empty() {
            let own: HashSet<&StorePath> = open.iter().map(|output| &output.path).collect();
            let needs_others = |output: &&BuiltOutput| {
                output.references.iter().any(|path| *path != output.path && own.contains(path))
            };
            let Some(at) = open.iter().position(|output| !needs_others(output)) else {
                return Err("its outputs refer to each other in a circle".into());
            };
            paths.push(info(open.remove(at), derivation));
        }
        Ok(paths)
    }
}

fn info(output: &BuiltOutput, derivation: &StorePath) -> PathInfo {
    PathInfo {
        path: output.path.clone(),
        deriver: Some(derivation.clone()),
        nar_hash: output.nar_hash,
        references: output.references.clone(),
        registration_time: 0,
        nar_size: output.nar_size,
        ultimate: false,
        signatures: Vec::new(),
        ca: output.ca.clone(),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use pushgate_formats::{Sha256, keys::Signature};

    use super::*;

    pub(in crate::build) fn drv(name: &str) -> StorePath {
        path(&format!("{name}.drv"))
    }

    pub(in crate::build) fn path(name: &str) -> StorePath {
        let digest = Sha256::of(name.as_bytes());
        StorePath::from_digest(digest.0[..20].try_into().unwrap(), name).unwrap()
    }

    fn outline(name: &str, inputs: &[&str]) -> (StorePath, Outline) {
        let outputs = [("out".to_owned(), Some(path(name)))].into();
        let inputs = inputs.iter().map(|input| drv(input)).collect();
        (drv(name), Outline { outputs, fixed: name.starts_with("src"), inputs })
    }

    /// `app` is built from `lib` and `tool`, `lib` from `cc` and a source, `tool` from `lib`.
    pub(in crate::build) fn plan() -> Plan {
        let outlines = vec![
            outline("cc", &[]),
            outline("src", &[]),
            outline("lib", &["cc", "src"]),
            outline("tool", &["lib"]),
            outline("app", &["lib", "tool"]),
        ];
        Plan::new(vec![drv("app")], outlines)
    }

    pub(in crate::build) fn built(name: &str, path: StorePath, references: &[&StorePath]) -> BuiltOutput {
        let signature = format!("v-1:{}==", "A".repeat(86));
        BuiltOutput {
            name: name.into(),
            path,
            nar_hash: Sha256([7; 32]),
            nar_size: 120,
            references: references.iter().map(|path| (*path).clone()).collect(),
            ca: None,
            signature: Signature::parse(&signature).unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};
    use crate::nix::testing::Store;

    #[test]
    fn nothing_that_is_there_is_asked_for() {
        assert_eq!(plan().first(&[path("app")].into()), []);
        assert_eq!(plan().first(&[path("lib")].into()), [drv("app")]);
        assert_eq!(plan().root_outputs(), [path("app")]);
    }

    #[test]
    fn goes_down_as_far_as_something_is_lacking_inputs_first() {
        let mut plan = plan();
        assert_eq!(plan.first(&HashSet::new()), [drv("app")]);
        // the source is sent and not built; of a derivation the text is waited for; what is strange isn't known
        let waits = [path("tool"), path("lib"), drv("cc"), path("src"), path("strange"), path("app")];
        let lacking = plan.lacking(&waits);
        assert_eq!(lacking, [path("tool"), path("lib")].into());
        assert_eq!(plan.further(&lacking), [drv("lib"), drv("tool")]);
        // each is asked for once, and what is below what upstreams have never
        assert!(plan.lacking(&waits).is_empty());
        assert_eq!(plan.further(&lacking), []);
        assert_eq!(plan.asked_below(&drv("app")), [drv("lib"), drv("tool")].into());
        assert!(plan.asked_below(&drv("lib")).is_empty());
    }

    #[test]
    fn an_output_whose_path_isn_t_known_has_to_be_built() {
        let outputs = [("out".to_owned(), None)].into();
        let floating = (drv("ca"), Outline { outputs, fixed: false, inputs: vec![] });
        let mut plan = Plan::new(vec![drv("ca")], vec![floating]);
        assert!(plan.root_outputs().is_empty());
        assert_eq!(plan.lacking(&[drv("ca"), path("ca")]), [drv("ca")].into());
        assert_eq!(plan.first(&HashSet::new()), [drv("ca")]);
        assert!(plan.claimable(&drv("ca"), &[built("out", path("ca"), &[])]).is_ok());
        assert!(plan.claimable(&drv("ca"), &[built("out", path("glibc"), &[])]).is_err());
    }

    #[test]
    fn outputs_are_claimed_references_first() {
        let (out, dev) = (path("two"), path("two-dev"));
        let outputs = [("out".to_owned(), Some(out.clone())), ("dev".to_owned(), Some(dev.clone()))].into();
        let plan = Plan::new(
            vec![drv("two")],
            vec![(drv("two"), Outline { outputs, fixed: false, inputs: vec![] })],
        );
        let claim = |outputs: &[BuiltOutput]| plan.claimable(&drv("two"), outputs);

        let good = [built("dev", dev.clone(), &[&out, &dev]), built("out", out.clone(), &[&out])];
        let paths = claim(&good).unwrap();
        assert_eq!(paths.iter().map(|info| &info.path).collect::<Vec<_>>(), [&out, &dev]);
        assert!(paths.iter().all(|info| info.deriver == Some(drv("two")) && info.nar_size == 120));

        // a gateway can't have names put to other paths, nor to fewer
        assert!(claim(&good[..1]).is_err());
        let swapped = [built("dev", out.clone(), &[]), built("out", dev.clone(), &[])];
        assert!(claim(&swapped).unwrap_err().contains("the gateway names"));
        let circle = [built("dev", dev.clone(), &[&out]), built("out", out, &[&dev])];
        assert!(claim(&circle).unwrap_err().contains("circle"));
        assert!(plan.claimable(&drv("other"), &good).is_err());
    }

    #[test]
    fn a_closure_of_real_derivations() {
        let Some(store) = Store::new() else { return };
        let root = store.instantiate(
            r#"let d = n: i: derivation { name = n; builder = "/bin/sh"; system = "none"; inherit i; };
               in d "top" [ (d "a" []) (d "b" [ (d "a" []) ]) ]"#,
        );
        let (mut plan, missing) = Plan::read(&mut store.daemon(), vec![root.clone()]).unwrap();
        assert!(missing.is_empty());
        let outputs = plan.root_outputs();
        assert_eq!(outputs.iter().map(StorePath::name).collect::<Vec<_>>(), ["top"]);
        assert_eq!(plan.first(&HashSet::new()), std::slice::from_ref(&root));
        let inputs = &plan.outlines[&root].inputs;
        let outputs: Vec<StorePath> =
            inputs.iter().filter_map(|input| plan.outlines[input].outputs["out"].clone()).collect();
        assert_eq!(outputs.len(), 2);
        let lacking = plan.lacking(&outputs);
        let names: Vec<_> = plan.further(&lacking).iter().map(|path| path.name().to_owned()).collect();
        assert_eq!(names, ["a.drv", "b.drv"]);
    }
}
