//! What a derivation's attributes ask of its outputs' references, and the URLs that it names; both from plain environment
//! variables and from structured attributes (`__json`). Says what is asked, doesn't know what the references are.
//! Rules as in Nix's `src/libstore/build/local-derivation-goal.cc` (`checkOutputs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{Derivation, DerivationError, OutputName};
use crate::{StorePath, base32, store_path::shown};

/// Most entries of one list or table that is kept.
const MAX_ENTRIES: usize = 65_536;

/// One entry of `allowedReferences` and the like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceSpec {
    Path(StorePath),
    /// An output of the same derivation.
    Output(OutputName),
    /// Stands for the path of a floating output that isn't known before the build: `/` and 52 digits.
    Placeholder(String),
}

/// What is asked of one output's references. A path counts as its own reference, if it has one; it never counts as its
/// own requisite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceChecks {
    /// Direct references must be among these.
    pub allowed_references: Option<BTreeSet<ReferenceSpec>>,
    /// The closure must be among these.
    pub allowed_requisites: Option<BTreeSet<ReferenceSpec>>,
    /// Direct references must not be among these.
    pub disallowed_references: BTreeSet<ReferenceSpec>,
    /// The closure must not have any of these.
    pub disallowed_requisites: BTreeSet<ReferenceSpec>,
}

impl ReferenceChecks {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The attributes that pushgate looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whether the derivation has structured attributes.
    pub structured: bool,
    /// What is asked of every output: only from plain variables.
    shared: ReferenceChecks,
    /// What is asked of single outputs: only from structured attributes.
    per_output: BTreeMap<OutputName, ReferenceChecks>,
    /// Outputs whose contents aren't scanned for references.
    pub unsafe_discard_references: BTreeSet<OutputName>,
    /// `url` and `urls`, as written.
    pub urls: Vec<String>,
}

impl Attributes {
    /// With structured attributes the plain ones don't count, as in Nix: there only `outputChecks.OUTPUT` does.
    pub(super) fn of(derivation: &Derivation) -> Result<Self, DerivationError> {
        match derivation.env_var("__json") {
            Some(json) => structured(derivation, json),
            None => plain(derivation),
        }
    }

    /// What is asked of an output.
    pub fn checks(&self, output: &OutputName) -> ReferenceChecks {
        self.per_output.get(output).unwrap_or(&self.shared).clone()
    }
}

/// The four lists, in whichever form they are written.
struct Lists<'a>([Option<Vec<&'a [u8]>>; 4]);

const NAMES: [&str; 4] =
    ["allowedReferences", "allowedRequisites", "disallowedReferences", "disallowedRequisites"];

impl Lists<'_> {
    fn checks(&self, derivation: &Derivation) -> Result<ReferenceChecks, DerivationError> {
        let set = |n: usize| {
            let Some(list) = &self.0[n] else { return Ok(None) };
            list.iter().map(|text| spec(derivation, NAMES[n], text)).collect::<Result<_, _>>().map(Some)
        };
        Ok(ReferenceChecks {
            allowed_references: set(0)?,
            allowed_requisites: set(1)?,
            disallowed_references: set(2)?.unwrap_or_default(),
            disallowed_requisites: set(3)?.unwrap_or_default(),
        })
    }
}

fn spec(
    derivation: &Derivation,
    attribute: &'static str,
    text: &[u8],
) -> Result<ReferenceSpec, DerivationError> {
    let parsed = str::from_utf8(text).ok().and_then(|text| {
        if let Ok(path) = StorePath::parse(text) {
            return Some(ReferenceSpec::Path(path));
        }
        if let Some((name, _)) = derivation.outputs.get_key_value(text) {
            return Some(ReferenceSpec::Output(name.clone()));
        }
        let digits = text.strip_prefix('/')?;
        base32::decode::<32>(digits.as_bytes()).map(|_| ReferenceSpec::Placeholder(text.to_owned()))
    });
    parsed.ok_or_else(|| DerivationError::Attribute {
        attribute,
        why: format!("`{}` is neither a store path nor an output", shown(text)),
    })
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).filter(|word| !word.is_empty())
}

fn plain(derivation: &Derivation) -> Result<Attributes, DerivationError> {
    let lists =
        Lists(NAMES.map(|name| Some(words(derivation.env_var(name)?).take(MAX_ENTRIES + 1).collect())));
    for (n, list) in lists.0.iter().enumerate() {
        if list.as_ref().is_some_and(|list| list.len() > MAX_ENTRIES) {
            return Err(DerivationError::Attribute {
                attribute: NAMES[n],
                why: "too many entries".to_owned(),
            });
        }
    }
    let mut attributes = Attributes { shared: lists.checks(derivation)?, ..Attributes::default() };
    attributes.urls = ["url", "urls"]
        .iter()
        .filter_map(|name| derivation.env_var(name))
        .flat_map(words)
        .take(MAX_ENTRIES)
        .map(text)
        .collect();
    Ok(attributes)
}

/// Bytes that aren't UTF-8 are escaped: then they equal no URL on any list.
fn text(bytes: &[u8]) -> String {
    str::from_utf8(bytes).map_or_else(|_| bytes.escape_ascii().to_string(), str::to_owned)
}

fn structured(derivation: &Derivation, json: &[u8]) -> Result<Attributes, DerivationError> {
    let parsed: Json = serde_json::from_slice(json).map_err(|error| DerivationError::Attribute {
        attribute: "__json",
        why: shown(error.to_string().as_bytes()),
    })?;
    let mut attributes = Attributes { structured: true, ..Attributes::default() };
    for (name, output) in parsed.output_checks.iter().flat_map(|table| &table.0) {
        // Nix ignores what is asked of outputs that don't exist
        let Some((name, _)) = derivation.outputs.get_key_value(name.as_str()) else { continue };
        let lists = [
            &output.allowed_references,
            &output.allowed_requisites,
            &output.disallowed_references,
            &output.disallowed_requisites,
        ];
        let lists = lists.map(|list| list.as_ref().map(|list| list.0.iter().map(String::as_bytes).collect()));
        let checks = Lists(lists).checks(derivation)?;
        if !checks.is_empty() {
            attributes.per_output.insert(name.clone(), checks);
        }
    }
    for (name, discard) in parsed.unsafe_discard_references.iter().flat_map(|table| &table.0) {
        if let Some((name, _)) = derivation.outputs.get_key_value(name.as_str())
            && *discard
        {
            attributes.unsafe_discard_references.insert(name.clone());
        }
    }
    attributes.urls = [parsed.url, parsed.urls].into_iter().flatten().flat_map(|list| list.0).collect();
    Ok(attributes)
}

/// The part of `__json` that is read. The rest is skipped without being kept, however deep it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    output_checks: Option<Table<OutputChecks>>,
    unsafe_discard_references: Option<Table<bool>>,
    url: Option<Strings<false>>,
    urls: Option<Strings<false>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutputChecks {
    allowed_references: Option<Strings<true>>,
    allowed_requisites: Option<Strings<true>>,
    disallowed_references: Option<Strings<true>>,
    disallowed_requisites: Option<Strings<true>>,
}

/// A table with a bounded number of keys, none of them twice: readers of JSON differ in which one counts.
struct Table<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Table<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, T>()? {
                    if map.len() == MAX_ENTRIES || map.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key twice, or too many keys"));
                    }
                }
                Ok(Table(map))
            }
        }
        d.deserialize_map(V(PhantomData))
    }
}

/// A list of strings, or one string. Where not `STRICT`, anything else is left out instead of refused.
struct Strings<const STRICT: bool>(Vec<String>);

impl<'de, const STRICT: bool> Deserialize<'de> for Strings<STRICT> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        StringsSeed::<STRICT> { item: false }.deserialize(d).map(Self)
    }
}

/// Reads the list, or with `item` one item of it: there a list is nothing to look into any more.
#[derive(Clone, Copy)]
struct StringsSeed<const STRICT: bool> {
    item: bool,
}

impl<const STRICT: bool> StringsSeed<STRICT> {
    fn other<E: Error>() -> Result<Vec<String>, E> {
        if STRICT { Err(E::custom("not a list of strings")) } else { Ok(Vec::new()) }
    }
}

impl<'de, const STRICT: bool> DeserializeSeed<'de> for StringsSeed<STRICT> {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, const STRICT: bool> Visitor<'de> for StringsSeed<STRICT> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        if self.item {
            while access.next_element::<IgnoredAny>()?.is_some() {}
            return Self::other();
        }
        while let Some(item) = access.next_element_seed(Self { item: true })? {
            list.extend(item);
            if list.len() > MAX_ENTRIES {
                return Err(A::Error::custom("too many entries"));
            }
        }
        Ok(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Self::other()
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Self::other()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Self::other()
    }
}
