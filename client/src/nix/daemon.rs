//! The few operations of the Nix daemon that pushing and checking need: all of them only ask, but for the temporary root.
//! Doesn't know what the answers are for, and doesn't verify a NAR's hash: the server does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use pushgate_formats::{Sha256, StorePath, hash::hex_decode};

use super::{
    StoreLocation,
    connection::{Connection, MAX_LINE, Op, StoreError},
    wire::{Reader, WireError, clean, put_path, put_u64},
};

/// Bounds of answers, far beyond what a store has.
const MAX_REFERENCES: u64 = 1 << 20;
const MAX_SIGNATURES: u64 = 4096;
const MAX_OUTPUTS: u64 = 1 << 16;
/// Paths in one question for validity.
const VALID_PATHS_AT_ONCE: usize = 4096;
/// A pipe takes at least this much before a writer has to wait, even with the kernel short of pipe memory: requests of
/// this size need no thread of their own.
const SURELY_BUFFERED: usize = 4096;
/// Requests are handed to the kernel in pieces of about this size.
const REQUEST_CHUNK: usize = 32 << 10;

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

const IS_VALID_PATH: Op = Op(1, "IsValidPath");
const ADD_TEMP_ROOT: Op = Op(11, "AddTempRoot");
const QUERY_PATH_INFO: Op = Op(26, "QueryPathInfo");
const QUERY_VALID_PATHS: Op = Op(31, "QueryValidPaths");
const NAR_FROM_PATH: Op = Op(38, "NarFromPath");
const QUERY_DERIVATION_OUTPUT_MAP: Op = Op(41, "QueryDerivationOutputMap");

/// A connection to the Nix daemon.
pub struct Daemon {
    connection: Connection,
    location: StoreLocation,
}

impl Daemon {
    /// Connects to the daemon of a store, or starts one.
    pub fn connect(location: &StoreLocation) -> Result<Self, StoreError> {
        Ok(Self { connection: Connection::open(location.reach())?, location: location.clone() })
    }

    /// Greets the daemon of a store at the other end of a connected socket.
    pub fn over(socket: UnixStream, location: &StoreLocation) -> Result<Self, StoreError> {
        Ok(Self { connection: Connection::over(socket)?, location: location.clone() })
    }

    /// The protocol's minor version that both ends speak: from 21 to 35.
    pub fn protocol_minor(&self) -> u64 {
        self.connection.minor
    }

    /// The daemon's version of Nix, where it says so.
    pub fn nix_version(&self) -> Option<&str> {
        self.connection.nix_version.as_deref()
    }

    /// Whether the daemon trusts this user, where it says so.
    pub fn trusts_us(&self) -> Option<bool> {
        self.connection.trusts_us
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
        self.connection.ask(IS_VALID_PATH, |request| put_path(request, path), |from| from.bool("validity"))
    }

    /// Keeps paths from being collected for as long as this connection lasts.
    pub fn add_temp_roots(&mut self, paths: &[StorePath]) -> Result<(), StoreError> {
        const OP: Op = ADD_TEMP_ROOT;
        // several at once, so that not each waits for the daemon to wake up
        for some in paths.chunks(SURELY_BUFFERED / (8 + 8 + 256)) {
            let connection = &mut self.connection;
            connection.check_usable()?;
            connection.broken = true;
            let mut request = Vec::new();
            for path in some {
                put_u64(&mut request, OP.0);
                put_path(&mut request, path);
            }
            connection.send(OP, &request)?;
            let (from, minor) = (&mut connection.from, connection.minor);
            let mut read = || {
                let mut refused = Ok(());
                for _ in some {
                    match from.until_answer(minor)? {
                        Ok(()) => drop(from.u64()?),
                        Err(message) => refused = Err(message),
                    }
                }
                Ok(refused)
            };
            let answer = read();
            connection.received(OP, answer)?;
        }
        Ok(())
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
            let minor = self.connection.minor;
            let put = |request: &mut Vec<u8>| {
                put_u64(request, some.len() as u64);
                some.iter().for_each(|path| put_path(request, path));
                if minor >= 27 {
                    put_u64(request, 0); // don't substitute
                }
            };
            self.connection.ask(QUERY_VALID_PATHS, put, |from| {
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
        if self.connection.minor < 22 {
            return Err(StoreError::Refused {
                operation: QUERY_DERIVATION_OUTPUT_MAP.1,
                message: format!(
                    "protocol 1.{} doesn't have it; use Nix 2.4 or newer",
                    self.connection.minor
                ),
            });
        }
        let put = |request: &mut Vec<u8>| put_path(request, derivation);
        self.connection.ask(QUERY_DERIVATION_OUTPUT_MAP, put, |from| {
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
        let connection = &mut self.connection;
        connection.check_usable()?;
        connection.broken = true;
        let put = |request: &mut Vec<u8>, path: &StorePath| {
            put_u64(request, OP.0);
            put_path(request, path);
        };

        // a store path has at most 255 bytes
        if paths.len() <= SURELY_BUFFERED / (8 + 8 + 256) {
            let mut request = Vec::new();
            paths.iter().for_each(|path| put(&mut request, path));
            connection.send(OP, &request)?;
            let infos = read_path_infos(&mut connection.from, connection.minor, paths);
            return connection.received(OP, infos);
        }

        // The daemon answers as it reads. Once both directions are full, each end would wait for the other to read if
        // this one didn't write and read at the same time.
        let Connection { to, from, peer, minor, .. } = connection;
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
        connection.received(OP, infos)
    }

    /// Writes the NAR of a path to `out`, and checks that it has the size that it should; not its hash.
    pub fn nar_from_path(&mut self, info: &PathInfo, out: &mut dyn Write) -> Result<(), StoreError> {
        const OP: Op = NAR_FROM_PATH;
        let connection = &mut self.connection;
        connection.check_usable()?;
        connection.broken = true;
        let mut request = Vec::new();
        put_u64(&mut request, OP.0);
        put_path(&mut request, &info.path);
        connection.send(OP, &request)?;
        connection.answer_follows(OP)?;
        match connection.from.copy_nar(connection.minor, info.nar_size, out) {
            Ok(got) => {
                connection.broken = false;
                let (path, want) = (info.path.clone(), info.nar_size);
                if got == want { Ok(()) } else { Err(StoreError::NarSize { path, got, want }) }
            }
            Err(WireError::Sink(source)) => Err(StoreError::Sink { path: info.path.clone(), source }),
            Err(WireError::Refused(message)) => Err(StoreError::Refused { operation: OP.1, message }),
            Err(error) => Err(connection.failed(OP, error)),
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

#[cfg(test)]
impl Daemon {
    /// Makes the store's files look absent.
    pub(super) fn hide_files(&mut self) {
        self.location.store_dir = "/var/empty/hidden".into();
    }
}

#[cfg(test)]
mod tests;
