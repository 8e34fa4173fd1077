//! Checks one derivation given the facts of its inputs: is it what its path says, and do its outputs have the paths that
//! follow from it? Whoever calls brings the closure in order; this module knows neither where inputs are kept nor who
//! claims what.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{
    Collision, Derivation, DerivationError, Modulo, Output, OutputName, derivation_name,
    modulo::{self, Inputs},
    text_path,
};
use crate::{
    Sha256, StorePath,
    content_address::{ContentAddress, make_store_path},
    store_path::shown,
};

/// What kind of outputs a derivation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    InputAddressed,
    Fixed,
    Floating,
    Deferred,
    Impure,
}

impl Kind {
    pub(super) const fn of(output: &Output) -> Self {
        match output {
            Output::InputAddressed(_) => Self::InputAddressed,
            Output::Fixed { .. } => Self::Fixed,
            Output::Floating { .. } => Self::Floating,
            Output::Deferred => Self::Deferred,
            Output::Impure { .. } => Self::Impure,
        }
    }
}

/// What follows from a derivation and its inputs: all that its dependants' checks need. Made by [`check`] only, or read
/// back from where such facts were stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    kind: Kind,
    outputs: BTreeMap<OutputName, Option<StorePath>>,
    modulo: Modulo,
    masked: Sha256,
    collision: Collision,
}

impl Facts {
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Each output with its recomputed path: `None` where the path isn't known before the build.
    pub const fn outputs(&self) -> &BTreeMap<OutputName, Option<StorePath>> {
        &self.outputs
    }

    /// The hash by which dependants know this derivation.
    pub const fn modulo(&self) -> Modulo {
        self.modulo
    }

    /// The hash that the own outputs follow from: input-addressed paths, and the ids of realisations.
    pub const fn masked(&self) -> Sha256 {
        self.masked
    }

    /// Which way of hashing inputs that share a hash gave the paths in the file.
    pub const fn collision(&self) -> Collision {
        self.collision
    }

    /// The name under which Nix keeps where an output is: `sha256:HEX!out`. `None` if there is no such output.
    pub fn realisation_id(&self, output: &OutputName) -> Option<String> {
        self.outputs.contains_key(output).then(|| format!("sha256:{}!{output}", self.masked.hex()))
    }
}

/// A checked derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub derivation: Derivation,
    pub facts: Facts,
}

/// Checks the file `raw` of the derivation `path`. `inputs` gives the facts of input derivations that were checked before;
/// where it has none, the error is [`DerivationError::MissingInput`] and the caller may try again later. Inputs of
/// fixed-output and impure derivations aren't asked for: nothing here depends on them.
pub fn check<I: Borrow<Facts>>(
    path: &StorePath,
    raw: &[u8],
    inputs: impl Fn(&StorePath) -> Option<I>,
) -> Result<Checked, DerivationError> {
    let derivation = Derivation::parse(raw)?;
    check_own_path(path, raw, &derivation)?;
    let facts = facts(derivation_name(path)?, &derivation, inputs)?;
    Ok(Checked { derivation, facts })
}

/// Checks that the path is what the text hashes to. The name is bound with it.
pub fn check_own_path(path: &StorePath, raw: &[u8], derivation: &Derivation) -> Result<(), DerivationError> {
    derivation_name(path)?;
    let computed = text_path(path.name(), raw, &derivation.references())?;
    if computed == *path {
        Ok(())
    } else {
        Err(DerivationError::PathMismatch { path: path.clone(), computed })
    }
}

fn facts<I: Borrow<Facts>>(
    name: &str,
    derivation: &Derivation,
    inputs: impl Fn(&StorePath) -> Option<I>,
) -> Result<Facts, DerivationError> {
    let kind = derivation.kind()?;
    for output in derivation.outputs.keys() {
        // A built output that is named like a derivation would be taken for one.
        let name = output.path_name(name);
        if name.ends_with(".drv") {
            return Err(DerivationError::DerivationOutput { output: output.clone(), name });
        }
    }
    let unknown = || derivation.outputs.keys().map(|output| (output.clone(), None)).collect();
    match kind {
        Kind::Fixed => fixed(name, derivation),
        Kind::Impure => {
            let hash = modulo::impure();
            let modulo = Modulo::Undecidable(hash);
            Ok(Facts { kind, outputs: unknown(), modulo, masked: hash, collision: Collision::None })
        }
        Kind::Floating | Kind::Deferred => {
            let (inputs, _) = input_hashes(derivation, inputs)?;
            // Nothing in the file tells which way its Nix went: the usual one.
            let collision = if inputs.collide() { Collision::Merged } else { Collision::None };
            let modulo = Modulo::Undecidable(inputs.modulo(derivation, collision, false));
            let masked = inputs.modulo(derivation, collision, true);
            Ok(Facts { kind, outputs: unknown(), modulo, masked, collision })
        }
        Kind::InputAddressed => {
            let (inputs, decidable) = input_hashes(derivation, inputs)?;
            input_addressed(name, derivation, &inputs, decidable)
        }
    }
}

/// The hashes of all inputs, and whether all are known.
fn input_hashes<I: Borrow<Facts>>(
    derivation: &Derivation,
    facts_of: impl Fn(&StorePath) -> Option<I>,
) -> Result<(Inputs<'_>, bool), DerivationError> {
    let mut hashes = Inputs::default();
    let mut decidable = true;
    for (input, wanted) in &derivation.input_drvs {
        let facts = facts_of(input).ok_or_else(|| DerivationError::MissingInput(input.clone()))?;
        let facts = facts.borrow();
        if let Some(output) = wanted.iter().find(|output| !facts.outputs.contains_key(*output)) {
            return Err(DerivationError::UnknownOutput { input: input.clone(), output: output.clone() });
        }
        decidable &= facts.modulo.is_known();
        hashes.push(facts.modulo.hash(), wanted);
    }
    Ok((hashes, decidable))
}

fn fixed(name: &str, derivation: &Derivation) -> Result<Facts, DerivationError> {
    let Some((output, Output::Fixed { path, method, hash })) = derivation.outputs.iter().next() else {
        return Err(DerivationError::Outputs("none is fixed"));
    };
    let computed = ContentAddress::new(*method, hash.clone())?.path(name)?;
    expect_path(derivation, output, path, &computed)?;
    let masked = modulo::fixed(*method, hash, &computed);
    Ok(Facts {
        kind: Kind::Fixed,
        outputs: BTreeMap::from([(output.clone(), Some(computed))]),
        modulo: Modulo::Known(masked),
        masked,
        collision: Collision::None,
    })
}

fn input_addressed(
    name: &str,
    derivation: &Derivation,
    inputs: &Inputs<'_>,
    decidable: bool,
) -> Result<Facts, DerivationError> {
    let ways: &[Collision] =
        if inputs.collide() { &[Collision::Merged, Collision::LastWins] } else { &[Collision::None] };
    let mut first_error = None;
    for collision in ways {
        let masked = inputs.modulo(derivation, *collision, true);
        match output_paths(name, derivation, &masked, decidable) {
            Ok(outputs) => {
                return Ok(Facts {
                    kind: Kind::InputAddressed,
                    outputs,
                    modulo: Modulo::Known(inputs.modulo(derivation, *collision, false)),
                    masked,
                    collision: *collision,
                });
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(DerivationError::Outputs("there are none")))
}

/// The recomputed paths, each equal to the one that is written.
fn output_paths(
    name: &str,
    derivation: &Derivation,
    masked: &Sha256,
    decidable: bool,
) -> Result<BTreeMap<OutputName, Option<StorePath>>, DerivationError> {
    let mut outputs = BTreeMap::new();
    for (output, described) in &derivation.outputs {
        let Output::InputAddressed(written) = described else {
            return Err(DerivationError::Outputs("they are of different kinds"));
        };
        if !decidable {
            return Err(DerivationError::Undecidable { output: output.clone(), written: written.clone() });
        }
        let computed = make_store_path(&format!("output:{output}"), masked, &output.path_name(name))?;
        expect_path(derivation, output, written, &computed)?;
        outputs.insert(output.clone(), Some(computed));
    }
    Ok(outputs)
}

/// The path in the outputs and the one in the environment must both be the computed one. The masked hash doesn't cover
/// the environment variable: with another value there, the builder would write elsewhere than the derivation says.
fn expect_path(
    derivation: &Derivation,
    output: &OutputName,
    written: &StorePath,
    computed: &StorePath,
) -> Result<(), DerivationError> {
    if written != computed {
        return Err(DerivationError::Mismatch {
            output: output.clone(),
            written: written.clone(),
            computed: computed.clone(),
        });
    }
    let variable = derivation.env_var(output.as_str()).unwrap_or_default();
    if variable != computed.absolute().as_bytes() {
        return Err(DerivationError::Environment {
            output: output.clone(),
            value: shown(variable),
            path: computed.clone(),
        });
    }
    Ok(())
}
