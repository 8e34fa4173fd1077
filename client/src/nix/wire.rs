//! The Nix daemon's wire format: little-endian 64-bit numbers, strings padded with zeros to eight bytes, and the
//! messages that come before every answer. Every length is checked before anything is allocated for it, since the other
//! end of a socket may be anybody. Doesn't know which operation an answer belongs to (`daemon.rs` does), nor NARs, which
//! have no length here (`nar_copy.rs`).

use std::io::{self, BufReader, Read};

use pushgate_formats::StorePath;

/// Longest string anywhere in an answer, log lines included.
const MAX_STRING: u64 = 16 << 20;
/// Longest text of a store path. The longest valid one has 255 bytes; a longer one is read so that it can be shown.
const MAX_PATH: u64 = 4096;
/// Most log messages, and bytes in them, before one answer: a daemon that waits for a lock says so now and then, one
/// that never stops talking would hold the client for ever.
const MAX_LOG_MESSAGES: u32 = 1 << 20;
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Fields of a progress message; Nix sends up to four.
const MAX_FIELDS: u64 = 1024;
/// Traces of an error.
const MAX_TRACES: u64 = 4096;
/// Strings up to here are allocated at once, longer ones as their bytes arrive.
pub(super) const AT_ONCE: usize = 64 << 10;

const STDERR_NEXT: u64 = 0x6f6c_6d67;
const STDERR_READ: u64 = 0x6461_7461;
const STDERR_WRITE: u64 = 0x6461_7416;
const STDERR_LAST: u64 = 0x616c_7473;
pub(super) const STDERR_ERROR: u64 = 0x6378_7470;
const STDERR_START_ACTIVITY: u64 = 0x5354_5254;
const STDERR_STOP_ACTIVITY: u64 = 0x5354_4f50;
const STDERR_RESULT: u64 = 0x5253_4c54;

/// What can be wrong with the bytes of an answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection ended in the middle of an answer")]
    Closed,
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the receiver of the NAR failed")]
    Sink(#[source] io::Error),
    #[error("{what} has a length of `{len}`, and at most `{most}` is allowed")]
    TooLong { what: &'static str, len: u64, most: u64 },
    #[error("{0} isn't padded with zeros")]
    Padding(&'static str),
    #[error("{what} is `{got}` instead of {want}")]
    Unexpected { what: &'static str, got: String, want: &'static str },
    #[error(
        "more than `{MAX_LOG_MESSAGES}` log messages or `{MAX_LOG_BYTES}` bytes of log before one answer"
    )]
    LogFlood,
    #[error("the NAR goes on after the `{most}` bytes that the daemon said it has")]
    NarTooLong { most: u64 },
    /// Not the wire's fault: the daemon's own error in the middle of a NAR.
    #[error("the daemon gave up: {0}")]
    Refused(String),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Closed
            }
            _ => Self::Io(error),
        }
    }
}

/// Text of the daemon, made fit to print: colours and control characters dropped, white space joined, bounded.
pub(super) fn clean(text: &[u8]) -> String {
    const MOST: usize = 1000;
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * MOST)]);
    let mut out = String::new();
    let mut chars = text.trim().chars();
    while let Some(c) = chars.next() {
        if out.len() >= MOST {
            out.push('…');
            break;
        }
        if c == '\u{1b}' {
            // `ESC [ … letter`; anything else after ESC is one character
            if chars.next() == Some('[') {
                let _ = chars.find(|c| ('@'..='~').contains(c));
            }
        } else if c.is_whitespace() {
            if !out.ends_with(' ') {
                out.push(' ');
            }
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out
}

/// Appends a number to a request.
pub(super) fn put_u64(request: &mut Vec<u8>, value: u64) {
    request.extend_from_slice(&value.to_le_bytes());
}

/// Appends a string to a request.
pub(super) fn put_bytes(request: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(request, bytes.len() as u64);
    request.extend_from_slice(bytes);
    request.resize(request.len() + padding(bytes.len() as u64), 0);
}

/// Appends a store path to a request.
pub(super) fn put_path(request: &mut Vec<u8>, path: &StorePath) {
    put_bytes(request, path.absolute().as_bytes());
}

/// Zeros after a string of this length.
pub(super) const fn padding(len: u64) -> usize {
    (len.wrapping_neg() % 8) as usize
}

/// Reads answers.
pub(super) struct Reader<R> {
    pub(super) from: BufReader<R>,
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from: BufReader::with_capacity(64 << 10, from), scratch: Vec::new() }
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn bool(&mut self, what: &'static str) -> Result<bool, WireError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Unexpected { what, got: other.to_string(), want: "`0` or `1`" }),
        }
    }

    /// The number of elements that follow.
    pub(super) fn count(&mut self, what: &'static str, most: u64) -> Result<usize, WireError> {
        let len = self.u64()?;
        if len > most {
            return Err(WireError::TooLong { what, len, most });
        }
        Ok(len as usize)
    }

    /// A string of at most `most` bytes, valid until the next read.
    pub(super) fn bytes(&mut self, what: &'static str, most: u64) -> Result<&[u8], WireError> {
        let len = self.count(what, most.min(MAX_STRING))?;
        self.scratch.clear();
        if len <= AT_ONCE {
            self.scratch.resize(len, 0);
            self.from.read_exact(&mut self.scratch)?;
        } else if (&mut self.from).take(len as u64).read_to_end(&mut self.scratch)? != len {
            return Err(WireError::Closed);
        }
        self.zeros(what, padding(len as u64))?;
        Ok(&self.scratch)
    }

    pub(super) fn zeros(&mut self, what: &'static str, count: usize) -> Result<(), WireError> {
        let mut zeros = [0; 8];
        self.from.read_exact(&mut zeros[..count])?;
        if zeros != [0; 8] { Err(WireError::Padding(what)) } else { Ok(()) }
    }

    pub(super) fn text(&mut self, what: &'static str, most: u64) -> Result<&str, WireError> {
        let bytes = self.bytes(what, most)?;
        std::str::from_utf8(bytes).map_err(|_| WireError::Unexpected {
            what,
            got: clean(bytes),
            want: "UTF-8",
        })
    }

    /// A store path, or `None` for an empty string.
    pub(super) fn optional_path(&mut self, what: &'static str) -> Result<Option<StorePath>, WireError> {
        let bytes = self.bytes(what, MAX_PATH)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let path = std::str::from_utf8(bytes).ok().and_then(|text| StorePath::parse(text).ok());
        match path {
            Some(path) => Ok(Some(path)),
            None => Err(WireError::Unexpected { what, got: clean(bytes), want: "a path in /nix/store" }),
        }
    }

    pub(super) fn path(&mut self, what: &'static str) -> Result<StorePath, WireError> {
        self.optional_path(what)?.ok_or_else(|| WireError::Unexpected {
            what,
            got: String::new(),
            want: "a path in /nix/store",
        })
    }

    /// Reads the messages before an answer. `Ok(Err(message))` when the daemon refuses the operation: then no answer
    /// follows and the connection is in order. `minor` is the negotiated protocol's.
    pub(super) fn until_answer(&mut self, minor: u64) -> Result<Result<(), String>, WireError> {
        let mut bytes = 0u64;
        for _ in 0..MAX_LOG_MESSAGES {
            match self.u64()? {
                STDERR_LAST => return Ok(Ok(())),
                STDERR_ERROR => return self.error(minor).map(Err),
                STDERR_NEXT => bytes += self.bytes("a log line", MAX_STRING)?.len() as u64,
                STDERR_START_ACTIVITY => {
                    for _ in 0..3 {
                        self.u64()?; // id, level, type
                    }
                    bytes += self.bytes("an activity", MAX_STRING)?.len() as u64;
                    bytes += self.fields()?;
                    self.u64()?; // parent
                }
                STDERR_STOP_ACTIVITY => {
                    self.u64()?;
                }
                STDERR_RESULT => {
                    self.u64()?; // id
                    self.u64()?; // type
                    bytes += self.fields()?;
                }
                other => {
                    let got = match other {
                        STDERR_READ => "a request for data".into(),
                        STDERR_WRITE => "data that nobody asked for".into(),
                        _ => format!("{other:#x}"),
                    };
                    return Err(WireError::Unexpected {
                        what: "a message before an answer",
                        got,
                        want: "a log line, progress, an error or the end of messages",
                    });
                }
            }
            if bytes > MAX_LOG_BYTES {
                break;
            }
        }
        Err(WireError::LogFlood)
    }

    /// Skips the fields of a progress message and returns how many bytes they had.
    fn fields(&mut self) -> Result<u64, WireError> {
        let mut bytes = 0;
        for _ in 0..self.count("the fields of a progress message", MAX_FIELDS)? {
            match self.u64()? {
                0 => bytes += self.u64().map(|_| 8)?,
                1 => bytes += self.bytes("a field of a progress message", MAX_STRING)?.len() as u64,
                other => {
                    return Err(WireError::Unexpected {
                        what: "the type of a field of a progress message",
                        got: other.to_string(),
                        want: "`0` or `1`",
                    });
                }
            }
        }
        Ok(bytes)
    }

    /// The daemon's error; its shape changed with 1.26.
    pub(super) fn error(&mut self, minor: u64) -> Result<String, WireError> {
        if minor < 26 {
            let message = clean(self.bytes("an error message", MAX_STRING)?);
            self.u64()?; // exit status
            return Ok(message);
        }
        self.bytes("the type of an error", MAX_STRING)?;
        self.u64()?; // level
        self.bytes("the name of an error", MAX_STRING)?;
        let message = clean(self.bytes("an error message", MAX_STRING)?);
        self.no_position()?;
        for _ in 0..self.count("the traces of an error", MAX_TRACES)? {
            self.no_position()?;
            self.bytes("a trace of an error", MAX_STRING)?;
        }
        Ok(message)
    }

    /// Positions in Nix expressions have never had a form on this wire: Nix too insists on zero.
    fn no_position(&mut self) -> Result<(), WireError> {
        match self.u64()? {
            0 => Ok(()),
            other => Err(WireError::Unexpected {
                what: "the position of an error",
                got: other.to_string(),
                want: "`0`",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
