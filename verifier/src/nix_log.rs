//! What Nix tells while it builds (`--log-format internal-json`): the builder's own lines apart from Nix's. So a builder
//! can't pretend that Nix said something.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line that is read as a whole; of a longer one a remark stays.
const MAX_LINE: usize = 1 << 20;
/// `resBuildLogLine` in Nix's `logging.hh`.
const BUILD_LOG_LINE: u64 = 101;

/// Something that Nix tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A line of the builder.
    Line(String),
    /// An error of Nix's own.
    Error(String),
    /// Text that is in no form, of the loader or a wrapper perhaps.
    Stray(String),
    Other,
}

#[derive(Deserialize)]
struct Raw {
    action: String,
    #[serde(default, rename = "type")]
    kind: u64,
    #[serde(default)]
    level: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    fields: Vec<serde_json::Value>,
}

/// Reads one line.
pub fn parse(line: &[u8]) -> Told {
    let Some(json) = line.strip_prefix(b"@nix ") else {
        return Told::Stray(plain(&String::from_utf8_lossy(line)));
    };
    let Ok(raw) = serde_json::from_slice::<Raw>(json) else { return Told::Other };
    match (raw.action.as_str(), raw.kind, raw.fields.first()) {
        ("result", BUILD_LOG_LINE, Some(serde_json::Value::String(text))) => Told::Line(text.clone()),
        ("msg", ..) if raw.level == 0 => Told::Error(plain(&raw.msg)),
        _ => Told::Other,
    }
}

/// Without the colours that Nix gives its words.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Lines of a stream, each bounded.
pub struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer in which no line ends.
    searched: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), searched: 0, ended: false }
    }

    /// The next line without its end; `None` after the last. May be dropped while it waits.
    pub async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut skipping = false;
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                line.pop();
                return Ok(Some(if skipping { b"(a line too long to be shown)".to_vec() } else { line }));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                skipping = true;
                self.buffer.clear();
                self.searched = 0;
            }
            if self.ended {
                let line = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return Ok(Some(line).filter(|line| !line.is_empty()));
            }
            self.ended = self.source.read_buf(&mut self.buffer).await? == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"@nix {"action":"result","fields":["hello"],"id":4,"type":101}"#, Told::Line("hello".into()))]
    #[case(r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m no"}"#, Told::Error("error: no".into()))]
    #[case(r#"@nix {"action":"msg","level":3,"msg":"this derivation will be built:"}"#, Told::Other)]
    #[case(r#"@nix {"action":"result","fields":[1,2],"id":4,"type":105}"#, Told::Other)]
    #[case("@nix {", Told::Other)]
    #[case("ld.so: no", Told::Stray("ld.so: no".into()))]
    fn lines(#[case] line: &str, #[case] told: Told) {
        assert_eq!(parse(line.as_bytes()), told);
    }

    #[tokio::test]
    async fn long_lines_are_left_out() {
        let mut text = b"a\n".to_vec();
        text.extend(vec![b'x'; 3 * MAX_LINE]);
        text.extend(b"\nb\nrest");
        let mut lines = Lines::new(text.as_slice());
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(all, ["a", "(a line too long to be shown)", "b", "rest"]);
    }
}
