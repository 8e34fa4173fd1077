//! What isn't even tried: derivations that ask for holes in the sandbox, or for what this verifier hasn't got. Reads the
//! derivation as the store has it, and builds nothing.

use std::collections::{BTreeMap, BTreeSet};

use pushgate_formats::{
    StorePath,
    derivation::{Derivation, MAX_DERIVATION, Output},
    jobs::Failure,
};
use serde_json::Value;

use super::{
    Order, failure, fault,
    fetch::{Prefix, Source},
    listed,
    prepare::{Inputs, unavailable},
};
use crate::{config::Config, nix::Nix};

/// A derivation that may be built from what is there; only [`check`] makes it.
#[derive(Debug)]
pub struct Permitted {
    pub inputs: Inputs,
    pub derivation: Derivation,
    /// All of the outputs, by name.
    pub outputs: BTreeMap<String, StorePath>,
    fetch: Option<Source>,
}

impl Permitted {
    /// Where it is no build but a fetch.
    pub const fn fetch(&self) -> Option<&Source> {
        self.fetch.as_ref()
    }
}

/// Checks the derivation and that its inputs are there.
pub fn check(nix: &Nix, order: &Order, inputs: Inputs, config: &Config) -> Result<Permitted, Failure> {
    let derivation = read(nix, &order.job.derivation)?;
    forbidden(&derivation, config)?;
    let fetch = builtin(&derivation, config)?;
    let outputs = outputs(&derivation, order)?;
    let valid = inputs.valid();
    let given: Vec<_> = outputs.values().filter(|path| valid.contains_key(path)).collect();
    if !given.is_empty() {
        // it would be taken for the build's own, and attested to
        return Err(failure(
            "job-malformed",
            format!("the view has outputs of the derivation itself: {}", listed(given.into_iter())),
        ));
    }
    // With an input missing Nix would build it, and what comes out of that is nobody's evidence.
    let mut missing: BTreeSet<StorePath> =
        derivation.input_srcs.iter().filter(|path| !valid.contains_key(path)).cloned().collect();
    for (input, names) in &derivation.input_drvs {
        let read = read(nix, input)?;
        for name in names {
            match read.outputs.get(name) {
                Some(Output::InputAddressed(path) | Output::Fixed { path, .. }) => {
                    if !valid.contains_key(path) {
                        missing.insert(path.clone());
                    }
                }
                Some(_) => return Err(floating(input)),
                None => return Err(unavailable(format!("`{input}` has no output `{name}`"))),
            }
        }
    }
    if !missing.is_empty() {
        return Err(unavailable(format!("not in the job's view: {}", listed(missing.iter()))));
    }
    Ok(Permitted { inputs, derivation, outputs, fetch })
}

fn read(nix: &Nix, path: &StorePath) -> Result<Derivation, Failure> {
    use std::io::Read;
    let real = nix.layout.real(path);
    let mut raw = Vec::new();
    let read =
        std::fs::File::open(&real).and_then(|f| f.take(MAX_DERIVATION as u64 + 1).read_to_end(&mut raw));
    match read {
        Ok(_) => Derivation::parse(&raw).map_err(|e| failure(e.code(), format!("`{path}`: {e}"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(unavailable(format!("not in the job's view: `{path}`")))
        }
        Err(e) => Err(fault(format!("`{path}`: {e}"))),
    }
}

/// Attributes that Nix obeys, as variables and as structured attributes.
fn forbidden(derivation: &Derivation, config: &Config) -> Result<(), Failure> {
    let structured: Option<Value> = match derivation.env_var("__json") {
        Some(json) => Some(
            serde_json::from_slice(json)
                .map_err(|e| failure("derivation-malformed", format!("structured attributes: {e}")))?,
        ),
        None => None,
    };
    // either spelling counts, whichever Nix looks at in the version at hand
    let variable = |name: &str| derivation.env_var(name).map(|v| String::from_utf8_lossy(v).into_owned());
    let attribute = |name: &str| structured.as_ref().and_then(|all| all.get(name));
    let says_yes = |name: &str| {
        variable(name).is_some_and(|v| !v.is_empty() && v != "0" && v != "false")
            || attribute(name).is_some_and(|v| !matches!(v, Value::Bool(false) | Value::Null))
    };
    let words = |name: &str| {
        let mut all: BTreeSet<String> =
            variable(name).iter().flat_map(|v| v.split_whitespace()).map(str::to_owned).collect();
        match attribute(name) {
            Some(Value::Array(list)) => all.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
            Some(Value::String(text)) => all.extend(text.split_whitespace().map(str::to_owned)),
            _ => {}
        }
        all
    };
    if says_yes("__noChroot") {
        return Err(failure(
            "no-chroot",
            "the derivation wants to be built outside the sandbox (`__noChroot`)",
        ));
    }
    for name in ["__impureHostDeps", "__propagatedImpureHostDeps", "__sandboxProfile"] {
        if !words(name).is_empty() {
            return Err(failure(
                "impure-host-deps",
                format!("the derivation wants files of the host (`{name}`)"),
            ));
        }
    }
    let system = &derivation.system;
    // Nix's own builders have a system of that name
    let builtin = system == "builtin" && derivation.builder.starts_with(b"builtin:");
    if !config.systems.contains(system) && !builtin {
        return Err(failure("system-unavailable", format!("this verifier doesn't build for `{system}`")));
    }
    let wanted = words("requiredSystemFeatures");
    let missing: Vec<_> = wanted.difference(&config.features).map(|f| format!("`{f}`")).collect();
    if !missing.is_empty() {
        return Err(failure(
            "system-unavailable",
            format!("this verifier hasn't the features {}", missing.join(", ")),
        ));
    }
    Ok(())
}

/// Builders inside Nix itself run outside the sandbox. One is let pass in another shape: the verifier fetches for it.
fn builtin(derivation: &Derivation, config: &Config) -> Result<Option<Source>, Failure> {
    let Some(name) = derivation.builder.strip_prefix(b"builtin:") else {
        return Ok(None);
    };
    let refused = |why: &str| {
        let name = String::from_utf8_lossy(name);
        failure("builtin-builder", format!("the builder `builtin:{name}` runs outside the sandbox{why}"))
    };
    let prefixes: Vec<_> = config.fetch.iter().filter_map(|text| Prefix::parse(text)).collect();
    if prefixes.is_empty() || name != b"fetchurl" {
        return Err(refused(""));
    }
    Source::of(derivation, &prefixes).map(Some).map_err(|why| refused(&format!(", and {why}")))
}

/// The outputs' paths, which have to be those that the job names.
fn outputs(derivation: &Derivation, order: &Order) -> Result<BTreeMap<String, StorePath>, Failure> {
    let mut all = BTreeMap::new();
    for (name, output) in &derivation.outputs {
        match output {
            Output::InputAddressed(path) | Output::Fixed { path, .. } => {
                all.insert(name.as_str().to_owned(), path.clone());
            }
            Output::Floating { .. } | Output::Deferred | Output::Impure { .. } => {
                return Err(floating(&order.job.derivation));
            }
        }
    }
    let differs = order.job.outputs.len() != all.len()
        || order.job.outputs.iter().any(|(name, path)| path.as_ref() != all.get(name));
    if differs {
        return Err(failure("job-malformed", "the job names other outputs than the derivation has"));
    }
    Ok(all)
}

fn floating(path: &StorePath) -> Failure {
    failure(
        "floating-unsupported",
        format!("`{path}` has outputs whose paths are known only after the build"),
    )
}

#[cfg(test)]
mod tests {
    use pushgate_formats::derivation::OutputName;
    use rstest::rstest;

    use super::*;

    fn derivation(env: &[(&str, &str)]) -> Derivation {
        let path = StorePath::parse("/nix/store/93hswik0brc6ppfajxk7zb4h1hkh5cb6-x").unwrap();
        Derivation {
            outputs: BTreeMap::from([(OutputName::parse("out").unwrap(), Output::InputAddressed(path))]),
            input_srcs: BTreeSet::new(),
            input_drvs: BTreeMap::new(),
            system: "x86_64-linux".into(),
            builder: b"/bin/sh".to_vec(),
            args: vec![],
            env: env.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect(),
        }
    }

    fn config() -> Config {
        Config { systems: vec!["x86_64-linux".into()], features: ["kvm".into()].into(), ..Config::default() }
    }

    #[rstest]
    #[case::plain(&[("__noChroot", "1")], "no-chroot")]
    #[case::structured(&[("__json", r#"{"__noChroot":true}"#)], "no-chroot")]
    #[case::both(&[("__json", "{}"), ("__noChroot", "1")], "no-chroot")]
    #[case::host(&[("__impureHostDeps", "/etc/hosts")], "impure-host-deps")]
    #[case::host_structured(&[("__json", r#"{"__impureHostDeps":["/etc"]}"#)], "impure-host-deps")]
    #[case::propagated(&[("__propagatedImpureHostDeps", "/x")], "impure-host-deps")]
    #[case::feature(&[("requiredSystemFeatures", "kvm big-parallel")], "system-unavailable")]
    #[case::feature_structured(&[("__json", r#"{"requiredSystemFeatures":["x"]}"#)], "system-unavailable")]
    #[case::json(&[("__json", "{")], "derivation-malformed")]
    fn refused(#[case] env: &[(&str, &str)], #[case] code: &str) {
        assert_eq!(forbidden(&derivation(env), &config()).unwrap_err().code, code);
    }

    #[rstest]
    #[case(&[])]
    #[case(&[("__noChroot", ""), ("__impureHostDeps", "")])]
    #[case(&[("requiredSystemFeatures", "kvm")])]
    #[case(&[("__json", r#"{"__noChroot":false,"requiredSystemFeatures":["kvm"]}"#)])]
    fn permitted(#[case] env: &[(&str, &str)]) {
        assert_eq!(forbidden(&derivation(env), &config()), Ok(()));
    }

    #[test]
    fn no_other_builder_has_the_system_of_nix_itself() {
        let derivation = Derivation { system: "builtin".into(), ..derivation(&[]) };
        assert_eq!(forbidden(&derivation, &config()).unwrap_err().code, "system-unavailable");
    }

    #[rstest]
    #[case("builtin:fetchurl")]
    #[case("builtin:buildenv")]
    #[case("builtin:unpack-channel")]
    fn builtins(#[case] builder: &str) {
        let derivation = Derivation { builder: builder.into(), ..derivation(&[]) };
        assert_eq!(builtin(&derivation, &config()).unwrap_err().code, "builtin-builder");
    }
}
