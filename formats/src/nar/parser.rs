//! The parser: bytes are pushed in, events come out. Reads from nothing and collects nothing: file contents pass through
//! as slices of the input, and only a field that the end of a chunk cuts is buffered (at most 8 + 4096 bytes).

use super::{MAGIC, MAX_FILE, MAX_NAME, MAX_TARGET, NarError, NarErrorKind, OpenDirectories, Visitor};
use crate::store_path::shown;

/// Bytes of a length prefix, and the multiple to which fields are padded.
const WORD: usize = 8;
/// Longest field that is neither a name, a target nor contents.
const MAX_TAG: usize = MAGIC.len();

/// A NAR being read. Feed it chunks cut anywhere, then [`finish`](Self::finish).
#[derive(Debug, Default)]
pub struct Parser {
    fields: Fields,
    state: State,
    /// Whether the file whose contents come next is executable.
    executable: bool,
    open: OpenDirectories,
    failed: Option<NarError>,
}

/// What comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Magic,
    NodeOpen,
    TypeKey,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsKey,
    Size,
    Contents {
        left: u64,
        padding: u8,
    },
    Padding {
        left: u8,
    },
    TargetKey,
    Target,
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    Done,
}

impl Parser {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of bytes accepted so far.
    pub fn offset(&self) -> u64 {
        self.fields.offset + self.fields.pending() as u64
    }

    /// Reads the next bytes of the NAR. After an error the parser is of no further use: every call returns that error.
    pub fn feed(&mut self, input: &[u8], visitor: &mut impl Visitor) -> Result<(), NarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.run(input, visitor);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Says that no more bytes come: an error unless the root node is complete.
    pub fn finish(&self) -> Result<(), NarError> {
        match (&self.failed, self.state) {
            (Some(error), _) => Err(error.clone()),
            (None, State::Done) => Ok(()),
            (None, _) => Err(NarError { offset: self.offset(), kind: NarErrorKind::Truncated }),
        }
    }

    fn run(&mut self, mut input: &[u8], visitor: &mut impl Visitor) -> Result<(), NarError> {
        loop {
            match self.state {
                State::Done if input.is_empty() => return Ok(()),
                State::Done => {
                    return Err(NarError { offset: self.fields.offset, kind: NarErrorKind::TrailingBytes });
                }
                State::Size => {
                    let Some(size) = self.fields.file_size(&mut input)? else { return Ok(()) };
                    visitor.file(self.open.name(), self.executable, size, self.fields.offset);
                    self.executable = false;
                    let padding = (size.next_multiple_of(WORD as u64) - size) as u8;
                    self.state = State::Contents { left: size, padding };
                }
                State::Contents { left: 0, padding } => {
                    visitor.end_file();
                    self.state = State::Padding { left: padding };
                }
                State::Contents { left, padding } => {
                    if input.is_empty() {
                        return Ok(());
                    }
                    // fits: at most the input's length
                    let (bytes, rest) = input.split_at(left.min(input.len() as u64) as usize);
                    visitor.contents(bytes);
                    self.fields.offset += bytes.len() as u64;
                    input = rest;
                    self.state = State::Contents { left: left - bytes.len() as u64, padding };
                }
                State::Padding { left: 0 } => self.state = State::NodeClose,
                State::Padding { left } => {
                    let (bytes, rest) = input.split_at(input.len().min(usize::from(left)));
                    if bytes.is_empty() {
                        return Ok(());
                    }
                    check_padding(bytes, self.fields.offset)?;
                    self.fields.offset += bytes.len() as u64;
                    input = rest;
                    self.state = State::Padding { left: left - bytes.len() as u8 };
                }
                state => {
                    let Some((start, field)) = self.fields.string(&mut input, state)? else { return Ok(()) };
                    self.state = step(state, field, &mut self.executable, &mut self.open, visitor)
                        .map_err(|kind| NarError { offset: start, kind })?;
                }
            }
        }
    }
}

/// What follows the field in this state. The order is that of Nix's writer and admits no other.
fn step(
    state: State,
    field: &[u8],
    executable: &mut bool,
    open: &mut OpenDirectories,
    visitor: &mut impl Visitor,
) -> Result<State, NarErrorKind> {
    let after_node = |open: &OpenDirectories| if open.is_empty() { State::Done } else { State::EntryClose };
    Ok(match (state, field) {
        (State::Magic, MAGIC) => State::NodeOpen,
        (State::NodeOpen, b"(") => State::TypeKey,
        (State::TypeKey, b"type") => State::Type,
        (State::Type, b"regular") => State::ExecutableOrContents,
        (State::Type, b"symlink") => State::TargetKey,
        (State::Type, b"directory") => {
            open.check_depth()?;
            // before the name of the directory is hidden by those of its entries
            visitor.directory(open.name());
            open.open()?;
            State::EntryOrClose
        }
        (State::ExecutableOrContents, b"executable") => State::ExecutableValue,
        (State::ExecutableValue, b"") => {
            *executable = true;
            State::ContentsKey
        }
        (State::ExecutableOrContents | State::ContentsKey, b"contents") => State::Size,
        (State::TargetKey, b"target") => State::Target,
        (State::Target, target) => {
            super::check_target(target)?;
            visitor.symlink(open.name(), target);
            State::NodeClose
        }
        (State::NodeClose, b")") => after_node(open),
        (State::EntryOrClose, b"entry") => State::EntryOpen,
        (State::EntryOrClose, b")") => {
            visitor.end_directory();
            open.close();
            after_node(open)
        }
        (State::EntryOpen, b"(") => State::NameKey,
        (State::NameKey, b"name") => State::Name,
        (State::Name, name) => {
            open.next_name(name)?;
            State::NodeKey
        }
        (State::NodeKey, b"node") => State::NodeOpen,
        (State::EntryClose, b")") => State::EntryOrClose,
        (state, found) => {
            return Err(NarErrorKind::Unexpected { expected: expected(state), found: shown(found) });
        }
    })
}

/// What belongs in this state, for messages.
const fn expected(state: State) -> &'static str {
    match state {
        State::Magic => "the magic `nix-archive-1`",
        State::NodeOpen | State::EntryOpen => "`(`",
        State::TypeKey => "`type`",
        State::Type => "`regular`, `directory` or `symlink`",
        State::ExecutableOrContents => "`executable` or `contents`",
        State::ExecutableValue => "the empty value of `executable`",
        State::ContentsKey => "`contents`",
        State::TargetKey => "`target`",
        State::Target => "a link's target",
        State::NodeClose | State::EntryClose => "`)`",
        State::EntryOrClose => "`entry` or `)`",
        State::NameKey => "`name`",
        State::Name => "a name",
        State::NodeKey => "`node`",
        State::Size | State::Contents { .. } => "a file's contents",
        State::Padding { .. } => "padding",
        State::Done => "the end",
    }
}

/// Cuts the input into fields: length (64 bits, little endian), bytes, zeros up to a multiple of eight.
#[derive(Debug, Default)]
struct Fields {
    /// Bytes from the start of the NAR to the first one that no whole field was made of.
    offset: u64,
    /// Start of a field that the chunks so far have cut.
    partial: Vec<u8>,
    /// Whether `partial` was handed out already, and is to be dropped before the next field.
    spent: bool,
}

impl Fields {
    fn pending(&self) -> usize {
        if self.spent { 0 } else { self.partial.len() }
    }

    /// The next field and where it starts, or `None` if the input ends before it does. The length is checked as soon as
    /// it is there, before anything is buffered.
    #[inline]
    fn string<'a, 'input: 'a>(
        &'a mut self,
        input: &mut &'input [u8],
        state: State,
    ) -> Result<Option<(u64, &'a [u8])>, NarError> {
        let start = self.offset;
        if self.pending() == 0
            && let Some(head) = input.first_chunk::<WORD>()
        {
            let (length, total) = field_length(*head, state, start)?;
            if let Some((field, rest)) = input.split_at_checked(total) {
                *input = rest;
                self.offset += total as u64;
                check_padding(&field[WORD + length..], start + (WORD + length) as u64)?;
                return Ok(Some((start, &field[WORD..WORD + length])));
            }
        }
        self.string_cut(input, state)
    }

    fn string_cut<'a>(
        &'a mut self,
        input: &mut &[u8],
        state: State,
    ) -> Result<Option<(u64, &'a [u8])>, NarError> {
        let start = self.offset;
        let Some(head) = self.buffer(input, WORD).and_then(|b| b.first_chunk().copied()) else {
            return Ok(None);
        };
        let (length, total) = field_length(head, state, start)?;
        if self.buffer(input, total).is_none() {
            return Ok(None);
        }
        self.offset += total as u64;
        self.spent = true;
        check_padding(&self.partial[WORD + length..], start + (WORD + length) as u64)?;
        Ok(Some((start, &self.partial[WORD..WORD + length])))
    }

    /// The length of a file's contents, which follow it.
    fn file_size(&mut self, input: &mut &[u8]) -> Result<Option<u64>, NarError> {
        let Some(head) = self.buffer(input, WORD).and_then(|b| b.first_chunk().copied()) else {
            return Ok(None);
        };
        let length = u64::from_le_bytes(head);
        if length > MAX_FILE {
            let kind = NarErrorKind::TooLong { what: "a file's contents", length, most: MAX_FILE };
            return Err(NarError { offset: self.offset, kind });
        }
        self.offset += WORD as u64;
        self.spent = true;
        Ok(Some(length))
    }

    /// Moves input into the buffer until it has `total` bytes, if there are so many.
    fn buffer(&mut self, input: &mut &[u8], total: usize) -> Option<&[u8]> {
        if self.spent {
            self.partial.clear();
            self.spent = false;
        }
        let missing = total.saturating_sub(self.partial.len());
        let (bytes, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(bytes);
        *input = rest;
        (self.partial.len() >= total).then_some(&self.partial)
    }
}

/// The length of a field and the bytes that it takes in all.
#[inline]
fn field_length(head: [u8; WORD], state: State, offset: u64) -> Result<(usize, usize), NarError> {
    let most = match state {
        State::Name => MAX_NAME,
        State::Target => MAX_TARGET,
        _ => MAX_TAG,
    };
    super::check_length(expected(state), u64::from_le_bytes(head), most)
        .map_err(|kind| NarError { offset, kind })?;
    // fits: not more than `most`
    let length = u64::from_le_bytes(head) as usize;
    Ok((length, WORD + length.next_multiple_of(WORD)))
}

#[inline]
fn check_padding(bytes: &[u8], offset: u64) -> Result<(), NarError> {
    match bytes.iter().position(|b| *b != 0) {
        None => Ok(()),
        Some(i) => Err(NarError { offset: offset + i as u64, kind: NarErrorKind::Padding(bytes[i]) }),
    }
}
