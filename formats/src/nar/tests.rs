use std::collections::BTreeMap;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const NAR: &str = "nix-archive-1";

/// Fields with their lengths and padding.
fn nar(fields: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        push(&mut out, field.as_bytes());
    }
    out
}

fn push(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&(field.len() as u64).to_le_bytes());
    out.extend_from_slice(field);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// A directory whose entries are empty files of these names.
fn directory_of(names: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut out = nar(&[NAR, "(", "type", "directory"]);
    for name in names {
        out.extend(nar(&["entry", "(", "name"]));
        push(&mut out, name.as_ref());
        out.extend(nar(&["node"]));
        out.extend(nar(&["(", "type", "regular", "contents", "", ")", ")"]));
    }
    out.extend(nar(&[")"]));
    out
}

fn link_to(target: &[u8]) -> Vec<u8> {
    let mut out = nar(&[NAR, "(", "type", "symlink", "target"]);
    push(&mut out, target);
    out.extend(nar(&[")"]));
    out
}

fn parse_chunks<V: Visitor>(bytes: &[u8], chunk: usize, mut visitor: V) -> Result<V, NarError> {
    let mut parser = Parser::new();
    for chunk in bytes.chunks(chunk.max(1)) {
        parser.feed(chunk, &mut visitor)?;
    }
    parser.finish()?;
    assert_eq!(parser.offset(), bytes.len() as u64);
    Ok(visitor)
}

/// The error must not depend on where the input is cut.
fn error(bytes: &[u8]) -> NarError {
    let whole = parse_chunks(bytes, bytes.len(), ()).unwrap_err();
    for chunk in [1, 7, 8, 13] {
        assert_eq!(parse_chunks(bytes, chunk, ()).unwrap_err(), whole);
    }
    whole
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

fn print(tree: &Tree) -> Vec<u8> {
    fn node(tree: &Tree, out: &mut Writer<Vec<u8>>) -> Result<(), WriteError> {
        match tree {
            Tree::File { executable, contents } => {
                out.file(*executable, contents.len() as u64)?;
                out.contents(contents)
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

type Name = Option<Vec<u8>>;

/// Collects the tree, and checks the order of events while at it.
#[derive(Default)]
struct Collect {
    open: Vec<(Name, BTreeMap<Vec<u8>, Tree>)>,
    file: Option<(Name, bool, u64, Vec<u8>)>,
    offsets: Vec<(u64, Vec<u8>)>,
    root: Option<Tree>,
}

impl Collect {
    fn put(&mut self, name: Option<&[u8]>, tree: Tree) {
        match (self.open.last_mut(), name) {
            (Some((_, entries)), Some(name)) => assert!(entries.insert(name.to_vec(), tree).is_none()),
            (None, None) => assert!(self.root.replace(tree).is_none()),
            _ => panic!("exactly the root has no name"),
        }
    }
}

impl Visitor for Collect {
    fn directory(&mut self, name: Option<&[u8]>) {
        self.open.push((name.map(<[u8]>::to_vec), BTreeMap::new()));
    }
    fn end_directory(&mut self) {
        let (name, entries) = self.open.pop().unwrap();
        self.put(name.as_deref(), Tree::Directory(entries));
    }
    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {
        assert!(self.file.is_none());
        self.offsets.push((offset, Vec::new()));
        self.file = Some((name.map(<[u8]>::to_vec), executable, size, Vec::new()));
    }
    fn contents(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty());
        self.file.as_mut().unwrap().3.extend_from_slice(bytes);
    }
    fn end_file(&mut self) {
        let (name, executable, size, contents) = self.file.take().unwrap();
        assert_eq!(contents.len() as u64, size);
        self.offsets.last_mut().unwrap().1.clone_from(&contents);
        self.put(name.as_deref(), Tree::File { executable, contents });
    }
    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
        self.put(name, Tree::Link(target.to_vec()));
    }
}

fn parse(bytes: &[u8], chunk: usize) -> Result<Tree, NarError> {
    let seen = parse_chunks(bytes, chunk, Collect::default())?;
    for (offset, contents) in &seen.offsets {
        assert_eq!(&bytes[*offset as usize..][..contents.len()], contents.as_slice());
    }
    Ok(seen.root.unwrap())
}

/// A tree with one of everything.
fn sample() -> Tree {
    let file = |executable, contents: &[u8]| Tree::File { executable, contents: contents.to_vec() };
    let inner = BTreeMap::from([
        (b"eight".to_vec(), file(false, b"12345678")),
        (b"empty".to_vec(), file(true, b"")),
        (b"l".to_vec(), Tree::Link(b"../x".to_vec())),
    ]);
    Tree::Directory(BTreeMap::from([
        (b"bin".to_vec(), Tree::Directory(inner)),
        (b"none".to_vec(), Tree::Directory(BTreeMap::new())),
        (b"x".to_vec(), file(true, b"hello")),
    ]))
}

#[rstest]
#[case::file(&[NAR, "(", "type", "regular", "contents", "hi", ")"])]
#[case::empty_file(&[NAR, "(", "type", "regular", "contents", "", ")"])]
#[case::executable(&[NAR, "(", "type", "regular", "executable", "", "contents", "hi", ")"])]
#[case::link(&[NAR, "(", "type", "symlink", "target", "/a", ")"])]
#[case::empty_directory(&[NAR, "(", "type", "directory", ")"])]
fn good(#[case] fields: &[&str]) {
    let bytes = nar(fields);
    for chunk in 1..=bytes.len() {
        assert_eq!(print(&parse(&bytes, chunk).unwrap()), bytes);
    }
}

// the offset is that of the field's length prefix; short fields take 16 bytes, the magic 24
#[rstest]
#[case::magic(&["nix-archive-2"], 0)]
#[case::no_magic(&["("], 0)]
#[case::no_parenthesis(&[NAR, "type"], 24)]
#[case::no_type(&[NAR, "(", "regular"], 40)]
#[case::unknown_type(&[NAR, "(", "type", "fifo"], 56)]
#[case::upper_case(&[NAR, "(", "type", "Regular"], 56)]
#[case::file_without_contents(&[NAR, "(", "type", "regular", ")"], 72)]
#[case::executable_without_contents(&[NAR, "(", "type", "regular", "executable", "", ")"], 104)]
#[case::executable_twice(&[NAR, "(", "type", "regular", "executable", "", "executable", ""], 104)]
#[case::executable_with_a_value(&[NAR, "(", "type", "regular", "executable", "1"], 96)]
#[case::executable_after_contents(&[NAR, "(", "type", "regular", "contents", "", "executable", ""], 96)]
#[case::contents_twice(&[NAR, "(", "type", "regular", "contents", "", "contents", ""], 96)]
#[case::contents_in_a_link(&[NAR, "(", "type", "symlink", "contents", ""], 72)]
#[case::link_without_target(&[NAR, "(", "type", "symlink", ")"], 72)]
#[case::target_twice(&[NAR, "(", "type", "symlink", "target", "a", "target", "b"], 104)]
#[case::node_in_a_directory(&[NAR, "(", "type", "directory", "node"], 80)]
#[case::entry_without_parenthesis(&[NAR, "(", "type", "directory", "entry", "name"], 96)]
#[case::entry_without_name(&[NAR, "(", "type", "directory", "entry", "(", "node"], 112)]
#[case::entry_without_node(&[NAR, "(", "type", "directory", "entry", "(", "name", "a", ")"], 144)]
#[case::type_twice(&[NAR, "(", "type", "directory", "type", "directory"], 80)]
fn unexpected_field(#[case] fields: &[&str], #[case] offset: u64) {
    let error = error(&nar(fields));
    assert_eq!(error.offset, offset, "{error}");
    assert!(matches!(error.kind, NarErrorKind::Unexpected { .. }), "{error}");
    assert_eq!(error.code(), "nar-malformed");
}

#[test]
fn an_entry_has_one_node() {
    let mut bytes = directory_of(&[b"a"]);
    // instead of the entry's closing parenthesis
    bytes.truncate(bytes.len() - 32);
    let at = bytes.len() as u64;
    push(&mut bytes, b"node");
    assert_eq!(error(&bytes).offset, at);
}

// the first entry's name comes after the magic, `(`, `type`, `directory`, `entry`, `(`, `name` ...
const FIRST_NAME: u64 = 24 + 16 + 16 + 24 + 16 + 16 + 16;
// ... and the second's after that name, `node`, an empty file, `)`, `entry`, `(`, `name`
const SECOND_NAME: u64 = FIRST_NAME + 16 + 16 + (16 + 16 + 16 + 16 + 8 + 16) + 16 + 48;

#[rstest]
#[case::empty(&[""], FIRST_NAME, NarErrorKind::NameEmpty)]
#[case::dot(&["."], FIRST_NAME, NarErrorKind::NameDots(".".into()))]
#[case::dot_dot(&[".."], FIRST_NAME, NarErrorKind::NameDots("..".into()))]
#[case::slash(&["a/b"], FIRST_NAME, NarErrorKind::NameByte("a/b".into()))]
#[case::only_slash(&["/"], FIRST_NAME, NarErrorKind::NameByte("/".into()))]
#[case::nul(&["a\0b"], FIRST_NAME, NarErrorKind::NameByte("a\\x00b".into()))]
#[case::nul_at_the_end(&["a\0"], FIRST_NAME, NarErrorKind::NameByte("a\\x00".into()))]
#[case::case_hack(&["a~nix~case~hack~1"], FIRST_NAME, NarErrorKind::NameCaseHack("a~nix~case~hack~1".into()))]
#[case::unsorted(&["b", "a"], SECOND_NAME, NarErrorKind::NameOrder { previous: "b".into(), name: "a".into() })]
#[case::prefix_after(&["ab", "a"], SECOND_NAME, NarErrorKind::NameOrder { previous: "ab".into(), name: "a".into() })]
#[case::signed_bytes(&["\u{ff}", "a"], SECOND_NAME, NarErrorKind::NameOrder { previous: "\\xc3\\xbf".into(), name: "a".into() })]
#[case::twice(&["a", "a"], SECOND_NAME, NarErrorKind::NameTwice("a".into()))]
fn bad_names(#[case] names: &[&str], #[case] offset: u64, #[case] kind: NarErrorKind) {
    let error = error(&directory_of(names));
    assert_eq!(error, NarError { offset, kind });
    assert_eq!(error.code(), "nar-malformed");
}

#[rstest]
#[case(&["...", ".a", "a", "a.", "ab"])]
#[case(&["A", "a", "~nix~case~hack", "\u{e9}", "\u{ff}"])]
#[case(&["\x01", " ", "\n!", "\\"])]
fn odd_but_good_names(#[case] names: &[&str]) {
    let mut names = names.to_vec();
    names.sort_unstable();
    let bytes = directory_of(&names);
    assert_eq!(print(&parse(&bytes, 5).unwrap()), bytes);
}

#[test]
fn name_lengths() {
    assert!(parse(&directory_of(&[[b'a'; 255]]), 100).is_ok());
    let kind = NarErrorKind::TooLong { what: "a name", length: 256, most: 255 };
    assert_eq!(error(&directory_of(&[[b'a'; 256]])), NarError { offset: FIRST_NAME, kind });
}

#[rstest]
#[case::empty(b"".to_vec(), NarErrorKind::TargetEmpty)]
#[case::nul(b"a\0".to_vec(), NarErrorKind::TargetNul("a\\x00".into()))]
#[case::long(vec![b'a'; 4096], NarErrorKind::TooLong { what: "a link's target", length: 4096, most: 4095 })]
fn bad_targets(#[case] target: Vec<u8>, #[case] kind: NarErrorKind) {
    assert_eq!(error(&link_to(&target)), NarError { offset: 88, kind });
}

#[test]
fn longest_target() {
    let bytes = link_to(&[b'a'; 4095]);
    for chunk in [1, 4095, 4096, 5000] {
        assert_eq!(parse(&bytes, chunk), Ok(Tree::Link(vec![b'a'; 4095])));
    }
}

fn nested(depth: usize) -> Vec<u8> {
    let mut out = nar(&[NAR]);
    for _ in 1..depth {
        out.extend(nar(&["(", "type", "directory", "entry", "(", "name", "d", "node"]));
    }
    out.extend(nar(&["(", "type", "directory", ")"]));
    for _ in 1..depth {
        out.extend(nar(&[")", ")"]));
    }
    out
}

#[test]
fn depth() {
    assert!(parse(&nested(64), 1000).is_ok());
    // the value `directory` of the 65th: its parenthesis and `type` come before it
    let offset = 24 + 64 * (16 + 16 + 24 + 16 + 16 + 16 + 16 + 16) + 32;
    assert_eq!(error(&nested(65)), NarError { offset, kind: NarErrorKind::TooDeep });
}

#[rstest]
#[case::magic(21)]
#[case::parenthesis(24 + 9)]
#[case::last_of_name(FIRST_NAME + 15)]
fn padding_of_fields(#[case] at: u64) {
    let mut bytes = directory_of(&[b"a"]);
    bytes[at as usize] = 7;
    assert_eq!(error(&bytes), NarError { offset: at, kind: NarErrorKind::Padding(7) });
}

#[rstest]
#[case::first(96 + 2)]
#[case::last(96 + 7)]
fn padding_of_contents(#[case] at: u64) {
    let mut bytes = nar(&[NAR, "(", "type", "regular", "contents", "hi", ")"]);
    bytes[at as usize] = 1;
    assert_eq!(error(&bytes), NarError { offset: at, kind: NarErrorKind::Padding(1) });
}

#[rstest]
#[case::magic(&[], 0)]
#[case::tag(&[NAR], 24)]
#[case::name(&[NAR, "(", "type", "directory", "entry", "(", "name"], FIRST_NAME)]
#[case::target(&[NAR, "(", "type", "symlink", "target"], 88)]
#[case::contents(&[NAR, "(", "type", "regular", "contents"], 88)]
fn huge_lengths(#[case] fields: &[&str], #[case] offset: u64) {
    for length in [u64::MAX, u64::MAX - 6, u64::MAX - 7, 1 << 63] {
        let mut bytes = nar(fields);
        bytes.extend_from_slice(&length.to_le_bytes());
        // refused at the length: nothing that follows is waited for
        let error = error(&bytes);
        assert_eq!(error.offset, offset);
        assert!(matches!(error.kind, NarErrorKind::TooLong { length: found, .. } if found == length));
    }
}

#[test]
fn largest_file_is_not_allocated() {
    let mut bytes = nar(&[NAR, "(", "type", "regular", "contents"]);
    bytes.extend_from_slice(&(i64::MAX as u64).to_le_bytes());
    bytes.extend_from_slice(b"only this");
    assert_eq!(error(&bytes).kind, NarErrorKind::Truncated);
}

#[rstest]
#[case::zero(b"\0")]
#[case::words(b"\0\0\0\0\0\0\0\0")]
#[case::another_nar(b"nix-archive-1")]
fn trailing_bytes(#[case] more: &[u8]) {
    let mut bytes = print(&sample());
    let offset = bytes.len() as u64;
    bytes.extend_from_slice(more);
    let error = error(&bytes);
    assert_eq!(error, NarError { offset, kind: NarErrorKind::TrailingBytes });
    assert_eq!(error.code(), "nar-trailing-bytes");
}

#[test]
fn cut_at_every_byte() {
    let bytes = print(&sample());
    for end in 0..bytes.len() {
        let kind = NarErrorKind::Truncated;
        let error = error_or_empty(&bytes[..end]);
        assert_eq!(error, NarError { offset: end as u64, kind });
        assert_eq!(error.code(), "nar-malformed");
    }
}

fn error_or_empty(bytes: &[u8]) -> NarError {
    if bytes.is_empty() { Parser::new().finish().unwrap_err() } else { error(bytes) }
}

#[test]
fn every_change_of_a_byte_shows() {
    let tree = sample();
    let good = print(&tree);
    for at in 0..good.len() {
        for change in 1..=255u8 {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            if let Ok(changed) = parse(&bytes, bytes.len()) {
                assert_ne!(changed, tree, "byte {at}");
                assert_eq!(print(&changed), bytes, "byte {at}");
            }
        }
    }
}

#[test]
fn errors_stay() {
    let mut parser = Parser::new();
    let mut bytes = print(&sample());
    bytes.push(0);
    let error = parser.feed(&bytes, &mut ()).unwrap_err();
    assert_eq!(parser.feed(&[], &mut ()), Err(error.clone()));
    assert_eq!(parser.feed(MAGIC, &mut ()), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
}

#[test]
fn messages() {
    let error = error(&nar(&[NAR, "(", "type", "a\nb"]));
    assert_eq!(
        error.to_string(),
        "`a\\nb` stands where `regular`, `directory` or `symlink` belongs, at byte 56 of the NAR"
    );
}

fn tree() -> impl Strategy<Value = Tree> {
    let name = || {
        prop_oneof![
            "[a-c.]{1,4}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 1..20),
            Just(vec![b'n'; 255]),
        ]
        .prop_filter("not a name", |name| check_name(name).is_ok())
    };
    let target = proptest::collection::vec(1u8.., 1..40).prop_map(Tree::Link);
    let file = (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(executable, contents)| Tree::File { executable, contents });
    prop_oneof![1 => target, 3 => file].prop_recursive(5, 40, 6, move |inner| {
        proptest::collection::btree_map(name(), inner, 0..6).prop_map(Tree::Directory)
    })
}

proptest! {
    #[test]
    fn print_parse_print(tree in tree(), chunk in 1usize..300) {
        let bytes = print(&tree);
        let parsed = parse(&bytes, chunk).unwrap();
        prop_assert_eq!(&print(&parsed), &bytes);
        prop_assert_eq!(parsed, tree);
    }

    #[test]
    fn damage_is_refused_or_shows(
        tree in tree(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = print(&tree);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(parsed) = parse(&bytes, 64) {
            prop_assert_eq!(print(&parsed), bytes);
        }
    }

    #[test]
    fn listing_is_json(tree in tree()) {
        let listed = parse_chunks(&print(&tree), 77, ListingWriter::new(Vec::new())).unwrap().finish();
        if let Ok(json) = listed {
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(&json["version"], 1);
        }
    }
}

#[test]
fn listing_as_nix_writes_it() {
    let (listing, collected) =
        parse_chunks(&print(&sample()), 50, (ListingWriter::new(Vec::new()), Collect::default())).unwrap();
    let offsets: Vec<u64> = collected.offsets.iter().map(|(offset, _)| *offset).collect();
    let expected = format!(
        concat!(
            r#"{{"version":1,"root":{{"type":"directory","entries":{{"#,
            r#""bin":{{"type":"directory","entries":{{"#,
            r#""eight":{{"type":"regular","size":8,"narOffset":{}}},"#,
            r#""empty":{{"type":"regular","size":0,"executable":true,"narOffset":{}}},"#,
            r#""l":{{"type":"symlink","target":"../x"}}}}}},"#,
            r#""none":{{"type":"directory","entries":{{}}}},"#,
            r#""x":{{"type":"regular","size":5,"executable":true,"narOffset":{}}}}}}}}}"#,
        ),
        offsets[0], offsets[1], offsets[2]
    );
    assert_eq!(String::from_utf8(listing.finish().unwrap()).unwrap(), expected);
}

#[test]
fn listing_of_a_root_that_is_a_file() {
    let bytes = nar(&[NAR, "(", "type", "regular", "contents", "hi", ")"]);
    let listing = parse_chunks(&bytes, 9, ListingWriter::new(Vec::new())).unwrap().finish().unwrap();
    assert_eq!(listing, br#"{"version":1,"root":{"type":"regular","size":2,"narOffset":96}}"#);
}

#[rstest]
#[case::quote("a\"b\\")]
#[case::control("\u{1}\n\u{7f}")]
#[case::not_ascii("é\u{2028}")]
fn listing_escapes(#[case] name: &str) {
    let bytes = directory_of(&[name.as_bytes()]);
    let listing = parse_chunks(&bytes, 9, ListingWriter::new(Vec::new())).unwrap().finish().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&listing).unwrap();
    assert_eq!(json["root"]["entries"][name]["size"], 0);
}

#[rstest]
#[case::name(directory_of(&[b"b\xff"]))]
#[case::target(link_to(b"b\xff"))]
fn listing_of_what_is_not_utf_8(#[case] bytes: Vec<u8>) {
    let listing = parse_chunks(&bytes, 9, ListingWriter::new(Vec::new())).unwrap();
    assert!(matches!(listing.finish(), Err(ListingError::NotUtf8(text)) if text == "b\\xff"));
}

#[test]
fn listing_of_a_nar_cut_short() {
    let bytes = print(&sample());
    for end in 0..bytes.len() - 100 {
        let mut listing = ListingWriter::new(Vec::new());
        Parser::new().feed(&bytes[..end], &mut listing).unwrap();
        assert!(matches!(listing.finish(), Err(ListingError::Incomplete)));
    }
}

/// Refuses the write after so many bytes, as a full disk does.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.checked_sub(bytes.len()) {
            Some(left) => self.0 = left,
            None => return Err(std::io::ErrorKind::StorageFull.into()),
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn full_disk() {
    for room in 0..50 {
        let listing = parse_chunks(&print(&sample()), 50, ListingWriter::new(Full(room))).unwrap();
        assert!(matches!(listing.finish(), Err(ListingError::Io(_))));
    }
    let mut out = Writer::new(Full(50));
    assert!(matches!(out.directory(), Err(WriteError::Io(_))));
    assert!(matches!(out.end(), Err(WriteError::Misuse { .. })));
    assert!(matches!(out.finish(), Err(WriteError::Misuse { .. })));
}

#[derive(Clone, Copy)]
enum Call {
    Directory,
    Entry(&'static str),
    End,
    Link(&'static str),
    File(u64),
    Contents(&'static str),
    FileFrom(u64, &'static str),
}

use Call::*;

impl Call {
    fn make(self, out: &mut Writer<Vec<u8>>) -> Result<(), WriteError> {
        match self {
            Directory => out.directory(),
            Entry(name) => out.entry(name.as_bytes()),
            End => out.end(),
            Link(target) => out.symlink(target.as_bytes()),
            File(size) => out.file(false, size),
            Contents(text) => out.contents(text.as_bytes()),
            FileFrom(size, text) => out.file_from(false, size, &mut text.as_bytes()),
        }
    }
}

#[rstest]
#[case::entry_at_the_root(&[Entry("a")])]
#[case::end_at_the_root(&[End])]
#[case::contents_at_the_root(&[Contents("a")])]
#[case::node_without_entry(&[Directory, Link("a")])]
#[case::two_roots(&[Link("a"), Link("a")])]
#[case::two_nodes(&[Directory, Entry("a"), Link("a"), Link("a")])]
#[case::entry_without_node(&[Directory, Entry("a"), End])]
#[case::end_of_the_root_twice(&[Directory, End, End])]
#[case::unsorted(&[Directory, Entry("b"), Link("x"), Entry("a")])]
#[case::twice(&[Directory, Entry("b"), Link("x"), Entry("b")])]
#[case::bad_name(&[Directory, Entry("..")])]
#[case::bad_target(&[Link("")])]
#[case::too_large(&[File(1 << 63)])]
#[case::contents_too_long(&[File(2), Contents("abc")])]
#[case::contents_after_the_end(&[File(2), Contents("ab"), Contents("c")])]
#[case::file_not_ended(&[Directory, Entry("a"), File(2), Contents("a"), End])]
#[case::from_a_shorter_file(&[FileFrom(3, "ab")])]
#[case::from_a_longer_file(&[FileFrom(1, "ab")])]
#[case::from_a_file_not_empty(&[FileFrom(0, "a")])]
fn misuse_of_the_writer(#[case] calls: &[Call]) {
    let mut out = Writer::new(Vec::new());
    let (last, before) = calls.split_last().unwrap();
    for call in before {
        call.make(&mut out).unwrap();
    }
    assert!(last.make(&mut out).is_err());
    // and never again anything that looks whole
    assert!(out.symlink(b"a").is_err());
    assert!(out.finish().is_err());
}

#[rstest]
#[case::nothing(&[])]
#[case::open_directory(&[Directory])]
#[case::open_file(&[File(1)])]
#[case::open_entry(&[Directory, Entry("a"), Link("a")])]
fn unfinished(#[case] calls: &[Call]) {
    let mut out = Writer::new(Vec::new());
    for call in calls {
        call.make(&mut out).unwrap();
    }
    assert!(matches!(out.finish(), Err(WriteError::Misuse { call: "finish", .. })));
}

#[test]
fn writer_is_as_deep_as_the_parser() {
    let mut out = Writer::new(Vec::new());
    for _ in 0..MAX_DEPTH {
        out.directory().unwrap();
        out.entry(b"d").unwrap();
    }
    assert!(matches!(out.directory(), Err(WriteError::Invalid(NarErrorKind::TooDeep))));
}

#[rstest]
#[case(0)]
#[case(1)]
#[case(8)]
#[case(64 * 1024 - 1)]
#[case(64 * 1024)]
#[case(64 * 1024 + 1)]
#[case(200_000)]
fn file_from_a_reader(#[case] size: usize) {
    let contents: Vec<u8> = (0..size).map(|i| i as u8).collect();
    let mut out = Writer::new(Vec::new());
    out.file_from(true, size as u64, &mut contents.as_slice()).unwrap();
    assert_eq!(out.finish().unwrap(), print(&Tree::File { executable: true, contents }));
}
