//! Foreign bytes as text that nothing acts upon: neither a terminal nor a reader's eye.

use std::fmt::Write;

use super::{MAX_SHOWN, WINDOW_AFTER, WINDOW_BEFORE, Window};

/// Escapes what isn't printable, marks that join with the character before among it. A backslash is escaped too, so that no
/// two inputs give the same text.
fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '"' => out.push(c),
                c => out.extend(c.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // writing to a String can't fail
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// A path or target, and whether its middle had to be left out: the beginning says where it is, the end what.
pub(super) fn name(bytes: &[u8]) -> (String, bool) {
    if bytes.len() <= MAX_SHOWN {
        return (escaped(bytes), false);
    }
    let (head, tail) = (&bytes[..MAX_SHOWN / 2], &bytes[bytes.len() - MAX_SHOWN / 2..]);
    (format!("{}…{}", escaped(head), escaped(tail)), true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The bytes as text, if that is what they are. A character that the end of a full window cuts is left out.
fn as_text(bytes: &[u8], full: bool) -> Option<&str> {
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if full && error.error_len().is_none() => {
            str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    text.chars().all(is_text).then_some(text)
}

/// The window around a difference at `first`: what both sides have before it, and what each has from there on.
pub(super) fn window(first: u64, before: &[u8], claimed: &[u8], rebuilt: &[u8]) -> Window {
    // the rest of a character that the window's start cuts; at the start of a file nothing is cut
    let cut = match before.len() == WINDOW_BEFORE {
        true => before.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count(),
        false => 0,
    };
    let side = |from: usize, after: &[u8]| [&before[from..], after].concat();
    let (a, b) = (side(cut, claimed), side(cut, rebuilt));
    let full = |after: &[u8]| after.len() == WINDOW_AFTER;
    if let (Some(a), Some(b)) = (as_text(&a, full(claimed)), as_text(&b, full(rebuilt))) {
        return Window {
            offset: first - (before.len() - cut) as u64,
            claimed: escaped(a.as_bytes()),
            rebuilt: escaped(b.as_bytes()),
            text: true,
        };
    }
    Window {
        offset: first - before.len() as u64,
        claimed: hex(&side(0, claimed)),
        rebuilt: hex(&side(0, rebuilt)),
        text: false,
    }
}
