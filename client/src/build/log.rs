//! The log of a build, put together from pieces and made fit for a terminal, line by line: a builder writes what it wants,
//! and who wrote the builder may not mean well. Doesn't know where the lines are shown.

use std::time::Duration;

use pushgate_formats::StorePath;
use tokio::{sync::watch, time::Instant};

use super::{News, Tell, name};
use crate::api::{Api, PushHandle, is_hidden};

/// A longer line is cut.
const MAX_LINE: usize = 16 << 10;
/// How long a question waits for more of a log, in seconds.
const WAIT: u64 = 15;
/// A gateway that answers at once isn't asked again at once.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const RESET: &str = "\u{1b}[0m";

/// Puts a log together.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    colours: bool,
}

impl Lines {
    /// With the builder's colours, or without.
    pub(super) fn new(colours: bool) -> Self {
        Self { partial: Vec::new(), colours }
    }

    /// Takes a piece; returns the lines that it completes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let taken = end.unwrap_or(room.min(bytes.len()));
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if end.is_some() || self.partial.len() >= MAX_LINE {
                lines.push(self.take());
            }
        }
        lines
    }

    /// What came after the last line's end.
    pub(super) fn rest(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = line(&self.partial, self.colours);
        self.partial.clear();
        line
    }
}

/// A line as a terminal may have it: what a return has left of it, without controls but tabs and, if wanted, colours.
fn line(bytes: &[u8], colours: bool) -> String {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let bytes = bytes.rsplit(|b| *b == b'\r').next().unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    let mut coloured = false;
    while let Some(c) = rest.chars().next() {
        if c == '\u{1b}' {
            let (sequence, after) = rest.split_at(escape_len(rest));
            if colours && is_colour(sequence) {
                out.push_str(sequence);
                coloured = true;
            }
            rest = after;
            continue;
        }
        if c == '\t' || !is_hidden(c) {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        // not the next line, which may be someone else's
        out.push_str(RESET);
    }
    out
}

/// Bytes of the escape sequence at the beginning, as ECMA-48 has them: a control sequence, a string with its end, or two
/// characters.
fn escape_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let Some((_, kind)) = chars.next() else { return text.len() };
    let end = match kind {
        '[' => chars.find(|(_, c)| matches!(c, '\u{40}'..='\u{7e}')).map(|(at, c)| at + c.len_utf8()),
        ']' | 'P' | 'X' | '^' | '_' => {
            let bell = text.find('\u{7}').map(|at| at + 1);
            let terminator = text[2..].find("\u{1b}\\").map(|at| at + 4);
            bell.into_iter().chain(terminator).min()
        }
        c => Some(1 + c.len_utf8()),
    };
    end.unwrap_or(text.len())
}

/// Whether an escape sequence only chooses colours or weight, and doesn't hide what follows.
fn is_colour(sequence: &str) -> bool {
    let parameters = sequence.strip_prefix("\u{1b}[").and_then(|rest| rest.strip_suffix('m'));
    parameters.is_some_and(|p| {
        p.bytes().all(|b| b.is_ascii_digit() || b == b';')
            && !p.split(';').any(|one| one.trim_start_matches('0') == "8")
    })
}

/// Tells of a build's log as it is written, until it ends, or the build is `over` and there is nothing more.
pub(super) async fn follow(
    api: Api,
    push: PushHandle,
    derivation: StorePath,
    colours: bool,
    over: watch::Receiver<bool>,
    tell: Tell,
) {
    let mut lines = Lines::new(colours);
    let mut from = 0;
    let show = |line| tell(News::Log { name: name(&derivation).to_owned(), line });
    loop {
        let asked = Instant::now();
        let was_over = *over.borrow();
        let piece = api.build_log(&push, &derivation, from, if was_over { 0 } else { WAIT }).await;
        let ended = match piece {
            Ok(Some(piece)) => {
                from += piece.bytes.len() as u64;
                lines.feed(&piece.bytes).into_iter().for_each(&show);
                piece.ended || was_over && piece.bytes.is_empty()
            }
            Ok(None) => was_over,
            Err(error) => {
                // the build goes on without an onlooker
                tell(News::Note(format!("the log of `{derivation}` can't be read: {error}")));
                break;
            }
        };
        if ended {
            break;
        }
        if asked.elapsed() < LEAST_PAUSE {
            tokio::time::sleep(LEAST_PAUSE).await;
        }
    }
    lines.rest().into_iter().for_each(&show);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn lines_are_whole_however_a_log_is_cut() {
        let log = "one\ntwo é\r\n\nlast".as_bytes();
        for cut in 0..=log.len() {
            let mut lines = Lines::new(false);
            let mut all = lines.feed(&log[..cut]);
            all.extend(lines.feed(&log[cut..]));
            all.extend(lines.rest());
            assert_eq!(all, ["one", "two é", "", "last"], "{cut}");
            assert_eq!(lines.rest(), None);
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut lines = Lines::new(false);
        let all = lines.feed(&vec![b'x'; 3 * MAX_LINE + 5]);
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE; 3]);
        assert_eq!(lines.rest().unwrap().len(), 5);
    }

    #[rstest]
    #[case("a\tb", "a\tb", "a\tb")]
    #[case("10%\r20%\r100%", "100%", "100%")]
    #[case("\u{1b}[1;31mred\u{1b}[0m", "red", "\u{1b}[1;31mred\u{1b}[0m\u{1b}[0m")]
    #[case("\u{1b}[2J\u{1b}[Hgone", "gone", "gone")]
    #[case("\u{1b}]0;title\u{7}x\u{1b}]8;;u\u{1b}\\y", "xy", "xy")]
    #[case("\u{1b}]never ended", "", "")]
    #[case("\u{1b}[8mhidden", "hidden", "hidden")]
    #[case("\u{1b}[31;08mhidden", "hidden", "hidden")]
    #[case("\u{1b}(Bx\u{1b}cy\u{1b}", "Bxy", "Bxy")]
    #[case("\u{9b}31mx\u{202e}y\u{0}\u{8}", "31mxy", "31mxy")]
    fn a_builder_has_no_hold_on_the_terminal(#[case] log: &str, #[case] plain: &str, #[case] coloured: &str) {
        assert_eq!(line(log.as_bytes(), false), plain);
        assert_eq!(line(log.as_bytes(), true), coloured);
    }

    #[test]
    fn bytes_that_are_no_text() {
        assert_eq!(line(b"a\xff\xfeb", true), "a\u{fffd}\u{fffd}b");
    }
}
