//! The ATerm text of derivations: a cursor over bytes and a printer into a sink. The grammar is flat, so neither
//! recurses. Accepts a little more than Nix prints (order, escapes): [`super::Derivation::parse`] compares the print.

use std::collections::{BTreeMap, BTreeSet};

use super::{Derivation, DerivationError, MAX_DERIVATION, MAX_ITEMS, Method, Output, OutputName, value};
use crate::{HashAlgo, NixHash, StorePath};

struct Cursor<'a> {
    raw: &'a [u8],
    at: usize,
    items: usize,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, why: &'static str) -> Result<T, DerivationError> {
        Err(DerivationError::Malformed { offset: self.at, why })
    }

    fn take(&mut self, token: &str, why: &'static str) -> Result<(), DerivationError> {
        if self.raw[self.at..].starts_with(token.as_bytes()) {
            self.at += token.len();
            Ok(())
        } else {
            self.fail(why)
        }
    }

    fn comma(&mut self) -> Result<(), DerivationError> {
        self.take(",", "expected `,`")
    }

    /// A string with Nix's five escapes.
    fn string(&mut self) -> Result<Vec<u8>, DerivationError> {
        self.take("\"", "expected a string")?;
        let mut out = Vec::new();
        loop {
            let rest = &self.raw[self.at..];
            let run = rest.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(rest.len());
            out.extend_from_slice(&rest[..run]);
            self.at += run;
            match rest.get(run..) {
                Some([b'"', ..]) => {
                    self.at += 1;
                    return Ok(out);
                }
                Some([b'\\', escaped, ..]) => {
                    out.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'"' | b'\\' => *escaped,
                        _ => return self.fail("unknown escape"),
                    });
                    self.at += 2;
                }
                _ => return self.fail("the string doesn't end"),
            }
        }
    }

    /// `[item,item]`
    fn list(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), DerivationError>,
    ) -> Result<(), DerivationError> {
        self.take("[", "expected a list")?;
        if self.raw.get(self.at) == Some(&b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.items += 1;
            if self.items > MAX_ITEMS {
                return Err(DerivationError::TooManyItems);
            }
            item(self)?;
            match self.raw.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.fail("expected `,` or `]`"),
            }
        }
    }

    /// A string that must be ASCII; longer than any valid one is refused by what parses it.
    fn ascii(&mut self, what: &'static str) -> Result<String, DerivationError> {
        let bytes = self.string()?;
        match String::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => Ok(text),
            Ok(text) => Err(value(what, text.as_bytes(), "not ASCII")),
            Err(error) => Err(value(what, error.as_bytes(), "not ASCII")),
        }
    }

    fn store_path(&mut self) -> Result<StorePath, DerivationError> {
        Ok(StorePath::parse(&self.ascii("store path")?)?)
    }

    fn output_name(&mut self) -> Result<OutputName, DerivationError> {
        OutputName::parse(&self.ascii("output name")?)
    }

    fn output(&mut self) -> Result<(OutputName, Output), DerivationError> {
        self.take("(", "expected an output")?;
        let name = self.output_name()?;
        self.comma()?;
        let path = self.ascii("output path")?;
        self.comma()?;
        let method = self.ascii("output hash algorithm")?;
        self.comma()?;
        let hash = self.ascii("output hash")?;
        self.take(")", "expected `)`")?;
        Ok((name, output(&path, &method, &hash)?))
    }
}

fn output(path: &str, method_algo: &str, hash: &str) -> Result<Output, DerivationError> {
    if method_algo.is_empty() {
        return match (path, hash) {
            ("", "") => Ok(Output::Deferred),
            (_, "") => Ok(Output::InputAddressed(StorePath::parse(path)?)),
            _ => Err(value("output hash", hash.as_bytes(), "no algorithm is given")),
        };
    }
    let (method, algo) = Method::split(method_algo);
    let algo = HashAlgo::from_name(algo)
        .ok_or_else(|| value("output hash algorithm", method_algo.as_bytes(), "unknown"))?;
    match (path, hash) {
        ("", "") => Ok(Output::Floating { method, algo }),
        ("", "impure") => Ok(Output::Impure { method, algo }),
        ("", _) => Err(value("output hash", hash.as_bytes(), "the output has no path")),
        _ => {
            let path = StorePath::parse(path)?;
            let hash = NixHash::parse_digits(algo, hash)
                .map_err(|error| value("output hash", hash.as_bytes(), error))?;
            Ok(Output::Fixed { path, method, hash })
        }
    }
}

/// Parses all of `raw`. Duplicate keys, which the maps would swallow, show when the print is compared.
pub(super) fn parse(raw: &[u8]) -> Result<Derivation, DerivationError> {
    if raw.len() > MAX_DERIVATION {
        return Err(DerivationError::TooLarge(raw.len()));
    }
    if raw.starts_with(b"DrvWithVersion(") {
        return Err(DerivationError::Versioned);
    }
    let mut cursor = Cursor { raw, at: 0, items: 0 };
    let c = &mut cursor;
    let mut outputs = BTreeMap::new();
    let mut input_drvs = BTreeMap::new();
    let mut input_srcs = BTreeSet::new();
    let mut args = Vec::new();
    let mut env = BTreeMap::new();

    c.take("Derive(", "expected `Derive(`")?;
    c.list(|c| {
        let (name, output) = c.output()?;
        outputs.insert(name, output);
        Ok(())
    })?;
    c.comma()?;
    c.list(|c| {
        c.take("(", "expected an input derivation")?;
        let path = c.store_path()?;
        if !path.is_derivation() {
            return Err(DerivationError::NotDerivation(path));
        }
        c.comma()?;
        let mut names = BTreeSet::new();
        c.list(|c| {
            names.insert(c.output_name()?);
            Ok(())
        })?;
        c.take(")", "expected `)`")?;
        input_drvs.insert(path, names);
        Ok(())
    })?;
    c.comma()?;
    c.list(|c| {
        input_srcs.insert(c.store_path()?);
        Ok(())
    })?;
    c.comma()?;
    let system = c.ascii("system")?;
    if system.bytes().any(|b| b.is_ascii_control() || matches!(b, b'"' | b'\\')) {
        return Err(value("system", system.as_bytes(), "it has characters that no system has"));
    }
    c.comma()?;
    let builder = c.string()?;
    c.comma()?;
    c.list(|c| {
        args.push(c.string()?);
        Ok(())
    })?;
    c.comma()?;
    c.list(|c| {
        c.take("(", "expected an environment variable")?;
        let key = c.string()?;
        c.comma()?;
        let value = c.string()?;
        c.take(")", "expected `)`")?;
        env.insert(key, value);
        Ok(())
    })?;
    c.take(")", "expected `)`")?;
    if c.at != raw.len() {
        return c.fail("bytes after the derivation");
    }
    Ok(Derivation { outputs, input_srcs, input_drvs, system, builder, args, env })
}

/// Input derivations as they are hashed: hexadecimal modulo and the outputs wanted of it.
pub(super) type HashedInputs<'a> = BTreeMap<String, BTreeSet<&'a OutputName>>;

/// Prints into `put`. With `inputs`, these stand in place of the input derivations; with `mask`, the output paths are
/// blank, and so is every environment variable that is called like an output.
pub(super) fn print(
    derivation: &Derivation,
    inputs: Option<&HashedInputs<'_>>,
    mask: bool,
    put: &mut impl FnMut(&[u8]),
) {
    put(b"Derive(");
    list(&derivation.outputs, put, |(name, output), put| {
        let (path, method, hash) = output_fields(output);
        let path = path.filter(|_| !mask).map(StorePath::absolute).unwrap_or_default();
        put(format!("(\"{name}\",\"{path}\",\"{method}\",\"{hash}\")").as_bytes());
    });
    put(b",");
    match inputs {
        Some(inputs) => list(inputs, put, |(hex, names), put| input(hex, names.iter().copied(), put)),
        None => list(&derivation.input_drvs, put, |(path, names), put| {
            input(&path.absolute(), names, put);
        }),
    }
    put(b",");
    list(&derivation.input_srcs, put, |path, put| plain(&path.absolute(), "", "", put));
    plain(&derivation.system, ",", ",", put);
    string(&derivation.builder, put);
    put(b",");
    list(&derivation.args, put, |arg, put| string(arg, put));
    put(b",");
    list(&derivation.env, put, |(key, value), put| {
        put(b"(");
        string(key, put);
        put(b",");
        let masked = mask && str::from_utf8(key).is_ok_and(|key| derivation.outputs.contains_key(key));
        string(if masked { b"" } else { value }, put);
        put(b")");
    });
    put(b")");
}

fn input<'a, P: FnMut(&[u8])>(key: &str, names: impl IntoIterator<Item = &'a OutputName>, put: &mut P) {
    plain(key, "(", ",", put);
    list(names, put, |name, put| plain(name.as_str(), "", "", put));
    put(b")");
}

fn output_fields(output: &Output) -> (Option<&StorePath>, String, String) {
    let named = |method: Method, algo: HashAlgo| format!("{}{}", method.prefix(), algo.name());
    match output {
        Output::InputAddressed(path) => (Some(path), String::new(), String::new()),
        Output::Fixed { path, method, hash } => (Some(path), named(*method, hash.algo()), hash.hex()),
        Output::Floating { method, algo } => (None, named(*method, *algo), String::new()),
        Output::Deferred => (None, String::new(), String::new()),
        Output::Impure { method, algo } => (None, named(*method, *algo), "impure".to_owned()),
    }
}

fn list<T, P: FnMut(&[u8])>(
    items: impl IntoIterator<Item = T>,
    put: &mut P,
    mut item: impl FnMut(T, &mut P),
) {
    put(b"[");
    for (n, it) in items.into_iter().enumerate() {
        if n > 0 {
            put(b",");
        }
        item(it, put);
    }
    put(b"]");
}

/// A string whose type rules out what would need escaping, between two pieces of punctuation.
fn plain(text: &str, before: &str, after: &str, put: &mut impl FnMut(&[u8])) {
    put(format!("{before}\"{text}\"{after}").as_bytes());
}

fn string(bytes: &[u8], put: &mut impl FnMut(&[u8])) {
    put(b"\"");
    let mut rest = bytes;
    while let Some(run) = rest.iter().position(|b| matches!(b, b'"' | b'\\' | b'\n' | b'\r' | b'\t')) {
        put(&rest[..run]);
        put(match rest[run] {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            _ => b"\\t",
        });
        rest = &rest[run + 1..];
    }
    put(rest);
    put(b"\"");
}
