//! The Nix daemon's wire format: little-endian 64-bit numbers, strings padded with zeros to eight bytes, and the
//! messages that come before every answer. Every length is checked before anything is allocated for it, since the other
//! end of a socket may be anybody. Doesn't know which operation an answer belongs to (`daemon.rs` does), nor whether
//! the bytes of a NAR are the right ones: it only finds where the NAR ends.

use std::io::{self, BufRead, BufReader, Read, Write};

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
const AT_ONCE: usize = 64 << 10;

const STDERR_NEXT: u64 = 0x6f6c_6d67;
const STDERR_READ: u64 = 0x6461_7461;
const STDERR_WRITE: u64 = 0x6461_7416;
const STDERR_LAST: u64 = 0x616c_7473;
const STDERR_ERROR: u64 = 0x6378_7470;
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
const fn padding(len: u64) -> usize {
    (len.wrapping_neg() % 8) as usize
}

/// Reads answers.
pub(super) struct Reader<R> {
    from: BufReader<R>,
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

    fn zeros(&mut self, what: &'static str, count: usize) -> Result<(), WireError> {
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
    fn error(&mut self, minor: u64) -> Result<String, WireError> {
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

    /// Copies one NAR, which has no length on the wire, to `out` and returns its size. Looks only at its nesting, so
    /// that one shorter than expected ends instead of waiting for more bytes for ever, and an error in its midst is
    /// seen as one. Takes at most `most` bytes.
    pub(super) fn copy_nar(&mut self, minor: u64, most: u64, out: &mut dyn Write) -> Result<u64, WireError> {
        let mut nar = NarCopy { out, pending: Vec::with_capacity(AT_ONCE + 256), left: most, most };
        self.keyword(minor, &mut nar, |keyword| (keyword == b"nix-archive-1").then_some(()))?;
        self.keyword(minor, &mut nar, |keyword| (keyword == b"(").then_some(()))?;
        let mut depth = 1u64;
        while depth > 0 {
            let next = self.keyword(minor, &mut nar, |keyword| match keyword {
                b"(" => Some(Next::Deeper),
                b")" => Some(Next::Up),
                b"contents" | b"target" | b"name" => Some(Next::Data),
                b"type" | b"regular" | b"executable" | b"" | b"symlink" => Some(Next::Keyword),
                b"directory" | b"entry" | b"node" => Some(Next::Keyword),
                _ => None,
            })?;
            match next {
                Next::Deeper => depth += 1,
                Next::Up => depth -= 1,
                Next::Keyword => {}
                Next::Data => {
                    let len = self.u64()?;
                    nar.data(self, len)?;
                }
            }
        }
        nar.flush()?;
        Ok(most - nar.left)
    }

    /// Copies one word of the NAR's grammar, if `known` knows it.
    fn keyword<T>(
        &mut self,
        minor: u64,
        nar: &mut NarCopy<'_>,
        known: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, WireError> {
        let len = self.u64()?;
        if len == STDERR_ERROR {
            // the daemon met an error after it had announced the NAR: it says so in its midst and hangs up
            return Err(WireError::Refused(self.error(minor)?));
        }
        let mut padded = [0; 16];
        if len > padded.len() as u64 {
            return Err(WireError::TooLong { what: "a keyword of the NAR", len, most: padded.len() as u64 });
        }
        let len_padded = len as usize + padding(len);
        self.from.read_exact(&mut padded[..len_padded])?;
        let (keyword, zeros) = padded[..len_padded].split_at(len as usize);
        if zeros.iter().any(|b| *b != 0) {
            return Err(WireError::Padding("a keyword of the NAR"));
        }
        let Some(known) = known(keyword) else {
            return Err(WireError::Unexpected {
                what: "a keyword of the NAR",
                got: clean(keyword),
                want: "what a NAR has there",
            });
        };
        nar.take(8 + len_padded as u64)?;
        nar.put(&len.to_le_bytes())?;
        nar.put(&padded[..len_padded])?;
        Ok(known)
    }
}

/// What a word of the NAR's grammar does to its reader.
enum Next {
    Deeper,
    Up,
    /// Another word.
    Keyword,
    /// A string that means nothing to the grammar.
    Data,
}

/// Where a NAR goes: small pieces are gathered, the size is kept below what was announced.
struct NarCopy<'a> {
    out: &'a mut dyn Write,
    pending: Vec<u8>,
    left: u64,
    most: u64,
}

impl NarCopy<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), WireError> {
        self.left = self.left.checked_sub(bytes).ok_or(WireError::NarTooLong { most: self.most })?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= AT_ONCE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), WireError> {
        self.out.write_all(&self.pending).map_err(WireError::Sink)?;
        self.pending.clear();
        Ok(())
    }

    /// A string of any length: a name, a link's target, a file's contents.
    fn data<R: Read>(&mut self, reader: &mut Reader<R>, len: u64) -> Result<(), WireError> {
        let pad = padding(len);
        self.take(len.checked_add(8 + pad as u64).ok_or(WireError::NarTooLong { most: self.most })?)?;
        self.put(&len.to_le_bytes())?;
        let mut left = len;
        while left > 0 {
            let buffered = match reader.from.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffered.is_empty() {
                return Err(WireError::Closed);
            }
            let count = buffered.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if count >= AT_ONCE / 2 {
                self.out.write_all(&self.pending).map_err(WireError::Sink)?;
                self.pending.clear();
                self.out.write_all(&buffered[..count]).map_err(WireError::Sink)?;
            } else {
                self.put(&buffered[..count])?;
            }
            reader.from.consume(count);
            left -= count as u64;
        }
        reader.zeros("a string of the NAR", pad)?;
        self.put(&[0; 8][..pad])
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, bytes);
        out
    }

    fn numbers(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn nar(tokens: &[&[u8]]) -> Vec<u8> {
        tokens.iter().flat_map(|t| string(t)).collect()
    }

    #[test]
    fn strings_round_trip() {
        for len in (0..40).chain([AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 300_000]) {
            let text = vec![b'x'; len];
            let mut bytes = string(&text);
            assert_eq!(bytes.len() % 8, 0);
            put_u64(&mut bytes, 7);
            let mut reader = Reader::new(&bytes[..]);
            assert_eq!(reader.bytes("it", MAX_STRING).unwrap(), text);
            assert_eq!(reader.u64().unwrap(), 7);
            for cut in [0, 8, bytes.len() - 9].map(|c| c.min(bytes.len() - 9)) {
                let got = Reader::new(&bytes[..cut]).bytes("it", MAX_STRING).map(<[u8]>::to_vec);
                assert!(matches!(got, Err(WireError::Closed)), "{len} {cut}");
            }
        }
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        for len in [MAX_STRING + 1, u64::MAX, u64::MAX - 7, 1 << 63] {
            let bytes = numbers(&[len, 0, 0]);
            let mut reader = Reader::new(&bytes[..]);
            assert!(matches!(reader.bytes("it", u64::MAX), Err(WireError::TooLong { .. })));
            assert_eq!(reader.scratch.capacity(), 0);
        }
        // a length that is allowed but a lie costs no more than what arrives
        let bytes = numbers(&[MAX_STRING, 1, 2, 3]);
        let mut reader = Reader::new(&bytes[..]);
        assert!(matches!(reader.bytes("it", MAX_STRING), Err(WireError::Closed)));
        assert!(reader.scratch.capacity() < 1 << 20);
    }

    #[test]
    fn padding_is_zero() {
        let mut bytes = string(b"abc");
        *bytes.last_mut().unwrap() = 1;
        assert!(matches!(Reader::new(&bytes[..]).bytes("it", 10), Err(WireError::Padding("it"))));
    }

    #[test]
    fn messages_before_an_answer() {
        let mut bytes = Vec::new();
        put_u64(&mut bytes, STDERR_NEXT);
        put_bytes(&mut bytes, b"hello\n");
        bytes.extend(numbers(&[STDERR_START_ACTIVITY, 1, 2, 3]));
        put_bytes(&mut bytes, b"copying");
        bytes.extend(numbers(&[2, 0, 99, 1]));
        put_bytes(&mut bytes, b"field");
        bytes.extend(numbers(&[0, STDERR_RESULT, 1, 105, 1, 0, 8, STDERR_STOP_ACTIVITY, 1, STDERR_LAST, 42]));
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.until_answer(35).unwrap(), Ok(()));
        assert_eq!(reader.u64().unwrap(), 42);
    }

    #[test]
    fn errors_of_both_shapes() {
        let message = b"\x1b[31;1merror:\x1b[0m no\n  such `\x1b[35;1mthing\x1b[0m'\x07";
        let mut old = numbers(&[STDERR_ERROR]);
        put_bytes(&mut old, message);
        put_u64(&mut old, 1);
        let mut new = numbers(&[STDERR_ERROR]);
        put_bytes(&mut new, b"Error");
        put_u64(&mut new, 0);
        put_bytes(&mut new, b"Error");
        put_bytes(&mut new, message);
        new.extend(numbers(&[0, 1, 0]));
        put_bytes(&mut new, b"while trying");
        for (mut bytes, minor) in [(old, 25), (new, 26)] {
            put_u64(&mut bytes, 42);
            let mut reader = Reader::new(&bytes[..]);
            assert_eq!(reader.until_answer(minor).unwrap(), Err("error: no such `thing'".into()));
            assert_eq!(reader.u64().unwrap(), 42);
        }
    }

    #[rstest]
    #[case(numbers(&[STDERR_READ, 10]))]
    #[case([numbers(&[STDERR_WRITE]), string(b"x")].concat())]
    #[case(numbers(&[0]))]
    #[case(numbers(&[STDERR_RESULT, 1, 1, 1, 2]))]
    #[case(numbers(&[STDERR_RESULT, 1, 1, u64::MAX]))]
    #[case(numbers(&[STDERR_NEXT, u64::MAX]))]
    #[case(numbers(&[STDERR_NEXT]))]
    fn bad_messages(#[case] bytes: Vec<u8>) {
        assert!(Reader::new(&bytes[..]).until_answer(35).is_err());
    }

    struct Endless<'a>(&'a [u8], usize);

    impl Read for Endless<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = (&self.0[self.1..]).read(buf)?;
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }

    #[test]
    fn log_without_end_is_given_up() {
        let line = [numbers(&[STDERR_NEXT]), string(&[b'x'; 4096])].concat();
        for line in [line, numbers(&[STDERR_STOP_ACTIVITY, 1])] {
            assert!(matches!(Reader::new(Endless(&line, 0)).until_answer(35), Err(WireError::LogFlood)));
        }
    }

    #[test]
    fn a_nar_ends_where_it_ends() {
        let contents = vec![7; 100_001];
        let mut bytes = nar(&[
            b"nix-archive-1",
            b"(",
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b")",
            b"node",
            b"(",
            b"type",
            b"regular",
            b"executable",
            b"",
            b"contents",
            &contents,
            b")",
            b")",
            b"entry",
            b"(",
            b"name",
            b"l",
            b"node",
            b"(",
            b"type",
            b"symlink",
            b"target",
            b"(",
            b")",
            b")",
            b")",
        ]);
        let size = bytes.len() as u64;
        put_u64(&mut bytes, 42);
        let mut out = Vec::new();
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.copy_nar(35, size + 1000, &mut out).unwrap(), size);
        assert_eq!(out, bytes[..size as usize]);
        assert_eq!(reader.u64().unwrap(), 42);
        for cut in 0..size {
            let most = Reader::new(&bytes[..]).copy_nar(35, cut, &mut io::sink());
            assert!(matches!(most, Err(WireError::NarTooLong { .. })), "{cut}");
            if cut % 997 == 0 {
                let short = Reader::new(&bytes[..cut as usize]).copy_nar(35, size, &mut io::sink());
                assert!(matches!(short, Err(WireError::Closed)), "{cut}");
            }
        }
    }

    #[rstest]
    #[case(nar(&[b"nix-archive-2"]))]
    #[case(nar(&[b"nix-archive-1", b")"]))]
    #[case(nar(&[b"nix-archive-1", b"nix-archive-1"]))]
    #[case(nar(&[b"nix-archive-1", b"(", b"type", b"device"]))]
    #[case([nar(&[b"nix-archive-1", b"(", b"contents"]), numbers(&[u64::MAX - 3])].concat())]
    #[case([nar(&[b"nix-archive-1", b"("]), numbers(&[1 << 40])].concat())]
    #[case([nar(&[b"nix-archive-1", b"("]), numbers(&[1, u64::MAX])].concat())]
    fn bad_nars(#[case] bytes: Vec<u8>) {
        let got = Reader::new(&bytes[..]).copy_nar(35, 1 << 20, &mut io::sink());
        assert!(!matches!(got, Ok(_) | Err(WireError::Closed)), "{got:?}");
    }
}
