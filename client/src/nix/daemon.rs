//! A connection to the Nix daemon, and the few operations that pushing and checking need: all of them only ask, but for
//! the temporary root. The other end is `nix-daemon` on its socket or one started for the purpose. Doesn't know what
//! the answers are for, and doesn't verify a NAR's hash: the server does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use pushgate_formats::{Sha256, StorePath, hash::hex_decode};

use super::{
    Reach, StoreLocation,
    wire::{Reader, WireError, clean, put_path, put_u64},
};

const MAGIC_OURS: u64 = 0x6e69_7863;
const MAGIC_THEIRS: u64 = 0x6478_696f;
/// The newest minor version of protocol 1 that is spoken here, and the oldest (Nix 2.3).
const NEWEST: u64 = 35;
const OLDEST: u64 = 21;

/// Bounds of answers, far beyond what a store has.
const MAX_REFERENCES: u64 = 1 << 20;
const MAX_SIGNATURES: u64 = 4096;
const MAX_OUTPUTS: u64 = 1 << 16;
const MAX_LINE: u64 = 64 << 10;
/// Paths in one question for validity.
const VALID_PATHS_AT_ONCE: usize = 4096;
/// A pipe takes at least this much before a writer has to wait, even with the kernel short of pipe memory: requests of
/// this size need no thread of their own.
const SURELY_BUFFERED: usize = 4096;
/// Requests are handed to the kernel in pieces of about this size.
const REQUEST_CHUNK: usize = 32 << 10;
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
    /// The daemon's own words. The connection is still good.
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

/// What the daemon knows of a valid path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    pub path: StorePath,
    pub deriver: Option<StorePath>,
    pub nar_hash: Sha256,
    /// With the path itself, where it refers to itself.
    pub references: BTreeSet<StorePath>,
    /// Seconds since 1970.
    pub registration_time: u64,
    pub nar_size: u64,
    /// Built here, not substituted.
    pub ultimate: bool,
    /// `name:base64`, not verified.
    pub signatures: Vec<String>,
    /// The content address as Nix's database has it, not verified.
    pub ca: Option<String>,
}

/// An operation: its number on the wire and its name in messages.
#[derive(Clone, Copy)]
struct Op(u64, &'static str);

const HANDSHAKE: Op = Op(0, "the handshake");
const IS_VALID_PATH: Op = Op(1, "IsValidPath");
const ADD_TEMP_ROOT: Op = Op(11, "AddTempRoot");
const QUERY_PATH_INFO: Op = Op(26, "QueryPathInfo");
const QUERY_VALID_PATHS: Op = Op(31, "QueryValidPaths");
const NAR_FROM_PATH: Op = Op(38, "NarFromPath");
const QUERY_DERIVATION_OUTPUT_MAP: Op = Op(41, "QueryDerivationOutputMap");

/// The other end.
enum Peer {
    Socket(UnixStream),
    Child { child: Child, stderr: mpsc::Receiver<String> },
}

impl Peer {
    /// Makes every read and write on the connection end, also one that another thread waits in.
    fn abort(&mut self) {
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

/// A connection to the Nix daemon.
pub struct Daemon {
    // Declared, and so dropped, first: a daemon started here ends when its input does.
    to: Option<Box<dyn Write + Send>>,
    from: Reader<Box<dyn Read + Send>>,
    peer: Peer,
    location: StoreLocation,
    minor: u64,
    nix_version: Option<String>,
    trusts_us: Option<bool>,
    /// Set while an answer is read: when reading fails, nobody knows where the next one starts.
    broken: bool,
}

impl Daemon {
    /// Connects to the daemon of a store, or starts one.
    pub fn connect(location: &StoreLocation) -> Result<Self, StoreError> {
        match location.reach() {
            Reach::Spawn { uri } => {
                Self::spawn(location, |command| command.arg("--store").arg(uri).env_remove("NIX_REMOTE"))
            }
            Reach::Socket { path, or_spawn } => match UnixStream::connect(path) {
                Ok(stream) => Self::over(location, stream),
                Err(source) => match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Err(StoreError::Forbidden { path: path.clone(), source })
                    }
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if *or_spawn => {
                        Self::spawn(location, |command| command)
                    }
                    _ => Err(StoreError::NoDaemon { path: path.clone(), source }),
                },
            },
        }
    }

    /// Talks over a connected socket.
    fn over(location: &StoreLocation, stream: UnixStream) -> Result<Self, StoreError> {
        let clone = || {
            stream.try_clone().map_err(|source| StoreError::Answer {
                operation: HANDSHAKE.1,
                source: WireError::Io(source),
            })
        };
        let (to, from) = (clone()?, clone()?);
        Self::greet(location, Box::new(to), Box::new(from), Peer::Socket(stream))
    }

    fn spawn(
        location: &StoreLocation,
        adjust: impl Fn(&mut Command) -> &mut Command,
    ) -> Result<Self, StoreError> {
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
            return Self::greet(location, Box::new(to), Box::new(from), Peer::Child { child, stderr });
        }
        Err(StoreError::NoNix)
    }

    fn greet(
        location: &StoreLocation,
        to: Box<dyn Write + Send>,
        from: Box<dyn Read + Send>,
        peer: Peer,
    ) -> Result<Self, StoreError> {
        let mut daemon = Self {
            to: Some(to),
            from: Reader::new(from),
            peer,
            location: location.clone(),
            minor: 0,
            nix_version: None,
            trusts_us: None,
            broken: true,
        };
        let mut hello = Vec::new();
        put_u64(&mut hello, MAGIC_OURS);
        daemon.send(HANDSHAKE, &hello)?;
        let magic = daemon.from.u64().map_err(|e| daemon.failed(HANDSHAKE, e))?;
        if magic != MAGIC_THEIRS {
            return Err(StoreError::NotADaemon(magic));
        }
        let theirs = daemon.from.u64().map_err(|e| daemon.failed(HANDSHAKE, e))?;
        if theirs >> 8 != 1 || theirs & 0xff < OLDEST {
            return Err(StoreError::Version(theirs));
        }
        daemon.minor = NEWEST.min(theirs & 0xff);
        hello.clear();
        put_u64(&mut hello, 1 << 8 | NEWEST);
        put_u64(&mut hello, 0); // no wish for a processor
        put_u64(&mut hello, 0); // obsolete: reserve space
        daemon.send(HANDSHAKE, &hello)?;
        daemon.read_greeting().map_err(|e| daemon.failed(HANDSHAKE, e))?;
        daemon.answer_follows(HANDSHAKE)?;
        daemon.broken = false;
        Ok(daemon)
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

    /// The protocol's minor version that both ends speak: from 21 to 35.
    pub fn protocol_minor(&self) -> u64 {
        self.minor
    }

    /// The daemon's version of Nix, where it says so.
    pub fn nix_version(&self) -> Option<&str> {
        self.nix_version.as_deref()
    }

    /// Whether the daemon trusts this user, where it says so.
    pub fn trusts_us(&self) -> Option<bool> {
        self.trusts_us
    }

    /// The store that this is a daemon of.
    pub fn location(&self) -> &StoreLocation {
        &self.location
    }

    /// Where the files of a path lie.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        self.location.physical(path)
    }

    /// Whether the path is in the store and whole.
    pub fn is_valid(&mut self, path: &StorePath) -> Result<bool, StoreError> {
        self.ask(IS_VALID_PATH, |request| put_path(request, path), |from| from.bool("validity"))
    }

    /// Keeps a path from being collected for as long as this connection lasts.
    pub fn add_temp_root(&mut self, path: &StorePath) -> Result<(), StoreError> {
        self.ask(ADD_TEMP_ROOT, |request| put_path(request, path), |from| from.u64().map(drop))
    }

    /// Those of the paths that are valid. Substitutes nothing.
    pub fn valid_paths<'a>(
        &mut self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>, StoreError> {
        let mut paths: Vec<&StorePath> = paths.into_iter().collect();
        paths.sort_unstable();
        paths.dedup();
        let mut valid = BTreeSet::new();
        for some in paths.chunks(VALID_PATHS_AT_ONCE) {
            let minor = self.minor;
            let put = |request: &mut Vec<u8>| {
                put_u64(request, some.len() as u64);
                some.iter().for_each(|path| put_path(request, path));
                if minor >= 27 {
                    put_u64(request, 0); // don't substitute
                }
            };
            self.ask(QUERY_VALID_PATHS, put, |from| {
                for _ in 0..from.count("the valid paths", some.len() as u64)? {
                    let path = from.path("a valid path")?;
                    if some.binary_search(&&path).is_err() {
                        return Err(WireError::Unexpected {
                            what: "a valid path",
                            got: path.to_string(),
                            want: "one of those asked for",
                        });
                    }
                    valid.insert(path);
                }
                Ok(())
            })?;
        }
        Ok(valid)
    }

    /// The outputs of a derivation, by name; `None` where the path isn't known before the build.
    pub fn output_map(
        &mut self,
        derivation: &StorePath,
    ) -> Result<BTreeMap<String, Option<StorePath>>, StoreError> {
        if self.minor < 22 {
            return Err(StoreError::Refused {
                operation: QUERY_DERIVATION_OUTPUT_MAP.1,
                message: format!("protocol 1.{} doesn't have it; use Nix 2.4 or newer", self.minor),
            });
        }
        let put = |request: &mut Vec<u8>| put_path(request, derivation);
        self.ask(QUERY_DERIVATION_OUTPUT_MAP, put, |from| {
            let mut outputs = BTreeMap::new();
            for _ in 0..from.count("the outputs", MAX_OUTPUTS)? {
                let name = from.text("an output's name", MAX_LINE)?.to_owned();
                let path = from.optional_path("an output")?;
                outputs.insert(name, path);
            }
            Ok(outputs)
        })
    }

    /// What the daemon knows of a path, or `None` if it isn't valid.
    pub fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        Ok(self.path_infos(std::slice::from_ref(path))?.pop().flatten())
    }

    /// What the daemon knows of each path, in the same order. The questions are sent while the answers are read, so
    /// that many cost little more than the daemon's own work.
    pub fn path_infos(&mut self, paths: &[StorePath]) -> Result<Vec<Option<PathInfo>>, StoreError> {
        const OP: Op = QUERY_PATH_INFO;
        self.check_usable()?;
        self.broken = true;
        let put = |request: &mut Vec<u8>, path: &StorePath| {
            put_u64(request, OP.0);
            put_path(request, path);
        };

        // a store path has at most 255 bytes
        if paths.len() <= SURELY_BUFFERED / (8 + 8 + 256) {
            let mut request = Vec::new();
            paths.iter().for_each(|path| put(&mut request, path));
            self.send(OP, &request)?;
            let infos = read_path_infos(&mut self.from, self.minor, paths);
            return self.received(OP, infos);
        }

        // The daemon answers as it reads. Once both directions are full, each end would wait for the other to read if
        // this one didn't write and read at the same time.
        let Self { to, from, peer, minor, .. } = self;
        let infos = std::thread::scope(|scope| {
            scope.spawn(|| -> io::Result<()> {
                // taken only on drop
                let to = to.as_mut().expect("connected");
                let mut request = Vec::with_capacity(REQUEST_CHUNK + 512);
                for path in paths {
                    put(&mut request, path);
                    if request.len() >= REQUEST_CHUNK {
                        to.write_all(&request)?;
                        request.clear();
                    }
                }
                // A failure isn't looked at: the answers then end early, which is reported with more to say.
                to.write_all(&request)?;
                to.flush()
            });
            let infos = read_path_infos(from, *minor, paths);
            if infos.is_err() {
                peer.abort();
            }
            infos
        });
        self.received(OP, infos)
    }

    /// Writes the NAR of a path to `out`, and checks that it has the size that it should; not its hash.
    pub fn nar_from_path(&mut self, info: &PathInfo, out: &mut dyn Write) -> Result<(), StoreError> {
        const OP: Op = NAR_FROM_PATH;
        self.check_usable()?;
        self.broken = true;
        let mut request = Vec::new();
        put_u64(&mut request, OP.0);
        put_path(&mut request, &info.path);
        self.send(OP, &request)?;
        self.answer_follows(OP)?;
        match self.from.copy_nar(self.minor, info.nar_size, out) {
            Ok(got) => {
                self.broken = false;
                let (path, want) = (info.path.clone(), info.nar_size);
                if got == want { Ok(()) } else { Err(StoreError::NarSize { path, got, want }) }
            }
            Err(WireError::Sink(source)) => Err(StoreError::Sink { path: info.path.clone(), source }),
            Err(WireError::Refused(message)) => Err(StoreError::Refused { operation: OP.1, message }),
            Err(error) => Err(self.failed(OP, error)),
        }
    }

    /// One question and its answer.
    fn ask<T>(
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

    fn check_usable(&self) -> Result<(), StoreError> {
        if self.broken { Err(StoreError::Broken) } else { Ok(()) }
    }

    fn send(&mut self, op: Op, request: &[u8]) -> Result<(), StoreError> {
        // taken only on drop
        let to = self.to.as_mut().expect("connected");
        to.write_all(request).and_then(|()| to.flush()).map_err(|error| self.failed(op, error.into()))
    }

    /// Reads the messages before an answer.
    fn answer_follows(&mut self, op: Op) -> Result<(), StoreError> {
        match self.from.until_answer(self.minor) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => self.received(op, Ok(Err(message))),
            Err(error) => Err(self.failed(op, error)),
        }
    }

    /// The connection is in order again when the answer was read whole, be it a refusal.
    fn received<T>(&mut self, op: Op, answer: Result<Result<T, String>, WireError>) -> Result<T, StoreError> {
        let answer = answer.map_err(|error| self.failed(op, error))?;
        self.broken = false;
        answer.map_err(|message| StoreError::Refused { operation: op.1, message })
    }

    fn failed(&mut self, op: Op, error: WireError) -> StoreError {
        match error {
            WireError::Closed => StoreError::Closed { operation: op.1, said: self.peer.last_words() },
            source => StoreError::Answer { operation: op.1, source },
        }
    }
}

impl Drop for Daemon {
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

/// Reads the answers to many QueryPathInfo. All are read also when one is a refusal, so that the connection stays good;
/// the first refusal is returned.
fn read_path_infos<R: Read>(
    from: &mut Reader<R>,
    minor: u64,
    paths: &[StorePath],
) -> Result<Result<Vec<Option<PathInfo>>, String>, WireError> {
    let mut refused = None;
    let mut infos = Vec::with_capacity(paths.len());
    for path in paths {
        match from.until_answer(minor)? {
            Ok(()) => infos.push(read_path_info(from, path)?),
            Err(message) => {
                refused.get_or_insert(message);
            }
        }
    }
    Ok(refused.map_or(Ok(infos), Err))
}

fn read_path_info<R: Read>(from: &mut Reader<R>, path: &StorePath) -> Result<Option<PathInfo>, WireError> {
    if !from.bool("validity")? {
        return Ok(None);
    }
    let deriver = from.optional_path("the deriver")?;
    let digits = from.text("the NAR hash", MAX_LINE)?;
    let Some(nar_hash) = hex_decode(digits).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
        return Err(WireError::Unexpected {
            what: "the NAR hash",
            got: clean(digits.as_bytes()),
            want: "64 hexadecimal digits",
        });
    };
    let mut references = BTreeSet::new();
    for _ in 0..from.count("the references", MAX_REFERENCES)? {
        references.insert(from.path("a reference")?);
    }
    let registration_time = from.u64()?;
    let nar_size = from.u64()?;
    let ultimate = from.bool("the mark of what was built here")?;
    let count = from.count("the signatures", MAX_SIGNATURES)?;
    let signatures = (0..count)
        .map(|_| from.text("a signature", MAX_LINE).map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()?;
    let ca = Some(from.text("the content address", MAX_LINE)?.to_owned()).filter(|ca| !ca.is_empty());
    Ok(Some(PathInfo {
        path: path.clone(),
        deriver,
        nar_hash: Sha256(nar_hash),
        references,
        registration_time,
        nar_size,
        ultimate,
        signatures,
        ca,
    }))
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

#[cfg(test)]
impl Daemon {
    /// Makes the store's files look absent.
    pub(super) fn hide_files(&mut self) {
        self.location.store_dir = "/var/empty/hidden".into();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{
        super::{testing::Store, wire::put_bytes},
        *,
    };

    const LAST: u64 = 0x616c_7473;
    const ERROR: u64 = 0x6378_7470;
    const NEXT: u64 = 0x6f6c_6d67;

    fn some_path() -> StorePath {
        StorePath::parse("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x").unwrap()
    }

    fn numbers(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn string(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, text.as_bytes());
        out
    }

    /// A good greeting by protocol 1.35.
    fn greeting() -> Vec<u8> {
        [numbers(&[MAGIC_THEIRS, 1 << 8 | 35]), string("2.99"), numbers(&[1, LAST])].concat()
    }

    /// A daemon that says `says` and hangs up, whatever it is asked.
    fn fake(says: Vec<u8>) -> Result<Daemon, StoreError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut deaf = theirs.try_clone().unwrap();
        std::thread::spawn(move || {
            let _ = theirs.write_all(&says);
            let _ = theirs.shutdown(Shutdown::Write);
        });
        // so that the client's requests are never in the way
        std::thread::spawn(move || io::copy(&mut deaf, &mut io::sink()));
        Daemon::over(&StoreLocation::from_uri("daemon").unwrap(), ours)
    }

    fn fake_answers(says: &[u8]) -> Daemon {
        fake([&greeting()[..], says].concat()).unwrap()
    }

    fn info(size: u64) -> PathInfo {
        PathInfo {
            path: some_path(),
            deriver: None,
            nar_hash: Sha256([0; 32]),
            references: BTreeSet::new(),
            registration_time: 0,
            nar_size: size,
            ultimate: false,
            signatures: Vec::new(),
            ca: None,
        }
    }

    #[test]
    fn asks_the_real_daemon() {
        let Some(store) = Store::new() else { return };
        let a = store.eval("builtins.toFile \"a\" \"contents\"");
        let b = store.eval("builtins.toFile \"b\" \"${builtins.toFile \"a\" \"contents\"}\"");
        let drv = store.instantiate(
            r#"derivation { name = "n"; system = "none"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; }"#,
        );
        let mut daemon = store.daemon();
        assert!((OLDEST..=NEWEST).contains(&daemon.protocol_minor()));
        assert!(daemon.is_valid(&a).unwrap());
        assert!(!daemon.is_valid(&some_path()).unwrap());
        daemon.add_temp_root(&a).unwrap();
        let valid = daemon.valid_paths([&a, &some_path(), &b, &a]).unwrap();
        assert_eq!(valid, BTreeSet::from([a.clone(), b.clone()]));

        let infos = daemon.path_infos(&[b.clone(), some_path(), a.clone(), b.clone()]).unwrap();
        assert_eq!((&infos[1], &infos[0]), (&None, &infos[3]));
        let info = infos[0].as_ref().unwrap();
        assert_eq!(info.references, BTreeSet::from([a.clone()]));
        assert_eq!(info.path, b);
        assert!(info.registration_time > 1_600_000_000);

        let mut nar = Vec::new();
        daemon.nar_from_path(info, &mut nar).unwrap();
        assert_eq!((nar.len() as u64, Sha256::of(&nar)), (info.nar_size, info.nar_hash));
        // a wrong idea of the size leaves the connection in order, or ends it, but never hangs
        let longer = PathInfo { nar_size: info.nar_size + 8, ..info.clone() };
        let got = daemon.nar_from_path(&longer, &mut io::sink());
        assert!(matches!(got, Err(StoreError::NarSize { .. })), "{got:?}");

        let outputs = daemon.output_map(&drv).unwrap();
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
        assert_eq!(outputs["out"].as_ref().unwrap().name(), "n");
        // a refusal is the daemon's own words, and the next question is answered
        let error = daemon.output_map(&some_path()).unwrap_err();
        assert!(
            matches!(&error, StoreError::Refused { message, .. } if message.contains("0mdqa9w1p6")),
            "{error}"
        );
        assert!(daemon.is_valid(&a).unwrap());
        let shorter = PathInfo { nar_size: info.nar_size - 8, ..info.clone() };
        assert!(daemon.nar_from_path(&shorter, &mut io::sink()).is_err());
        assert!(matches!(daemon.is_valid(&a), Err(StoreError::Broken)));
    }

    #[test]
    fn a_path_whose_files_are_gone() {
        let Some(store) = Store::new() else { return };
        let path = store.add_text("text", "text");
        let mut daemon = store.daemon();
        let info = daemon.path_info(&path).unwrap().unwrap();
        std::fs::remove_file(daemon.physical(&path)).unwrap();
        let error = daemon.nar_from_path(&info, &mut io::sink()).unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    }

    #[test]
    fn many_questions_at_once() {
        let Some(store) = Store::new() else { return };
        let path = store.add_text("text", "text");
        // far more than two pipes hold
        let mut paths = vec![some_path(); 20_000];
        (0..paths.len()).step_by(7).for_each(|i| paths[i] = path.clone());
        let mut daemon = store.daemon();
        for _ in 0..2 {
            let infos = daemon.path_infos(&paths).unwrap();
            assert_eq!(infos.len(), paths.len());
            for (i, info) in infos.iter().enumerate() {
                assert_eq!(info.as_ref().map(|i| &i.path), (i % 7 == 0).then_some(&path));
            }
        }
    }

    #[test]
    fn a_daemon_that_cannot_open_its_store_says_why() {
        let Some(store) = Store::new() else { return };
        std::fs::write(store.root(), "a file in the way").unwrap();
        let error = Daemon::connect(&store.location()).err().unwrap();
        assert!(matches!(&error, StoreError::Closed { said, .. } if said.contains("error:")), "{error}");
    }

    #[test]
    fn sockets_where_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("unix://{}", dir.path().join("socket").display());
        let error = Daemon::connect(&StoreLocation::from_uri(&uri).unwrap()).err().unwrap();
        assert!(matches!(error, StoreError::NoDaemon { .. }), "{error}");
    }

    #[test]
    fn reads_the_greeting_of_each_version() {
        for (minor, more, version, trusts) in [
            (21, numbers(&[]), None, None),
            (32, numbers(&[]), None, None),
            (34, string("2.8.0"), Some("2.8.0"), None),
            (35, [string("2.20"), numbers(&[2])].concat(), Some("2.20"), Some(false)),
            (38, [string("2.30"), numbers(&[1])].concat(), Some("2.30"), Some(true)),
        ] {
            let says = [numbers(&[MAGIC_THEIRS, 1 << 8 | minor]), more, numbers(&[LAST, LAST, 1])].concat();
            let mut daemon = fake(says).unwrap();
            assert_eq!(daemon.protocol_minor(), minor.min(35));
            assert_eq!((daemon.nix_version(), daemon.trusts_us()), (version, trusts));
            assert!(daemon.is_valid(&some_path()).unwrap());
        }
    }

    #[rstest]
    #[case(vec![], "went away")]
    #[case(vec![1, 2, 3], "went away")]
    #[case(numbers(&[0x1234]), "isn't a Nix daemon: it greets with `0x1234`")]
    #[case(numbers(&[MAGIC_THEIRS]), "went away")]
    #[case(numbers(&[MAGIC_THEIRS, 1 << 8 | 20]), "protocol `1.20`; at least 1.21")]
    #[case(numbers(&[MAGIC_THEIRS, 2 << 8 | 35]), "protocol `2.35`")]
    #[case(numbers(&[MAGIC_THEIRS, u64::MAX]), "protocol")]
    #[case(numbers(&[MAGIC_THEIRS, 1 << 8 | 35, u64::MAX]), "can't be used")]
    #[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 35]), string("2"), numbers(&[3])].concat(), "can't be used")]
    #[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 33, 1]), vec![b'2', 0, 0, 0, 0, 0, 0, 1]].concat(), "can't be used")]
    #[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 25, ERROR]), string("go away"), numbers(&[1])].concat(), "go away")]
    fn bad_greetings(#[case] says: Vec<u8>, #[case] expected: &str) {
        let error = fake(says).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }

    /// A good answer to QueryPathInfo, in pieces, so that each can be spoilt.
    fn good_info() -> Vec<Vec<u8>> {
        vec![
            numbers(&[LAST]),
            numbers(&[1]),
            string(""),
            string(&"0f".repeat(32)),
            numbers(&[1]),
            string("/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y"),
            numbers(&[7]),
            numbers(&[120]),
            numbers(&[1]),
            numbers(&[1]),
            string("k:sig"),
            string("fixed:sha256:x"),
        ]
    }

    #[test]
    fn reads_a_path_info() {
        let got = fake_answers(&good_info().concat()).path_info(&some_path()).unwrap().unwrap();
        let expected = PathInfo {
            nar_hash: Sha256([15; 32]),
            references: BTreeSet::from([
                StorePath::parse("/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y").unwrap()
            ]),
            registration_time: 7,
            ultimate: true,
            signatures: vec!["k:sig".into()],
            ca: Some("fixed:sha256:x".into()),
            ..info(120)
        };
        assert_eq!(got, expected);
    }

    #[rstest]
    #[case(0, numbers(&[5]))]
    #[case(1, numbers(&[2]))]
    #[case(2, string("/nix/store/nonsense"))]
    #[case(2, numbers(&[u64::MAX]))]
    #[case(3, string("sha256:abc"))]
    #[case(3, string(&"zz".repeat(32)))]
    #[case(4, numbers(&[u64::MAX]))]
    #[case(4, numbers(&[1 << 20]))]
    #[case(5, string(""))]
    #[case(5, string("/nix/store/../../etc/passwd"))]
    #[case(8, numbers(&[9]))]
    #[case(9, numbers(&[1 << 40]))]
    #[case(10, [numbers(&[1]), vec![0xff, 0, 0, 0, 0, 0, 0, 0]].concat())]
    #[case(11, [numbers(&[1]), vec![b'x', 0, 0, 9, 0, 0, 0, 0]].concat())]
    fn bad_path_infos(#[case] spoilt: usize, #[case] by: Vec<u8>) {
        let mut pieces = good_info();
        pieces[spoilt] = by;
        let mut daemon = fake_answers(&pieces.concat());
        let error = daemon.path_info(&some_path()).unwrap_err();
        assert!(matches!(error, StoreError::Answer { .. } | StoreError::Closed { .. }), "{error}");
        // what comes next may be anything: it isn't read as an answer
        assert!(matches!(daemon.path_info(&some_path()), Err(StoreError::Broken)));
    }

    #[test]
    fn a_truncated_answer_at_every_byte() {
        let good = good_info().concat();
        for cut in 0..good.len() {
            let error = fake_answers(&good[..cut]).path_info(&some_path()).unwrap_err();
            assert!(matches!(error, StoreError::Closed { operation: "QueryPathInfo", .. }), "{cut}: {error}");
        }
    }

    #[test]
    fn a_refusal_among_many_answers_costs_no_order() {
        let refusal = [
            numbers(&[ERROR]),
            string("Error"),
            numbers(&[0]),
            string("Error"),
            string("busy"),
            numbers(&[0, 0]),
        ];
        let good = good_info().concat();
        let says = [&good[..], &refusal.concat(), &good, &numbers(&[LAST, 1])].concat();
        let mut daemon = fake_answers(&says);
        let error = daemon.path_infos(&[some_path(), some_path(), some_path()]).unwrap_err();
        assert_eq!(error.to_string(), "the Nix daemon refuses QueryPathInfo: busy");
        assert!(daemon.is_valid(&some_path()).unwrap());
    }

    #[test]
    fn valid_paths_are_among_those_asked_for() {
        let other = "/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y";
        let says = [numbers(&[LAST, 1]), string(other)].concat();
        assert!(fake_answers(&says).valid_paths([&some_path()]).is_err());
        assert!(fake_answers(&numbers(&[LAST, 2])).valid_paths([&some_path()]).is_err());
    }

    #[test]
    fn endless_log() {
        let line = [numbers(&[NEXT]), string(&"x".repeat(1 << 20))].concat();
        let error = fake_answers(&line.repeat(70)).is_valid(&some_path()).unwrap_err();
        assert!(matches!(error, StoreError::Answer { source: WireError::LogFlood, .. }), "{error}");
    }

    /// A daemon that doesn't read and answers nonsense: the thread that writes the questions must not wait for ever.
    #[test]
    fn a_deaf_daemon() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[greeting(), numbers(&[LAST, 77])].concat()).unwrap();
        let mut daemon = Daemon::over(&StoreLocation::from_uri("daemon").unwrap(), ours).unwrap();
        let error = daemon.path_infos(&vec![some_path(); 100_000]).unwrap_err();
        assert!(matches!(error, StoreError::Answer { .. }), "{error}");
    }

    #[test]
    fn a_nar_longer_than_announced_or_refused_midway() {
        let nar: Vec<u8> = ["nix-archive-1", "(", "type", "regular", "contents", "x", ")"]
            .iter()
            .flat_map(|t| string(t))
            .collect();
        let says = [numbers(&[LAST]), nar.clone()].concat();
        let mut out = Vec::new();
        fake_answers(&says).nar_from_path(&info(nar.len() as u64), &mut out).unwrap();
        assert_eq!(out, nar);
        let got = fake_answers(&says).nar_from_path(&info(nar.len() as u64 - 1), &mut io::sink());
        assert!(
            matches!(got, Err(StoreError::Answer { source: WireError::NarTooLong { .. }, .. })),
            "{got:?}"
        );
        let refusal = [
            numbers(&[ERROR]),
            string("Error"),
            numbers(&[0]),
            string("Error"),
            string("gone"),
            numbers(&[0, 0]),
        ];
        let says = [&numbers(&[LAST]), &nar[..56], &refusal.concat()].concat();
        let error = fake_answers(&says).nar_from_path(&info(1000), &mut io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "the Nix daemon refuses NarFromPath: gone");
    }
}
