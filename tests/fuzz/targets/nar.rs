//! NARs: what is accepted prints back to the same bytes, and nothing depends on how the bytes come.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pushgate_formats::nar::{ListingError, ListingWriter, NarError, NarErrorKind, Parser, Visitor, Writer};
use pushgate_fuzz::{assert_code, assert_message, number, pieces};
use serde::Deserialize;

/// Writes the NAR again from the events, and checks that these come in order.
struct Rewriter<'a> {
    input: &'a [u8],
    out: Writer<Vec<u8>>,
    depth: usize,
    /// Bytes of the file's contents that are still to come.
    left: Option<u64>,
}

impl<'a> Rewriter<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self { input, out: Writer::new(Vec::new()), depth: 0, left: None }
    }

    fn node(&mut self, name: Option<&[u8]>) {
        assert_eq!(name.is_none(), self.depth == 0, "exactly the root has no name");
        assert!(self.left.is_none(), "a file is open");
        if let Some(name) = name {
            self.out.entry(name).expect("a good name, in order");
        }
    }
}

impl Visitor for Rewriter<'_> {
    fn directory(&mut self, name: Option<&[u8]>) {
        self.node(name);
        self.depth += 1;
        self.out.directory().expect("not too deep");
    }

    fn end_directory(&mut self) {
        self.depth -= 1;
        self.out.end().expect("an open directory");
    }

    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, offset: u64) {
        self.node(name);
        let length = self.input[offset as usize - 8..][..8].try_into().expect("eight bytes");
        assert_eq!(u64::from_le_bytes(length), size, "the contents don't begin at the offset that is told");
        self.out.file(executable, size).expect("a file");
        self.left = Some(size);
    }

    fn contents(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty());
        let left = self.left.as_mut().expect("an open file");
        *left -= bytes.len() as u64;
        self.out.contents(bytes).expect("contents");
    }

    fn end_file(&mut self) {
        assert_eq!(self.left.take(), Some(0));
    }

    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
        self.node(name);
        self.out.symlink(target).expect("a good target");
    }
}

type Seen<'a> = (Result<(), NarError>, Rewriter<'a>, ListingWriter<Vec<u8>>);

fn parse<'a, 'b>(input: &'a [u8], parts: impl Iterator<Item = &'b [u8]>) -> Seen<'a> {
    let mut visitor = (Rewriter::new(input), ListingWriter::new(Vec::new()));
    let mut parser = Parser::new();
    let mut fed = 0;
    for part in parts {
        match parser.feed(part, &mut visitor) {
            Ok(()) => {
                fed += part.len() as u64;
                assert_eq!(parser.offset(), fed, "accepted bytes are counted");
            }
            Err(error) => {
                assert_eq!(parser.feed(part, &mut visitor), Err(error.clone()), "errors stay");
                assert_eq!(parser.finish(), Err(error));
                break;
            }
        }
    }
    let result = parser.finish();
    (result, visitor.0, visitor.1)
}

fuzz_target!(|data: &[u8]| {
    let (whole, rewritten, listing) = parse(data, std::iter::once(data));
    let (cut, _, listing_cut) = parse(data, pieces(data));
    assert_eq!(whole, cut, "the answer depends on where the input is cut");
    let (listing, listing_cut) = (listing.finish(), listing_cut.finish());
    match (&listing, &listing_cut) {
        (Ok(a), Ok(b)) => assert_eq!(a, b, "the listing depends on where the input is cut"),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
        _ => panic!("only one of two listings"),
    }
    match whole {
        Ok(()) => {
            assert_eq!(rewritten.out.finish().expect("a whole NAR"), data);
            match listing {
                Ok(json) => {
                    // as deep as directories may be, each two levels of JSON: more than this parser takes by default
                    let mut json = serde_json::Deserializer::from_slice(&json);
                    json.disable_recursion_limit();
                    let json = serde_json::Value::deserialize(&mut json).expect("JSON");
                    assert_eq!(json["version"], 1);
                }
                Err(error) => assert!(matches!(error, ListingError::NotUtf8(_)), "{error}"),
            }
            let end = number(data) as usize % data.len();
            let (short, _, _) = parse(data, std::iter::once(&data[..end]));
            let truncated = NarError { offset: end as u64, kind: NarErrorKind::Truncated };
            assert_eq!(short, Err(truncated));
        }
        Err(error) => {
            assert_code(error.code());
            assert_message(&error);
            let offset = error.offset as usize;
            assert!(offset <= data.len());
            // before the fault all was well
            let (before, _, _) = parse(data, std::iter::once(&data[..offset]));
            match error.kind {
                NarErrorKind::TrailingBytes => assert_eq!(before, Ok(())),
                _ => assert_eq!(before.map_err(|e| e.kind), Err(NarErrorKind::Truncated)),
            }
        }
    }
});
