//! Two NARs, the second from the last magic on: what is told of their differences is bounded, printable and true.

#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{
    difference::{DifferenceError, MAX_FILES, MAX_JSON, Report, Side, compare},
    nar::{MAGIC, NarError, Parser},
};
use pushgate_fuzz::{assert_message, pieces};

/// A reader that gives a piece at a time.
struct Pieces<I>(I);

impl<'a, I: Iterator<Item = &'a [u8]>> Read for Pieces<I> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let piece = self.0.next().unwrap_or_default();
        // never longer than what a parser reads at once
        out[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

fn check(nar: &[u8]) -> Result<(), NarError> {
    let mut parser = Parser::new();
    parser.feed(nar, &mut ())?;
    parser.finish()
}

fn assert_text(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn assert_bounded(report: &Report) {
    let json = serde_json::to_string(report).expect("JSON");
    assert!(json.len() <= MAX_JSON && report.files.len() <= MAX_FILES);
    assert_eq!(&serde_json::from_str::<Report>(&json).expect("a report"), report);
    assert_eq!(report.counts.different(), report.files.len() as u64 + report.omitted);
    assert_eq!(report.truncated, report.omitted > 0);
    for file in &report.files {
        assert_text(&file.path);
        assert!(file.claimed.is_some() || file.rebuilt.is_some());
        for entry in [&file.claimed, &file.rebuilt].into_iter().flatten() {
            entry.target.iter().for_each(|target| assert_text(target));
        }
        assert_eq!(file.window.is_some(), file.first_offset.is_some());
        if let Some(window) = &file.window {
            assert_text(&window.claimed);
            assert_text(&window.rebuilt);
            assert_ne!(window.claimed, window.rebuilt, "the window shows what differs");
            assert!(Some(window.offset) <= file.first_offset);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let second = data.windows(MAGIC.len()).rposition(|window| window == MAGIC).unwrap_or_default();
    // its length stands before it
    let (a, b) = data.split_at(second.saturating_sub(8));
    match compare(a, b) {
        Ok(report) => {
            assert_eq!((check(a), check(b)), (Ok(()), Ok(())));
            assert_eq!(report.identical, a == b);
            assert_bounded(&report);
            let cut = compare(Pieces(pieces(a)), Pieces(pieces(b))).expect("the same bytes");
            assert_eq!(cut, report, "the answer depends on where the input is cut");
            let back = compare(b, a).expect("the same bytes").counts;
            assert_eq!((back.added, back.removed), (report.counts.removed, report.counts.added));
            assert_eq!((back.same, back.different()), (report.counts.same, report.counts.different()));
        }
        Err(error) => {
            assert_message(&error);
            let DifferenceError::Malformed { side, source } = error else { panic!("slices can be read") };
            assert_message(&source);
            let nar = if side == Side::Claimed { a } else { b };
            assert_eq!(check(nar), Err(source));
        }
    }
    if check(a).is_ok() {
        assert!(compare(a, Pieces(pieces(a))).expect("a good NAR").identical);
    }
});
