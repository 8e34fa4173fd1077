//! The derivations that paths were built from: which there are, and their texts as a body. Derivations are what the
//! gateway recomputes output paths from; whether they prove anything is for the gateway to say.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
};

use pushgate_formats::{StorePath, api::MAX_DERIVATIONS, derivation::Derivation};

use super::framing::Sink;
use crate::nix::{
    Daemon, PathInfo, StoreLocation,
    closure::{ClosureError, visit_derivations},
};

/// Most bytes of derivations' texts in one body.
pub(super) const MAX_BODY: u64 = 32 << 20;
/// Texts kept from finding out which there are until they are sent; others are read again.
const MAX_KEPT: usize = 16 << 20;
/// Most bytes of derivations' names in an announcement, for the sake of its size.
const MAX_NAMED_BYTES: usize = 20 << 20;

/// A derivation to be named, and its text if it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) path: StorePath,
    /// Bytes of the text.
    pub(super) size: u64,
    text: Option<Vec<u8>>,
}

/// The derivation closure of a push.
#[derive(Debug, Default)]
pub(super) struct List {
    /// Inputs first.
    pub(super) derivations: Vec<Listed>,
    /// Named by paths or derivations, but no longer in the store.
    pub(super) missing: Vec<StorePath>,
    /// How many there are beyond what an announcement may name.
    pub(super) left_out: usize,
}

/// The derivations of paths whose own contents can't prove them: those that were built, not those with a content
/// address.
pub(super) fn derivers(paths: &[PathInfo]) -> Vec<StorePath> {
    let built = paths.iter().filter(|info| info.ca.is_none());
    let derivers: HashSet<_> =
        built.filter_map(|info| info.deriver.clone()).filter(StorePath::is_derivation).collect();
    derivers.into_iter().collect()
}

/// Reads the derivation closure of `roots`.
pub(super) fn list(daemon: &mut Daemon, roots: Vec<StorePath>) -> Result<List, ClosureError> {
    // a text that can't be understood has no inputs that are known of: the gateway says what is wrong with it
    let inputs = |text: &[u8]| {
        Ok(Derivation::parse(text)
            .map_or_else(|_| Vec::new(), |derivation| derivation.input_drvs.into_keys().collect()))
    };
    let mut list = List::default();
    let (mut kept, mut named) = (0, 0);
    list.missing = visit_derivations(daemon, roots, inputs, |path, text| {
        named += path.base_name().len() + "\"/nix/store/\",".len();
        if list.derivations.len() >= MAX_DERIVATIONS || named > MAX_NAMED_BYTES {
            list.left_out += 1;
            return Ok::<(), ClosureError>(());
        }
        let keep = kept + text.len() <= MAX_KEPT;
        if keep {
            kept += text.len();
        }
        let text = (text.len() as u64, keep.then(|| text.to_vec()));
        list.derivations.push(Listed { path: path.clone(), size: text.0, text: text.1 });
        Ok(())
    })?;
    Ok(list)
}

/// Those of the derivations that the gateway wants, cut into bodies, inputs first.
pub(super) fn bodies(derivations: Vec<Listed>, wanted: &[StorePath]) -> Vec<Vec<Listed>> {
    let wanted: HashSet<&StorePath> = wanted.iter().collect();
    let mut out: Vec<Vec<Listed>> = Vec::new();
    let mut bytes = 0;
    for listed in derivations.into_iter().filter(|listed| wanted.contains(&listed.path)) {
        match out.last_mut() {
            Some(last) if bytes + listed.size <= MAX_BODY => {
                bytes += listed.size;
                last.push(listed);
            }
            _ => {
                bytes = listed.size;
                out.push(vec![listed]);
            }
        }
    }
    out
}

/// Writes a body. Returns those that could no longer be read; what comes before and after them is sent.
pub(super) fn write(
    location: &StoreLocation,
    derivations: &[Listed],
    sink: &mut Sink,
) -> io::Result<Vec<StorePath>> {
    let mut unread = Vec::new();
    let level = sink.line().level();
    let mut out = zstd::Encoder::new(Raw(sink), level)?;
    for listed in derivations {
        let read;
        let text = match &listed.text {
            Some(text) => text,
            None => match read_again(location, listed) {
                Ok(text) if text.len() as u64 == listed.size => {
                    read = text;
                    &read
                }
                _ => {
                    unread.push(listed.path.clone());
                    continue;
                }
            },
        };
        let name = listed.path.base_name().as_bytes();
        // base names have at most 244 bytes, texts at most 64 MiB
        out.write_all(&(name.len() as u16).to_le_bytes())?;
        out.write_all(name)?;
        out.write_all(&(text.len() as u32).to_le_bytes())?;
        out.write_all(text)?;
    }
    out.finish()?.0.flush().map_err(io::Error::other)?;
    Ok(unread)
}

/// Reads a text that was read before; no more of it than there was, and one byte.
fn read_again(location: &StoreLocation, listed: &Listed) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(location.physical(&listed.path))?.take(listed.size + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// A body without frames.
struct Raw<'a>(&'a mut Sink);

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.raw(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pushgate_formats::Sha256;

    use super::*;
    use crate::{nix::testing::Store, push::framing::testing::written};

    fn path(n: u8, name: &str) -> StorePath {
        StorePath::from_digest(&[n; 20], name).unwrap()
    }

    fn listed(n: u8, size: u64) -> Listed {
        Listed { path: path(n, "x.drv"), size, text: Some(vec![n; size.min(1000) as usize]) }
    }

    #[test]
    fn only_built_paths_need_their_derivations() {
        let info = |n, deriver: Option<StorePath>, ca: Option<&str>| PathInfo {
            path: path(n, "x"),
            deriver,
            nar_hash: Sha256([n; 32]),
            references: BTreeSet::new(),
            registration_time: 0,
            nar_size: 120,
            ultimate: false,
            signatures: vec![],
            ca: ca.map(Into::into),
        };
        let built = path(9, "built.drv");
        let paths = [
            info(1, Some(built.clone()), None),
            info(2, Some(built.clone()), None),
            info(3, Some(path(8, "source.drv")), Some("fixed:r:sha256:0")),
            info(4, None, None),
            info(5, Some(path(7, "odd")), None),
        ];
        assert_eq!(derivers(&paths), [built]);
    }

    #[test]
    fn bodies_hold_what_is_wanted_and_not_too_much() {
        let all: Vec<_> = (0..10).map(|n| listed(n, 10 << 20)).collect();
        let wanted: Vec<_> = (0..10).rev().filter(|n| *n != 4).map(|n| path(n, "x.drv")).collect();
        let cut = bodies(all, &wanted);
        let numbers: Vec<Vec<u8>> =
            cut.iter().map(|b| b.iter().map(|l| l.path.digest()[0]).collect()).collect();
        assert_eq!(numbers, [vec![0, 1, 2], vec![3, 5, 6], vec![7, 8, 9]]);
        assert!(bodies(vec![listed(1, 1)], &[]).is_empty());
    }

    #[test]
    fn the_bytes_of_a_body() {
        let location = StoreLocation::from_uri("/nowhere").unwrap();
        let mut gone = listed(3, 5);
        gone.text = None;
        let all = [listed(1, 3), gone, listed(2, 300_000)];
        let body = written(|sink| {
            assert_eq!(write(&location, &all, sink).unwrap(), [path(3, "x.drv")]);
        });
        let mut expected = Vec::new();
        for (n, len) in [(1u8, 3usize), (2, 1000)] {
            expected.extend(38u16.to_le_bytes());
            expected.extend(path(n, "x.drv").base_name().bytes());
            expected.extend((len as u32).to_le_bytes());
            expected.extend(vec![n; len]);
        }
        assert!(zstd::decode_all(&body[..]).unwrap() == expected);
    }

    #[test]
    fn a_closure_of_real_derivations() {
        let Some(store) = Store::new() else { return };
        let root = store.instantiate(
            r#"let d = n: i: derivation { name = n; builder = "/bin/sh"; system = "x86_64-linux"; inherit i; };
               in d "top" [ (d "a" []) (d "b" [ (d "a" []) ]) ]"#,
        );
        let list = list(&mut store.daemon(), vec![root.clone()]).unwrap();
        let names: Vec<_> = list.derivations.iter().map(|l| l.path.name().to_owned()).collect();
        assert_eq!(names, ["a.drv", "b.drv", "top.drv"]);
        assert!(list.missing.is_empty());
        let text = std::fs::read(store.location().physical(&root)).unwrap();
        assert_eq!(list.derivations[2].text.as_ref(), Some(&text));
    }
}
