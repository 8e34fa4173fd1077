//! Derivations: parsing, printing, the checks and the hash that output paths follow from.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    Sha256, StorePath,
    derivation::{
        Collision, Derivation, DerivationError, Facts, Kind, Modulo, Output, OutputName, check,
        derivation_name, text_path,
    },
};
use pushgate_fuzz::{assert_code, assert_message};

/// Facts of an input, as if it had been checked before: what they are depends on its path only. Few different hashes, so
/// that inputs often share one.
fn input_facts(path: &StorePath, wanted: &BTreeSet<OutputName>) -> Facts {
    let pick = path.hash_part().as_bytes()[31];
    let hash = Sha256::of(&[pick % 3]);
    let (kind, modulo) = match pick % 8 {
        0 => (Kind::Floating, Modulo::Undecidable(hash)),
        1 => (Kind::Impure, Modulo::Undecidable(hash)),
        _ => (Kind::InputAddressed, Modulo::Known(hash)),
    };
    let outputs: BTreeMap<&OutputName, Option<StorePath>> = wanted.iter().map(|o| (o, None)).collect();
    serde_json::from_value(serde_json::json!({
        "kind": kind, "outputs": outputs, "modulo": modulo, "masked": hash, "collision": Collision::None,
    }))
    .expect("the form in which facts are stored")
}

/// Checks a derivation under the path that its text has.
fn checked(derivation: &Derivation) -> Result<check::Checked, DerivationError> {
    let raw = derivation.print();
    let path = text_path("fuzz.drv", &raw, &derivation.references()).expect("a text's path");
    assert_eq!(derivation_name(&path), Ok("fuzz"));
    check::check(&path, &raw, |input| derivation.input_drvs.get(input).map(|w| input_facts(input, w)))
}

/// Puts in the paths that the check asks for, as Nix does when it makes a derivation.
fn mend(mut derivation: Derivation) -> Option<Derivation> {
    for output in derivation.outputs.keys() {
        // that the variable is there counts for the hash, its value doesn't
        derivation.env.entry(output.as_str().into()).or_default();
    }
    for _ in 0..2 * derivation.outputs.len() + 1 {
        match checked(&derivation) {
            Ok(_) => return Some(derivation),
            Err(DerivationError::Mismatch { output, computed, .. }) => {
                match derivation.outputs.get_mut(&output).expect("an output") {
                    Output::InputAddressed(path) | Output::Fixed { path, .. } => *path = computed,
                    other => panic!("{other:?} has no path that could be wrong"),
                }
            }
            Err(DerivationError::Environment { output, path, .. }) => {
                derivation.env.insert(output.as_str().into(), path.absolute().into());
            }
            Err(error) => {
                assert_code(error.code());
                assert_message(&error);
                return None;
            }
        }
    }
    panic!("it can't be mended")
}

fuzz_target!(|data: &[u8]| {
    let derivation = match Derivation::parse(data) {
        Ok(derivation) => derivation,
        Err(error) => {
            assert_code(error.code());
            assert_message(&error);
            return;
        }
    };
    assert_eq!(derivation.print(), data);
    if let Err(error) = derivation.attributes() {
        assert_code(error.code());
        assert_message(&error);
    }
    let leaf = derivation.fixed_leaf();
    assert_eq!(matches!(leaf, Ok(Some(_))), leaf.is_ok() && derivation.kind() == Ok(Kind::Fixed));

    // another path than its own is never taken
    let foreign =
        StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-fuzz.drv").expect("a store path");
    let facts = |input: &StorePath| derivation.input_drvs.get(input).map(|w| input_facts(input, w));
    assert!(matches!(check::check(&foreign, data, facts), Err(DerivationError::PathMismatch { .. })));

    if derivation.outputs.len() > 8 {
        return;
    }
    let Some(mended) = mend(derivation) else { return };
    let facts = checked(&mended).expect("mended").facts;
    assert_eq!(Ok(facts.kind()), mended.kind());
    assert!(facts.outputs().keys().eq(mended.outputs.keys()));
    let stored = serde_json::to_string(&facts).expect("plain data");
    assert_eq!(serde_json::from_str::<Facts>(&stored).expect("as it was stored"), facts);
    for (output, path) in facts.outputs() {
        let written = match &mended.outputs[output] {
            Output::InputAddressed(path) | Output::Fixed { path, .. } => Some(path),
            _ => None,
        };
        assert_eq!(path.as_ref(), written);
        assert!(facts.realisation_id(output).is_some());
        // its path is the only one that it may have
        if written.is_some() {
            let mut other = mended.clone();
            let wrong = StorePath::from_base_name("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-fuzz").expect("a path");
            match other.outputs.get_mut(output) {
                Some(Output::InputAddressed(path) | Output::Fixed { path, .. }) => *path = wrong,
                _ => unreachable!("it has a path"),
            }
            assert!(matches!(checked(&other), Err(DerivationError::Mismatch { .. })));
        }
    }
    // what it is for its dependants is bound to all of its text but for the paths
    if facts.kind() == Kind::InputAddressed {
        let mut other = mended;
        other.args.push(b"more".to_vec());
        let other = mend(other).expect("as the first");
        let other = checked(&other).expect("mended").facts;
        assert_ne!(facts.masked(), other.masked());
        assert_ne!(facts.modulo().hash(), other.modulo().hash());
        for (output, path) in facts.outputs() {
            assert_ne!(path, &other.outputs()[output]);
        }
    }
});
