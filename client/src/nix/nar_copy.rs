//! NARs as a daemon sends them, without a length: where one ends is found in its own grammar. Doesn't look at what is in
//! a NAR, nor whether it is the right one.

use std::io::{self, BufRead, Read, Write};

use super::wire::{AT_ONCE, Reader, STDERR_ERROR, WireError, clean, padding};

impl<R: Read> Reader<R> {
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

    use super::{
        super::wire::{put_bytes, put_u64},
        *,
    };

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

    #[test]
    fn a_nar_cut_at_every_byte() {
        let bytes = nar(&[
            b"nix-archive-1",
            b"(",
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b"a",
            b"node",
            b"(",
            b"type",
            b"regular",
            b"contents",
            b"some contents",
            b")",
            b")",
            b")",
        ]);
        for cut in 0..bytes.len() {
            let mut out = Vec::new();
            let short = Reader::new(&bytes[..cut]).copy_nar(35, bytes.len() as u64, &mut out);
            assert!(matches!(short, Err(WireError::Closed)), "{cut}: {short:?}");
            assert!(out.len() <= cut && bytes.starts_with(&out), "{cut}");
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
