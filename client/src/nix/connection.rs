//! A connection to a Nix daemon: how it's reached, on its socket or by starting one for the purpose; the greeting; and
//! the exchange of one question for its answer. Doesn't know what the questions are (`daemon.rs` does).

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use pushgate_formats::StorePath;

use super::{
    Reach,
    wire::{Reader, WireError, clean, put_u64},
};

const MAGIC_OURS: u64 = 0x6e69_7863;
pub(super) const MAGIC_THEIRS: u64 = 0x6478_696f;
/// The newest minor version of protocol 1 that is spoken here, and the oldest (Nix 2.3).
pub(super) const NEWEST: u64 = 35;
pub(super) const OLDEST: u64 = 21;

/// Longest text of one line in an answer, far beyond what a store has.
pub(super) const MAX_LINE: u64 = 64 << 10;
/// What is kept of the complaints of a daemon that was started here.
const STDERR_TAIL: usize = 4096;
/// Where Nix's programs are when `PATH` doesn't have them, as under a service manager or in a hook.
const OTHER_BIN_DIRS: [&str; 2] = ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin"];

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("`nix-daemon` not found; install Nix, or add the directory of its programs to PATH")]
    NoNix,
    #[error("`{program}` can't be started")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("nobody answers at the Nix daemon's socket `{path}`; start nix-daemon")]
    NoDaemon {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the Nix daemon's socket `{path}` is closed to this user; ask to be let in (`allowed-users`, or its group)"
    )]
    Forbidden {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("what answers isn't a Nix daemon: it greets with `{0:#x}`")]
    NotADaemon(u64),
    #[error(
        "the Nix daemon speaks protocol `{}.{}`; at least 1.{OLDEST} is needed (Nix 2.3)", .0 >> 8, .0 & 0xff
    )]
    Version(u64),
    /// The daemon's own words. The connection is still good, unless they came in the midst of a NAR.
    #[error("the Nix daemon refuses {operation}: {message}")]
    Refused { operation: &'static str, message: String },
    #[error("the Nix daemon went away during {operation}{}{said}", if .said.is_empty() { "" } else { ": " })]
    Closed { operation: &'static str, said: String },
    #[error("the Nix daemon's answer to {operation} can't be used")]
    Answer {
        operation: &'static str,
        #[source]
        source: WireError,
    },
    #[error("the NAR of `{path}` has {got} bytes and should have {want}; `nix-store --verify-path` it")]
    NarSize { path: StorePath, got: u64, want: u64 },
    #[error("the NAR of `{path}` can't be passed on")]
    Sink {
        path: StorePath,
        #[source]
        source: io::Error,
    },
    #[error("the connection to the Nix daemon failed before; connect again")]
    Broken,
}

/// An operation: its number on the wire and its name in messages.
#[derive(Clone, Copy)]
pub(super) struct Op(pub(super) u64, pub(super) &'static str);

const HANDSHAKE: Op = Op(0, "the handshake");

/// The other end.
pub(super) enum Peer {
    Socket(UnixStream),
    Child { child: Child, stderr: mpsc::Receiver<String> },
}

impl Peer {
    /// Makes every read and write on the connection end, also one that another thread waits in.
    pub(super) fn abort(&mut self) {
        // either fails only where there is nothing left to end
        match self {
            Self::Socket(stream) => drop(stream.shutdown(Shutdown::Both)),
            Self::Child { child, .. } => drop(child.kill()),
        }
    }

    /// What a daemon that has gone away said on its standard error.
    fn last_words(&mut self) -> String {
        match self {
            Self::Socket(_) => String::new(),
            // it comes at once, unless a child of the daemon's keeps the pipe open
            Self::Child { stderr, .. } => stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default(),
        }
    }
}

/// A connection that has been greeted.
pub(super) struct Connection {
    // Declared, and so dropped, first: a daemon started here ends when its input does.
    pub(super) to: Option<Box<dyn Write + Send>>,
    pub(super) from: Reader<Box<dyn Read + Send>>,
    pub(super) peer: Peer,
    pub(super) minor: u64,
    pub(super) nix_version: Option<String>,
    pub(super) trusts_us: Option<bool>,
    /// Set while an answer is read: when reading fails, nobody knows where the next one starts.
    pub(super) broken: bool,
}

impl Connection {
    /// Connects to the daemon of a store, or starts one.
    pub(super) fn open(reach: &Reach) -> Result<Self, StoreError> {
        match reach {
            Reach::Spawn { uri } => {
                Self::spawn(|command| command.arg("--store").arg(uri).env_remove("NIX_REMOTE"))
            }
            Reach::Socket { path, or_spawn } => match UnixStream::connect(path) {
                Ok(stream) => Self::over(stream),
                Err(source) => match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Err(StoreError::Forbidden { path: path.clone(), source })
                    }
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if *or_spawn => {
                        Self::spawn(|command| command)
                    }
                    _ => Err(StoreError::NoDaemon { path: path.clone(), source }),
                },
            },
        }
    }

    /// Talks over a connected socket.
    pub(super) fn over(stream: UnixStream) -> Result<Self, StoreError> {
        let clone = || {
            stream.try_clone().map_err(|source| StoreError::Answer {
                operation: HANDSHAKE.1,
                source: WireError::Io(source),
            })
        };
        let (to, from) = (clone()?, clone()?);
        Self::greet(Box::new(to), Box::new(from), Peer::Socket(stream))
    }

    fn spawn(adjust: impl Fn(&mut Command) -> &mut Command) -> Result<Self, StoreError> {
        let start = |program: &Path| {
            let mut command = Command::new(program);
            command.arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            // In a build hook this holds all settings, access tokens too. The daemon needs none of them to answer
            // questions about its own store, and would quote a bad line in the error that is shown.
            command.env_remove("NIX_CONFIG");
            adjust(&mut command).spawn()
        };
        let programs = std::iter::once(PathBuf::from("nix-daemon"))
            .chain(OTHER_BIN_DIRS.map(|dir| Path::new(dir).join("nix-daemon")));
        for program in programs {
            let mut child = match start(&program) {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let program = program.to_string_lossy().into_owned();
                    return Err(StoreError::Spawn { program, source });
                }
            };
            // each was asked for as a pipe just above
            let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            let stderr = tail_of(child.stderr.take().expect("piped"));
            return Self::greet(Box::new(to), Box::new(from), Peer::Child { child, stderr });
        }
        Err(StoreError::NoNix)
    }

    fn greet(to: Box<dyn Write + Send>, from: Box<dyn Read + Send>, peer: Peer) -> Result<Self, StoreError> {
        let mut connection = Self {
            to: Some(to),
            from: Reader::new(from),
            peer,
            minor: 0,
            nix_version: None,
            trusts_us: None,
            broken: true,
        };
        let mut hello = Vec::new();
        put_u64(&mut hello, MAGIC_OURS);
        connection.send(HANDSHAKE, &hello)?;
        let magic = connection.from.u64().map_err(|e| connection.failed(HANDSHAKE, e))?;
        if magic != MAGIC_THEIRS {
            return Err(StoreError::NotADaemon(magic));
        }
        let theirs = connection.from.u64().map_err(|e| connection.failed(HANDSHAKE, e))?;
        if theirs >> 8 != 1 || theirs & 0xff < OLDEST {
            return Err(StoreError::Version(theirs));
        }
        connection.minor = NEWEST.min(theirs & 0xff);
        hello.clear();
        put_u64(&mut hello, 1 << 8 | NEWEST);
        put_u64(&mut hello, 0); // no wish for a processor
        put_u64(&mut hello, 0); // obsolete: reserve space
        connection.send(HANDSHAKE, &hello)?;
        connection.read_greeting().map_err(|e| connection.failed(HANDSHAKE, e))?;
        connection.answer_follows(HANDSHAKE)?;
        connection.broken = false;
        Ok(connection)
    }

    fn read_greeting(&mut self) -> Result<(), WireError> {
        if self.minor >= 33 {
            let version = self.from.bytes("the version of Nix", MAX_LINE)?;
            self.nix_version = Some(clean(version));
        }
        if self.minor >= 35 {
            self.trusts_us = match self.from.u64()? {
                0 => None,
                1 => Some(true),
                2 => Some(false),
                other => {
                    return Err(WireError::Unexpected {
                        what: "the trust flag",
                        got: other.to_string(),
                        want: "`0`, `1` or `2`",
                    });
                }
            };
        }
        Ok(())
    }

    /// One question and its answer.
    pub(super) fn ask<T>(
        &mut self,
        op: Op,
        put: impl FnOnce(&mut Vec<u8>),
        read: impl FnOnce(&mut Reader<Box<dyn Read + Send>>) -> Result<T, WireError>,
    ) -> Result<T, StoreError> {
        self.check_usable()?;
        self.broken = true;
        let mut request = Vec::new();
        put_u64(&mut request, op.0);
        put(&mut request);
        self.send(op, &request)?;
        self.answer_follows(op)?;
        let answer = read(&mut self.from).map(Ok);
        self.received(op, answer)
    }

    pub(super) fn check_usable(&self) -> Result<(), StoreError> {
        if self.broken { Err(StoreError::Broken) } else { Ok(()) }
    }

    pub(super) fn send(&mut self, op: Op, request: &[u8]) -> Result<(), StoreError> {
        // taken only on drop
        let to = self.to.as_mut().expect("connected");
        to.write_all(request).and_then(|()| to.flush()).map_err(|error| self.failed(op, error.into()))
    }

    /// Reads the messages before an answer.
    pub(super) fn answer_follows(&mut self, op: Op) -> Result<(), StoreError> {
        match self.from.until_answer(self.minor) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => self.received(op, Ok(Err(message))),
            Err(error) => Err(self.failed(op, error)),
        }
    }

    /// The connection is in order again when the answer was read whole, be it a refusal.
    pub(super) fn received<T>(
        &mut self,
        op: Op,
        answer: Result<Result<T, String>, WireError>,
    ) -> Result<T, StoreError> {
        let answer = answer.map_err(|error| self.failed(op, error))?;
        self.broken = false;
        answer.map_err(|message| StoreError::Refused { operation: op.1, message })
    }

    pub(super) fn failed(&mut self, op: Op, error: WireError) -> StoreError {
        match error {
            WireError::Closed => StoreError::Closed { operation: op.1, said: self.peer.last_words() },
            source => StoreError::Answer { operation: op.1, source },
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.to = None;
        if self.broken {
            self.peer.abort();
        }
        if let Peer::Child { child, .. } = &mut self.peer {
            // It is dead, or reads the end of its input where it waits for the next operation.
            let _ = child.wait();
        }
    }
}

/// Reads a daemon's standard error to its end, so that it never waits, and then hands over the last of it.
fn tail_of(mut stderr: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut tail = Vec::new();
        let mut buf = [0; 1024];
        while let Ok(n @ 1..) = stderr.read(&mut buf) {
            tail.extend_from_slice(&buf[..n]);
            if tail.len() > 2 * STDERR_TAIL {
                tail.drain(..tail.len() - STDERR_TAIL);
            }
        }
        // fails when nobody waits any more
        let _ = send.send(clean(&tail[tail.len().saturating_sub(STDERR_TAIL)..]));
    });
    receive
}
