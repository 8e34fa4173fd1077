//! Turns the parser round: it pushes events, and a walk over two NARs must be able to wait on either side. One chunk is
//! read at a time and only when all events of the one before are used up, so that the queue is bounded by the chunk.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
};

use super::{DifferenceError, Side};
use crate::nar::{Parser, Visitor};

/// Bytes read at once. A field takes at least 16 of them, so that there are never more than 4096 events.
const CHUNK: usize = 64 * 1024;

/// Text and contents are places in [`Queue::bytes`].
#[derive(Debug, Clone)]
pub(super) enum Event {
    Node(Option<Range<usize>>, Node),
    Contents(Range<usize>),
    EndDirectory,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Directory,
    File { executable: bool, size: u64 },
    Symlink(Range<usize>),
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// The names, targets and contents of one chunk.
    bytes: Vec<u8>,
}

impl Queue {
    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    fn node(&mut self, name: Option<&[u8]>, node: Node) {
        let name = name.map(|name| self.keep(name));
        self.events.push_back(Event::Node(name, node));
    }
}

impl Visitor for Queue {
    fn directory(&mut self, name: Option<&[u8]>) {
        self.node(name, Node::Directory);
    }

    fn end_directory(&mut self) {
        self.events.push_back(Event::EndDirectory);
    }

    fn file(&mut self, name: Option<&[u8]>, executable: bool, size: u64, _offset: u64) {
        self.node(name, Node::File { executable, size });
    }

    fn contents(&mut self, bytes: &[u8]) {
        let range = self.keep(bytes);
        self.events.push_back(Event::Contents(range));
    }

    fn symlink(&mut self, name: Option<&[u8]>, target: &[u8]) {
        let target = self.keep(target);
        self.node(name, Node::Symlink(target));
    }
}

/// One NAR, an event at a time.
#[derive(Debug)]
pub(super) struct Pull<R> {
    side: Side,
    reader: R,
    parser: Parser,
    chunk: Vec<u8>,
    queue: Queue,
}

impl<R: Read> Pull<R> {
    pub(super) fn new(side: Side, reader: R) -> Self {
        Self { side, reader, parser: Parser::new(), chunk: vec![0; CHUNK], queue: Queue::default() }
    }

    /// The next event; `None` at the end of a NAR that was well-formed to its end. The places in an event hold until
    /// the next call after [`next`](Self::next) took the last event.
    pub(super) fn peek(&mut self) -> Result<Option<Event>, DifferenceError> {
        let side = self.side;
        while self.queue.events.is_empty() {
            let read = match self.reader.read(&mut self.chunk) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(DifferenceError::Read { side, source }),
            };
            let malformed = |source| DifferenceError::Malformed { side, source };
            if read == 0 {
                self.parser.finish().map_err(malformed)?;
                return Ok(None);
            }
            self.queue.bytes.clear();
            self.parser.feed(&self.chunk[..read], &mut self.queue).map_err(malformed)?;
        }
        Ok(self.queue.events.front().cloned())
    }

    pub(super) fn next(&mut self) -> Result<Option<Event>, DifferenceError> {
        let next = self.peek()?;
        self.queue.events.pop_front();
        Ok(next)
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.queue.bytes[range]
    }

    /// The next bytes of a file's contents; empty at its end.
    pub(super) fn contents(&mut self) -> Result<&[u8], DifferenceError> {
        match self.peek()? {
            Some(Event::Contents(range)) => Ok(&self.queue.bytes[range]),
            _ => Ok(&[]),
        }
    }

    /// Takes so many of the bytes that [`contents`](Self::contents) gave.
    pub(super) fn used(&mut self, count: usize) {
        if let Some(Event::Contents(range)) = self.queue.events.front_mut() {
            range.start += count;
            if range.start == range.end {
                self.queue.events.pop_front();
            }
        }
    }

    /// Passes over what is left of a file.
    pub(super) fn skip_contents(&mut self) -> Result<(), DifferenceError> {
        while let Some(Event::Contents(_)) = self.peek()? {
            self.queue.events.pop_front();
        }
        Ok(())
    }

    /// Passes over what follows a node that was taken, and says how many nodes were in it.
    pub(super) fn skip_node(&mut self, node: &Node) -> Result<u64, DifferenceError> {
        let (mut depth, mut entries) = (0u32, 0u64);
        match node {
            Node::Directory => depth = 1,
            Node::File { .. } => self.skip_contents()?,
            Node::Symlink(_) => {}
        }
        while depth > 0 {
            match self.next()? {
                Some(Event::Node(_, node)) => {
                    entries = entries.saturating_add(1);
                    if matches!(node, Node::Directory) {
                        // at most `MAX_DEPTH`
                        depth += 1;
                    }
                }
                Some(Event::EndDirectory) => depth -= 1,
                Some(Event::Contents(_)) => {}
                // the parser ends well only when all directories are closed
                None => break,
            }
        }
        Ok(entries)
    }
}
