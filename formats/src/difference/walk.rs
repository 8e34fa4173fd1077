//! The walk over two NARs in step. Names in a NAR are in the order of their bytes, so that what one side lacks shows
//! when the other's next name comes before its own.

use std::{cmp::Ordering, io::Read, ops::Range};

use super::{
    DifferenceError, Entry, EntryType, FileDifference, Kind, Report, Side, WINDOW_AFTER, WINDOW_BEFORE,
    Window,
    list::List,
    pull::{Event, Node, Pull},
    text,
};

/// Compares two uncompressed NARs, each read once to its end. Nothing is reported unless both are well-formed.
///
/// ```
/// # use pushgate_formats::{difference::{Kind, compare}, nar::Writer};
/// let nar = |contents: &[u8]| {
///     let mut out = Writer::new(Vec::new());
///     out.file_from(false, contents.len() as u64, &mut &contents[..]).unwrap();
///     out.finish().unwrap()
/// };
/// let report = compare(nar(b"built at noon").as_slice(), nar(b"built at nine").as_slice()).unwrap();
/// assert_eq!(report.files[0].kind, Kind::Contents);
/// assert_eq!(report.files[0].first_offset, Some(10));
/// ```
pub fn compare(claimed: impl Read, rebuilt: impl Read) -> Result<Report, DifferenceError> {
    let mut walk = Walk {
        claimed: Pull::new(Side::Claimed, claimed),
        rebuilt: Pull::new(Side::Rebuilt, rebuilt),
        path: Vec::new(),
        list: List::default(),
    };
    while walk.step()? {}
    Ok(walk.list.finish())
}

struct Walk<A, B> {
    claimed: Pull<A>,
    rebuilt: Pull<B>,
    /// The directory that both are in; at most `MAX_DEPTH` names of `MAX_NAME` bytes.
    path: Vec<u8>,
    list: List,
}

/// Where the first difference of two files is, and what stands there.
struct First {
    offset: u64,
    window: Window,
}

impl<A: Read, B: Read> Walk<A, B> {
    /// Goes on by one entry, at which both are in the same directory. False at the end.
    fn step(&mut self) -> Result<bool, DifferenceError> {
        match (self.claimed.peek()?, self.rebuilt.peek()?) {
            (Some(Event::Node(a, claimed)), Some(Event::Node(b, rebuilt))) => {
                // the root has no name, on neither side
                let a = a.map_or(&[][..], |name| self.claimed.bytes(name));
                let b = b.map_or(&[][..], |name| self.rebuilt.bytes(name));
                match a.cmp(b) {
                    Ordering::Less => self.removed()?,
                    Ordering::Greater => self.added()?,
                    Ordering::Equal => {
                        let outer = enter(&mut self.path, a);
                        if self.both(&claimed, &rebuilt)? {
                            // its entries follow
                            return Ok(true);
                        }
                        self.path.truncate(outer);
                    }
                }
            }
            (Some(Event::Node(..)), _) => self.removed()?,
            (_, Some(Event::Node(..))) => self.added()?,
            (Some(Event::EndDirectory), Some(Event::EndDirectory)) => {
                self.claimed.next()?;
                self.rebuilt.next()?;
                self.path.truncate(self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            }
            // each NAR has one root, and the contents of files are taken with the file: both have ended
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn removed(&mut self) -> Result<(), DifferenceError> {
        let (path, entry) = only(&mut self.claimed, &mut self.path)?;
        self.list.differs(difference(path, Kind::Removed, Some(entry), None));
        Ok(())
    }

    fn added(&mut self) -> Result<(), DifferenceError> {
        let (path, entry) = only(&mut self.rebuilt, &mut self.path)?;
        self.list.differs(difference(path, Kind::Added, None, Some(entry)));
        Ok(())
    }

    /// Takes the node of both sides at the path. Whether it is a directory of both, which is then open.
    fn both(&mut self, claimed: &Node, rebuilt: &Node) -> Result<bool, DifferenceError> {
        let kind = match (claimed, rebuilt) {
            (Node::Directory, Node::Directory) => {
                self.claimed.next()?;
                self.rebuilt.next()?;
                self.list.same();
                return Ok(true);
            }
            (Node::File { executable: x, size: m }, Node::File { executable: y, size: n }) => {
                self.files((*x, *m), (*y, *n))?;
                return Ok(false);
            }
            (Node::Symlink(a), Node::Symlink(b)) => {
                let same = self.claimed.bytes(a.clone()) == self.rebuilt.bytes(b.clone());
                (!same).then_some(Kind::Target)
            }
            _ => Some(Kind::Type),
        };
        let (claimed, rebuilt) = (taken(&mut self.claimed)?, taken(&mut self.rebuilt)?);
        match kind {
            Some(kind) => {
                let path = text::name(&self.path);
                self.list.differs(difference(path, kind, Some(claimed), Some(rebuilt)));
            }
            None => self.list.same(),
        }
        Ok(false)
    }

    /// Takes a file of both sides, each given by whether it is executable and its size.
    fn files(&mut self, (x, m): (bool, u64), (y, n): (bool, u64)) -> Result<(), DifferenceError> {
        self.claimed.next()?;
        self.rebuilt.next()?;
        let first = self.first_difference()?;
        let kind = match &first {
            Some(_) if m != n => Kind::Size,
            Some(_) => Kind::Contents,
            None if x != y => Kind::Mode,
            None => {
                self.list.same();
                return Ok(());
            }
        };
        let found = difference(text::name(&self.path), kind, Some(file(x, m)), Some(file(y, n)));
        let (first_offset, window) = first.map(|first| (first.offset, first.window)).unzip();
        self.list.differs(FileDifference { first_offset, window, ..found });
        Ok(())
    }

    /// Reads both files to their ends.
    fn first_difference(&mut self) -> Result<Option<First>, DifferenceError> {
        let (mut offset, mut before) = (0u64, Vec::with_capacity(2 * WINDOW_BEFORE));
        loop {
            let (a, b) = (self.claimed.contents()?, self.rebuilt.contents()?);
            let common = a.len().min(b.len());
            let (a, b) = (&a[..common], &b[..common]);
            let same = if a == b { common } else { a.iter().zip(b).take_while(|(x, y)| x == y).count() };
            // the last of them, for the window
            before.extend_from_slice(&a[same.saturating_sub(WINDOW_BEFORE)..same]);
            before.drain(..before.len().saturating_sub(WINDOW_BEFORE));
            offset += same as u64;
            self.claimed.used(same);
            self.rebuilt.used(same);
            if same < common || common == 0 {
                break;
            }
        }
        let (claimed, rebuilt) = (rest(&mut self.claimed)?, rest(&mut self.rebuilt)?);
        if claimed.is_empty() && rebuilt.is_empty() {
            return Ok(None);
        }
        Ok(Some(First { offset, window: text::window(offset, &before, &claimed, &rebuilt) }))
    }
}

/// The next bytes of a file, as many as a window shows; the rest is passed over.
fn rest<R: Read>(pull: &mut Pull<R>) -> Result<Vec<u8>, DifferenceError> {
    let mut out = Vec::with_capacity(WINDOW_AFTER);
    while out.len() < WINDOW_AFTER {
        let bytes = pull.contents()?;
        let count = bytes.len().min(WINDOW_AFTER - out.len());
        if count == 0 {
            break;
        }
        out.extend_from_slice(&bytes[..count]);
        pull.used(count);
    }
    pull.skip_contents()?;
    Ok(out)
}

/// Goes into a directory, and says how long the path was before.
fn enter(path: &mut Vec<u8>, name: &[u8]) -> usize {
    let outer = path.len();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    outer
}

/// Takes the next node, which the other side lacks, with all that is in it.
fn only<R: Read>(pull: &mut Pull<R>, path: &mut Vec<u8>) -> Result<((String, bool), Entry), DifferenceError> {
    let name = match pull.peek()? {
        Some(Event::Node(Some(name), _)) => name,
        _ => Range::default(),
    };
    let outer = enter(path, pull.bytes(name));
    let shown = text::name(path);
    path.truncate(outer);
    Ok((shown, taken(pull)?))
}

/// Takes the next node with all that is in it.
fn taken<R: Read>(pull: &mut Pull<R>) -> Result<Entry, DifferenceError> {
    let Some(Event::Node(_, node)) = pull.next()? else {
        // the callers have seen that a node comes
        unreachable!("a node was seen to be next")
    };
    let mut entry = match &node {
        Node::Directory => plain(EntryType::Directory),
        Node::File { executable, size } => file(*executable, *size),
        Node::Symlink(target) => {
            let target = Some(text::name(pull.bytes(target.clone())).0);
            Entry { target, ..plain(EntryType::Symlink) }
        }
    };
    let entries = pull.skip_node(&node)?;
    if entry.r#type == EntryType::Directory {
        entry.entries = Some(entries);
    }
    Ok(entry)
}

const fn plain(r#type: EntryType) -> Entry {
    Entry { r#type, size: None, executable: false, target: None, entries: None }
}

fn file(executable: bool, size: u64) -> Entry {
    Entry { size: Some(size), executable, ..plain(EntryType::Regular) }
}

fn difference(
    (path, path_cut): (String, bool),
    kind: Kind,
    claimed: Option<Entry>,
    rebuilt: Option<Entry>,
) -> FileDifference {
    FileDifference { path, path_cut, kind, claimed, rebuilt, first_offset: None, window: None }
}
