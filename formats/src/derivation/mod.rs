//! Derivations: `.drv` files in Nix's ATerm form, parsed only when they print back to the same bytes. This module knows
//! one file at a time; [`check`] ties it to its inputs. It opens no store and builds nothing.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

pub use crate::content_address::Method;
use crate::{
    HashAlgo, NixHash, Sha256, StorePath,
    content_address::{ContentAddress, ContentAddressError, sha256_hash, store_path_for},
    store_path::{StorePathError, check_name, shown},
};

mod aterm;
pub mod attrs;
pub mod check;
pub mod modulo;
#[cfg(test)]
mod tests;

pub use attrs::{Attributes, ReferenceChecks, ReferenceSpec};
pub use check::{Checked, Facts, Kind, check};
pub use modulo::{Collision, Modulo};

/// Longest `.drv` file, in bytes. The longest in nixpkgs have some hundred kilobytes.
pub const MAX_DERIVATION: usize = 16 << 20;

/// Most list items in a `.drv` file, all lists together: bounds the memory of a file that is all punctuation.
pub const MAX_ITEMS: usize = 500_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationError {
    #[error("the derivation has {0} bytes, the limit is {MAX_DERIVATION}")]
    TooLarge(usize),
    #[error("the derivation has more than {MAX_ITEMS} list items")]
    TooManyItems,
    #[error("byte {offset} of the derivation: {why}")]
    Malformed { offset: usize, why: &'static str },
    #[error("{what} `{value}`: {why}")]
    Value { what: &'static str, value: String, why: String },
    #[error("byte {offset} of the derivation is not what Nix prints for the same values")]
    NotCanonical { offset: usize },
    #[error("the derivation has the form `DrvWithVersion`: dynamic derivations are not supported")]
    Versioned,
    #[error("output `{output}` would be named `{name}`: outputs that are derivations are not supported")]
    DerivationOutput { output: OutputName, name: String },
    #[error("the derivation's outputs: {0}")]
    Outputs(&'static str),
    #[error("`{0}` is not named like a derivation")]
    NotDerivation(StorePath),
    #[error("the derivation `{path}` has the text of `{computed}`")]
    PathMismatch { path: StorePath, computed: StorePath },
    #[error("output `{output}` is written as `{written}`, but follows as `{computed}`")]
    Mismatch { output: OutputName, written: StorePath, computed: StorePath },
    #[error("environment variable `{output}` is `{value}`, but that output is `{path}`")]
    Environment { output: OutputName, value: String, path: StorePath },
    #[error("output `{output}` is written as `{written}`, but its path depends on what inputs get built")]
    Undecidable { output: OutputName, written: StorePath },
    #[error("the input `{0}` has not been checked yet")]
    MissingInput(StorePath),
    #[error("the input `{input}` has no output `{output}`")]
    UnknownOutput { input: StorePath, output: OutputName },
    #[error("attribute `{attribute}`: {why}")]
    Attribute { attribute: &'static str, why: String },
    #[error(transparent)]
    ContentAddress(#[from] ContentAddressError),
    #[error(transparent)]
    StorePath(#[from] StorePathError),
}

impl DerivationError {
    /// The stable code for answers and logs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::TooManyItems => "derivation-too-large",
            Self::NotCanonical { .. } => "derivation-not-canonical",
            Self::Versioned | Self::DerivationOutput { .. } => "derivation-unsupported",
            Self::NotDerivation(_) | Self::PathMismatch { .. } => "derivation-path-mismatch",
            Self::Mismatch { .. } | Self::Environment { .. } | Self::Undecidable { .. } => {
                "derivation-mismatch"
            }
            Self::MissingInput(_) => "needs-derivation",
            Self::Malformed { .. }
            | Self::Value { .. }
            | Self::Outputs(_)
            | Self::UnknownOutput { .. }
            | Self::Attribute { .. }
            | Self::ContentAddress(_)
            | Self::StorePath(_) => "derivation-malformed",
        }
    }
}

/// The name of an output, such as `out`. Only characters of store path names: a quote would let the name hold ATerm
/// text, so that two derivations print alike. Ordered as its bytes are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OutputName(Box<str>);

impl OutputName {
    pub fn parse(name: &str) -> Result<Self, DerivationError> {
        check_name(name).map_err(|why| value("output name", name.as_bytes(), why))?;
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the output's store path: the derivation's own for `out`.
    pub fn path_name(&self, derivation: &str) -> String {
        if &*self.0 == "out" { derivation.to_owned() } else { format!("{derivation}-{}", self.0) }
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Both order as their bytes, so that a `str` finds its output in a map.
impl Borrow<str> for OutputName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for OutputName {
    type Error = DerivationError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::parse(&name)
    }
}

impl From<OutputName> for String {
    fn from(name: OutputName) -> Self {
        name.0.into()
    }
}

/// What a derivation says of one output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The path follows from the derivation.
    InputAddressed(StorePath),
    /// The contents are known beforehand.
    Fixed { path: StorePath, method: Method, hash: NixHash },
    /// Content-addressed, the path is known after the build.
    Floating { method: Method, algo: HashAlgo },
    /// Input-addressed, but an input is floating.
    Deferred,
    /// Content-addressed and different with each build.
    Impure { method: Method, algo: HashAlgo },
}

/// A derivation, as its file has it. Nothing but its form was checked: see [`check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    pub outputs: BTreeMap<OutputName, Output>,
    pub input_srcs: BTreeSet<StorePath>,
    pub input_drvs: BTreeMap<StorePath, BTreeSet<OutputName>>,
    /// ASCII, no quotes, backslashes or controls: Nix prints it unescaped.
    pub system: String,
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A fixed output: what a source is, and where the submitter says that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedLeaf {
    pub path: StorePath,
    pub method: Method,
    pub hash: NixHash,
    /// The submitter's words: the output path doesn't bind them.
    pub urls: Vec<String>,
}

impl Derivation {
    /// Parses a `.drv` file. What doesn't print back to the same bytes is refused: its hash would be ambiguous.
    pub fn parse(raw: &[u8]) -> Result<Self, DerivationError> {
        let derivation = aterm::parse(raw)?;
        derivation.kind()?;
        let mut offset = 0;
        let mut same = true;
        aterm::print(&derivation, None, false, &mut |piece| {
            if same {
                let rest = &raw[offset.min(raw.len())..];
                let common = piece.iter().zip(rest).take_while(|(a, b)| a == b).count();
                offset += common;
                same = common == piece.len();
            }
        });
        if same && offset == raw.len() {
            Ok(derivation)
        } else {
            Err(DerivationError::NotCanonical { offset })
        }
    }

    /// Prints as Nix does.
    pub fn print(&self) -> Vec<u8> {
        let mut out = Vec::new();
        aterm::print(self, None, false, &mut |piece| out.extend_from_slice(piece));
        out
    }

    /// What kind of outputs it has: all are of one kind, and a fixed one is alone and called `out`.
    pub fn kind(&self) -> Result<Kind, DerivationError> {
        let mut outputs = self.outputs.iter();
        let (first_name, first) = outputs.next().ok_or(DerivationError::Outputs("there are none"))?;
        let kind = Kind::of(first);
        for (_, output) in outputs {
            if Kind::of(output) != kind {
                return Err(DerivationError::Outputs("they are of different kinds"));
            }
            match (first, output) {
                (Output::Fixed { .. }, _) => {
                    return Err(DerivationError::Outputs("more than one is fixed"));
                }
                (Output::Floating { algo: a, .. }, Output::Floating { algo: b, .. })
                | (Output::Impure { algo: a, .. }, Output::Impure { algo: b, .. })
                    if a != b =>
                {
                    return Err(DerivationError::Outputs("they use different hash algorithms"));
                }
                _ => {}
            }
        }
        if kind == Kind::Fixed && first_name.as_str() != "out" {
            return Err(DerivationError::Outputs("the fixed one is not called `out`"));
        }
        Ok(kind)
    }

    /// All that the `.drv` file refers to: input sources and input derivations.
    pub fn references(&self) -> BTreeSet<StorePath> {
        self.input_srcs.iter().chain(self.input_drvs.keys()).cloned().collect()
    }

    /// The value of an environment variable. Structured attributes are elsewhere: see [`Self::attributes`].
    pub fn env_var(&self, name: &str) -> Option<&[u8]> {
        self.env.get(name.as_bytes()).map(Vec::as_slice)
    }

    /// What the derivation asks of references, and its URLs, from plain or structured attributes.
    pub fn attributes(&self) -> Result<Attributes, DerivationError> {
        Attributes::of(self)
    }

    /// The fixed output, if it has one.
    pub fn fixed_leaf(&self) -> Result<Option<FixedLeaf>, DerivationError> {
        let Some(Output::Fixed { path, method, hash }) = self.outputs.values().next() else {
            return Ok(None);
        };
        let urls = self.attributes()?.urls;
        Ok(Some(FixedLeaf { path: path.clone(), method: *method, hash: hash.clone(), urls }))
    }
}

/// The derivation's name, from its path: without `.drv`.
pub fn derivation_name(path: &StorePath) -> Result<&str, DerivationError> {
    path.name()
        .strip_suffix(".drv")
        .filter(|name| !name.is_empty())
        .ok_or_else(|| DerivationError::NotDerivation(path.clone()))
}

/// The store path of a text file, as `builtins.toFile` and `.drv` files have it.
pub fn text_path<'a>(
    name: &str,
    contents: &[u8],
    references: impl IntoIterator<Item = &'a StorePath>,
) -> Result<StorePath, ContentAddressError> {
    let address = ContentAddress::new(Method::Text, sha256_hash(Sha256::of(contents)))?;
    store_path_for(name, &address, references, false)
}

fn value(what: &'static str, text: &[u8], why: impl fmt::Display) -> DerivationError {
    DerivationError::Value { what, value: shown(text), why: why.to_string() }
}
