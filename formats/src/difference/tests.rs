use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use proptest::{collection::btree_map, prelude::*, sample::Index};
use rstest::rstest;

use super::*;
use crate::nar::{NarErrorKind, WriteError, Writer};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    File(bool, Vec<u8>),
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

fn file(contents: impl AsRef<[u8]>) -> Tree {
    Tree::File(false, contents.as_ref().to_vec())
}

fn program(contents: &str) -> Tree {
    Tree::File(true, contents.into())
}

fn link(target: impl AsRef<[u8]>) -> Tree {
    Tree::Link(target.as_ref().to_vec())
}

fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    Tree::Directory(entries.into_iter().map(|(name, tree)| (name.into(), tree)).collect())
}

fn nar(tree: &Tree) -> Vec<u8> {
    fn node(tree: &Tree, out: &mut Writer<Vec<u8>>) -> Result<(), WriteError> {
        match tree {
            Tree::File(executable, contents) => {
                out.file_from(*executable, contents.len() as u64, &mut contents.as_slice())
            }
            Tree::Link(target) => out.symlink(target),
            Tree::Directory(entries) => {
                out.directory()?;
                for (name, tree) in entries {
                    out.entry(name)?;
                    node(tree, out)?;
                }
                out.end()
            }
        }
    }
    let mut out = Writer::new(Vec::new());
    node(tree, &mut out).unwrap();
    out.finish().unwrap()
}

/// Gives its bytes in pieces that have nothing to do with fields.
struct Dribble<R>(R, usize);

impl<R: Read> Read for Dribble<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(self.1);
        self.0.read(&mut out[..most])
    }
}

/// The report, which must not depend on how the bytes come.
fn report(claimed: &Tree, rebuilt: &Tree) -> Report {
    let (a, b) = (nar(claimed), nar(rebuilt));
    let whole = compare(a.as_slice(), b.as_slice()).unwrap();
    for (m, n) in [(1, 1), (7, 4096), (100, 13)] {
        assert_eq!(compare(Dribble(a.as_slice(), m), Dribble(b.as_slice(), n)).unwrap(), whole);
    }
    let json = serde_json::to_string(&whole).unwrap();
    assert!(json.len() <= MAX_JSON && whole.files.len() <= MAX_FILES, "{} bytes", json.len());
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), whole);
    assert_eq!(whole.identical, a == b);
    assert_eq!(whole.counts.different(), whole.files.len() as u64 + whole.omitted);
    whole
}

/// A tree with one of everything, in which one thing is put in another's place.
fn sample(path: &str, tree: Option<Tree>) -> Tree {
    let mut all = vec![
        ("bin/tool", program("#!/bin/sh\nexit 0\n")),
        ("empty", directory([])),
        ("lib/a.so", file([0, 1, 2, 3])),
        ("lib/a.so.1", link("a.so")),
        ("lib.txt", file("a list")),
    ];
    all.retain(|(at, _)| *at != path);
    all.extend(tree.map(|tree| (path, tree)));
    let mut root = BTreeMap::new();
    for (path, tree) in all {
        match path.split_once('/') {
            None => root.insert(path.into(), tree),
            Some((directory, name)) => {
                let entry = root.entry(directory.into()).or_insert_with(|| Tree::Directory(BTreeMap::new()));
                let Tree::Directory(entries) = entry else { unreachable!() };
                entries.insert(name.into(), tree)
            }
        };
    }
    Tree::Directory(root)
}

fn whole() -> Tree {
    sample("", None)
}

#[test]
fn the_same_has_nothing_to_list() {
    let same = report(&whole(), &whole());
    assert!(same.identical && same.files.is_empty() && !same.truncated);
    // the root and two directories with it
    assert_eq!(same.counts, Counts { same: 8, ..Counts::default() });
}

#[rstest]
#[case::added("lib/b", Some(file("new")), Kind::Added)]
#[case::added_directory("b", Some(directory([("x", file("")), ("y", directory([("z", link("x"))]))])), Kind::Added)]
#[case::added_at_the_end("z", Some(link("a")), Kind::Added)]
#[case::removed("lib.txt", None, Kind::Removed)]
#[case::removed_inside("lib/a.so", None, Kind::Removed)]
#[case::file_to_link("lib/a.so", Some(link("a.so.1")), Kind::Type)]
#[case::file_to_directory("lib/a.so", Some(directory([("x", file("x"))])), Kind::Type)]
#[case::directory_to_file("empty", Some(file("x")), Kind::Type)]
#[case::mode("bin/tool", Some(file("#!/bin/sh\nexit 0\n")), Kind::Mode)]
#[case::longer("bin/tool", Some(program("#!/bin/sh\nexit 0\n\n")), Kind::Size)]
#[case::emptied("lib.txt", Some(file("")), Kind::Size)]
#[case::size_and_mode("lib.txt", Some(program("")), Kind::Size)]
#[case::contents("lib/a.so", Some(file([0, 1, 2, 4])), Kind::Contents)]
#[case::contents_and_mode("lib.txt", Some(program("a lost")), Kind::Contents)]
#[case::target("lib/a.so.1", Some(link("a.so.2")), Kind::Target)]
fn one_difference(#[case] path: &str, #[case] tree: Option<Tree>, #[case] kind: Kind) {
    let changed = sample(path, tree);
    let found = report(&whole(), &changed);
    let mut counts = Counts { same: found.counts.same, ..Counts::default() };
    counts.add(kind);
    assert_eq!(found.counts, counts);
    let [one] = found.files.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.path.as_str(), one.kind), (path, kind));
    assert_eq!(one.claimed.is_none(), kind == Kind::Added);
    assert_eq!(one.rebuilt.is_none(), kind == Kind::Removed);
    assert_eq!(one.window.is_some(), matches!(kind, Kind::Size | Kind::Contents));
    assert_eq!(one.first_offset.is_some(), one.window.is_some());

    // and the other way round
    let back = report(&changed, &whole());
    let [other] = back.files.as_slice() else { panic!("{back:?}") };
    let mirrored = match kind {
        Kind::Added => Kind::Removed,
        Kind::Removed => Kind::Added,
        other => other,
    };
    assert_eq!((other.path.as_str(), other.kind), (path, mirrored));
    assert_eq!((&other.claimed, &other.rebuilt), (&one.rebuilt, &one.claimed));
}

#[test]
fn what_is_on_each_side_is_told() {
    let sides = |path, tree| {
        let mut found = report(&whole(), &sample(path, Some(tree)));
        let one = found.files.remove(0);
        (one.claimed.unwrap(), one.rebuilt.unwrap())
    };
    let plain = |r#type| Entry { r#type, size: None, executable: false, target: None, entries: None };
    let regular = |executable, size| Entry { size: Some(size), executable, ..plain(EntryType::Regular) };
    assert_eq!(sides("lib.txt", program("a lost!")), (regular(false, 6), regular(true, 7)));
    let deep = directory([("x", directory([("y", file(""))]))]);
    let tree = Entry { entries: Some(2), ..plain(EntryType::Directory) };
    assert_eq!(sides("lib.txt", deep), (regular(false, 6), tree));
    let to = |target: &str| Entry { target: Some(target.into()), ..plain(EntryType::Symlink) };
    assert_eq!(sides("lib/a.so.1", link("b\n")), (to("a.so"), to("b\\n")));
}

#[rstest]
#[case::file(file("a"), file("b"), Kind::Contents)]
#[case::link(link("a"), link("b"), Kind::Target)]
#[case::other(link("a"), directory([]), Kind::Type)]
fn the_root_has_an_empty_path(#[case] claimed: Tree, #[case] rebuilt: Tree, #[case] kind: Kind) {
    let found = report(&claimed, &rebuilt);
    assert_eq!((found.files[0].path.as_str(), found.files[0].kind), ("", kind));
}

/// `a` before `a.b` as names, after it as paths with a slash: the walk must go by names.
#[test]
fn names_are_compared_not_paths() {
    let claimed = directory([("a", directory([("x", file("1"))])), ("a.b", file("")), ("b", file(""))]);
    let rebuilt = directory([("a", directory([("x", file("2"))])), ("a0", file("")), ("b", file(""))]);
    let found = report(&claimed, &rebuilt);
    let paths: Vec<_> = found.files.iter().map(|f| (f.path.as_str(), f.kind)).collect();
    assert_eq!(paths, [("a/x", Kind::Contents), ("a.b", Kind::Removed), ("a0", Kind::Added)]);
}

fn window_of(claimed: impl AsRef<[u8]>, rebuilt: impl AsRef<[u8]>) -> (u64, Window) {
    let mut found = report(&file(claimed), &file(rebuilt));
    let one = found.files.remove(0);
    (one.first_offset.unwrap(), one.window.unwrap())
}

fn text_window(offset: u64, claimed: &str, rebuilt: &str) -> Window {
    Window { offset, claimed: claimed.into(), rebuilt: rebuilt.into(), text: true }
}

#[rstest]
#[case::at_the_start("xyz", "abc", 0, text_window(0, "xyz", "abc"))]
#[case::line("one\ntwo\n", "one\nTwo\n", 4, text_window(0, r"one\ntwo\n", r"one\nTwo\n"))]
#[case::ended("one", "one, two", 3, text_window(0, "one", "one, two"))]
#[case::empty("", "one", 0, text_window(0, "", "one"))]
#[case::backslash(r"\x41", r"\x42", 3, text_window(0, r"\\x41", r"\\x42"))]
#[case::hidden("a\u{202e}b", "a\u{202e}c", 4, text_window(0, r"a\u{202e}b", r"a\u{202e}c"))]
#[case::quotes("'\"a", "'\"b", 2, text_window(0, "'\"a", "'\"b"))]
#[case::inside_a_character("é", "è", 1, text_window(0, "é", "è"))]
fn text_windows(#[case] a: &str, #[case] b: &str, #[case] first: u64, #[case] window: Window) {
    assert_eq!(window_of(a, b), (first, window));
}

#[rstest]
#[case::nul(b"a\0b", b"a\0c", "610062", "610063")]
#[case::escape(b"\x1b[31m", b"\x1b[32m", "1b5b33316d", "1b5b33326d")]
#[case::one_side(b"ab", b"a\xff", "6162", "61ff")]
#[case::cut_at_the_end_of_the_file(b"a\xc3", b"b\xc3", "61c3", "62c3")]
fn hexadecimal_windows(#[case] a: &[u8], #[case] b: &[u8], #[case] x: &str, #[case] y: &str) {
    let (_, window) = window_of(a, b);
    assert_eq!(window, Window { offset: 0, claimed: x.into(), rebuilt: y.into(), text: false });
}

#[test]
fn a_window_is_short_and_cuts_no_character() {
    // the difference is far from both ends, and on either side of the window stands a part of a character
    let tale = |middle: &str| format!("{}{middle}{}", "é".repeat(1000), "é".repeat(1000));
    let (first, window) = window_of(tale("+a"), tale("+b"));
    assert_eq!(first, 2001);
    let around = |c| format!("{}+{c}{}", "é".repeat(11), "é".repeat(19));
    assert_eq!(window, text_window(1978, &around('a'), &around('b')));
    // as bytes nothing is cut
    let (first, window) = window_of([1; 200], [[1; 150].as_slice(), &[2; 50]].concat());
    let ones = "01".repeat(WINDOW_BEFORE);
    assert_eq!((first, window.offset, window.text), (150, 150 - WINDOW_BEFORE as u64, false));
    assert_eq!(window.claimed, ones.clone() + &"01".repeat(WINDOW_AFTER));
    assert_eq!(window.rebuilt, ones + &"02".repeat(WINDOW_AFTER));
}

#[test]
fn a_malformed_nar_is_the_fault_of_its_side() {
    let good = nar(&whole());
    let mut trailing = good.clone();
    trailing.extend([0; 8]);
    let cut = &good[..good.len() - 16];
    for bad in [b"no NAR".as_slice(), b"", cut, &trailing] {
        for (claimed, rebuilt, side) in
            [(bad, good.as_slice(), Side::Claimed), (good.as_slice(), bad, Side::Rebuilt)]
        {
            let error = compare(claimed, rebuilt).unwrap_err();
            assert_eq!(error.side(), side);
            assert!(matches!(error, DifferenceError::Malformed { .. }), "{error}");
            assert_eq!(error.to_string(), format!("the {side} NAR is malformed"));
        }
    }
}

/// The end is looked at on a side that has nothing more to compare.
#[test]
fn what_is_only_on_one_side_is_parsed_too() {
    let (small, large) = (nar(&file("x")), nar(&whole()));
    let error = compare(small.as_slice(), &large[..large.len() - 8]).unwrap_err();
    let DifferenceError::Malformed { side: Side::Rebuilt, source } = error else { panic!("{error}") };
    assert_eq!(source.kind, NarErrorKind::Truncated);
}

#[test]
fn a_reader_that_fails_is_no_malformed_nar() {
    struct Broken(bool);
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            // asked again after an interruption
            let interrupted = std::mem::replace(&mut self.0, false);
            Err(if interrupted { io::ErrorKind::Interrupted.into() } else { io::Error::other("disk") })
        }
    }
    let error = compare(nar(&whole()).as_slice(), Broken(true)).unwrap_err();
    assert!(matches!(error, DifferenceError::Read { side: Side::Rebuilt, .. }), "{error}");
}

#[test]
fn no_more_files_are_listed_than_there_is_room_for() {
    let many = |count: usize, name: &dyn Fn(usize) -> Vec<u8>| {
        Tree::Directory((0..count).map(|n| (name(n), file(n.to_string()))).collect())
    };
    let found = report(&directory([]), &many(1000, &|n| format!("{n:04}").into_bytes()));
    assert_eq!((found.counts.added, found.files.len(), found.omitted), (1000, MAX_FILES, 800));
    assert!(found.truncated);
    assert_eq!(found.files[199].path, "0199");
    // each byte of these names takes five of JSON
    let long = |n: usize| [format!("{n:04}").as_bytes(), &[0xff; 250]].concat();
    let found = report(&directory([]), &many(1000, &long));
    assert!(found.files.len() < 60 && found.files.len() > 40, "{}", found.files.len());
    assert_eq!(found.counts.added, 1000);
    assert_eq!(found.omitted, 1000 - found.files.len() as u64);
}

#[test]
fn counters_stay_at_their_end() {
    let mut counts = Counts { added: u64::MAX, removed: 1, ..Counts::default() };
    counts.add(Kind::Added);
    assert_eq!((counts.added, counts.different()), (u64::MAX, u64::MAX));
}

#[rstest]
#[case::line(b"a\nb", r"a\nb")]
#[case::terminal(b"\x1b[2J", r"\u{1b}[2J")]
#[case::direction("\u{202e}gpj.exe".as_bytes(), r"\u{202e}gpj.exe")]
#[case::not_utf8(b"caf\xe9", r"caf\xe9")]
#[case::looks_like_an_escape(br"caf\xe9", r"caf\\xe9")]
#[case::letters("naïve 日本".as_bytes(), "naïve 日本")]
#[case::no_break_space("a\u{a0}b".as_bytes(), r"a\u{a0}b")]
fn hostile_names(#[case] name: &[u8], #[case] shown: &str) {
    let claimed = Tree::Directory(BTreeMap::from([(name.to_vec(), link(name))]));
    let found = report(&claimed, &directory([]));
    assert_eq!(found.files[0].path, shown);
    assert_eq!(found.files[0].claimed.as_ref().unwrap().target.as_deref(), Some(shown));
}

#[test]
fn long_paths_lose_their_middle() {
    let name = |c: u8| vec![c; 255];
    let mut tree = Tree::Directory(BTreeMap::from([(b"the-end".to_vec(), link([b't'; 4095]))]));
    for c in [b'c', b'b', b'a'] {
        tree = Tree::Directory(BTreeMap::from([(name(c), tree)]));
    }
    let Tree::Directory(mut other) = tree.clone() else { unreachable!() };
    let mut inner = &mut other;
    for c in [b'a', b'b'] {
        let Some(Tree::Directory(next)) = inner.get_mut(&name(c)) else { unreachable!() };
        inner = next;
    }
    inner.insert(name(b'c'), directory([]));
    let found = report(&tree, &Tree::Directory(other));
    let one = &found.files[0];
    assert!(one.path_cut && one.path.starts_with("aaa") && one.path.ends_with("c/the-end"), "{}", one.path);
    assert_eq!(one.path.len(), MAX_SHOWN + '…'.len_utf8());
    assert_eq!(one.claimed.as_ref().unwrap().target.as_ref().unwrap().len(), MAX_SHOWN + '…'.len_utf8());
}

fn tree() -> impl Strategy<Value = Tree> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..80);
    let leaf = prop_oneof![
        (any::<bool>(), bytes()).prop_map(|(executable, contents)| Tree::File(executable, contents)),
        "[a-c/]{1,5}".prop_map(link),
    ];
    let name = || "[a-d.]{1,3}".prop_filter("no dots", |name| name != "." && name != "..");
    leaf.prop_recursive(4, 40, 6, move |inner| {
        btree_map(name().prop_map(String::into_bytes), inner, 0..6).prop_map(Tree::Directory)
    })
}

/// All nodes of a tree, from the root on.
fn nodes(tree: &mut Tree, visit: &mut dyn FnMut(&mut Tree)) {
    visit(tree);
    if let Tree::Directory(entries) = tree {
        entries.values_mut().for_each(|inner| nodes(inner, visit));
    }
}

/// Changes one node in one way.
fn mutate(tree: &mut Tree, at: Index, how: u8, byte: Index) -> Kind {
    let mut count = 0;
    nodes(tree, &mut |_| count += 1);
    let (chosen, mut n, mut kind) = (at.index(count), 0, Kind::Type);
    nodes(tree, &mut |node| {
        if n == chosen {
            kind = match (&mut *node, how) {
                (Tree::File(executable, _), 0) => {
                    *executable = !*executable;
                    Kind::Mode
                }
                (Tree::File(_, contents), 1) if !contents.is_empty() => {
                    let at = byte.index(contents.len());
                    contents[at] ^= 1;
                    Kind::Contents
                }
                (Tree::File(_, contents), 2) => {
                    contents.insert(byte.index(contents.len() + 1), b'x');
                    Kind::Size
                }
                (Tree::Link(target), _) if how < 3 => {
                    target.push(b'x');
                    Kind::Target
                }
                (Tree::Directory(entries), 0 | 1) if !entries.is_empty() => {
                    let name = entries.keys().nth(byte.index(entries.len())).unwrap().clone();
                    entries.remove(&name);
                    Kind::Removed
                }
                (Tree::Directory(entries), _) if how < 3 => {
                    entries.insert(b"new".to_vec(), link("new"));
                    Kind::Added
                }
                (Tree::Link(_), _) => {
                    *node = file("x");
                    Kind::Type
                }
                _ => {
                    *node = link("x");
                    Kind::Type
                }
            };
        }
        n += 1;
    });
    kind
}

proptest! {
    #[test]
    fn identical_means_the_same_bytes(a in tree(), b in tree()) {
        // `report` compares the NARs too
        prop_assert_eq!(report(&a, &b).identical, a == b);
        prop_assert!(report(&a, &a).identical);
    }

    #[test]
    fn a_change_is_found_and_nothing_else(a in tree(), at: Index, how in 0..4u8, byte: Index) {
        let mut b = a.clone();
        let kind = mutate(&mut b, at, how, byte);
        let found = report(&a, &b);
        prop_assert_eq!(found.files.len(), 1);
        prop_assert_eq!(found.files[0].kind, kind);
    }
}
