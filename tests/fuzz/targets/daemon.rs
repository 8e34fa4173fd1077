//! The client's side of the Nix daemon's protocol: the input is what the daemon says, whatever it is asked. Its first byte
//! picks the question that comes first.

#![no_main]

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use pushgate_formats::{Sha256, StorePath};
use pushgate_fuzz::{
    assert_message,
    nix::{Daemon, PathInfo, StoreError, StoreLocation},
};

/// What a socket surely takes before anybody reads.
const MOST: usize = 64 << 10;

static LOCATION: LazyLock<StoreLocation> =
    LazyLock::new(|| StoreLocation::from_uri("daemon").expect("a store"));
static PATHS: LazyLock<Vec<StorePath>> = LazyLock::new(|| {
    [
        "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x",
        "1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y.drv",
        "2mdqa9w1p6cmli6976v4wi0sw9r4p5pr-z",
    ]
    .map(|base| StorePath::from_base_name(base).expect("a store path"))
    .to_vec()
});

/// Counts what it is given.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn info(nar_size: u64) -> PathInfo {
    PathInfo {
        path: PATHS[0].clone(),
        deriver: None,
        nar_hash: Sha256([0; 32]),
        references: BTreeSet::new(),
        registration_time: 0,
        nar_size,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

fn ask(daemon: &mut Daemon, question: u8) -> Result<(), StoreError> {
    match question % 7 {
        0 => daemon.is_valid(&PATHS[0]).map(drop),
        1 => {
            let infos = daemon.path_infos(&PATHS)?;
            assert_eq!(infos.len(), PATHS.len());
            for (info, path) in infos.iter().zip(&*PATHS) {
                assert!(info.as_ref().is_none_or(|info| info.path == *path));
            }
            Ok(())
        }
        2 => {
            let valid = daemon.valid_paths(&*PATHS)?;
            assert!(valid.iter().all(|path| PATHS.contains(path)));
            Ok(())
        }
        3 => daemon.output_map(&PATHS[1]).map(drop),
        4 => daemon.add_temp_roots(&PATHS),
        // a size that may be right, and one that no input reaches
        n => {
            let size = if n == 5 { 256 } else { 1 << 40 };
            let mut out = Count(0);
            let result = daemon.nar_from_path(&info(size), &mut out);
            assert!(out.0 <= size, "more is passed on than was announced");
            assert_eq!(result.is_ok(), result.is_ok() && out.0 == size);
            result
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, says)) = data.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    theirs.write_all(&says[..says.len().min(MOST)]).expect("the socket takes it");
    theirs.shutdown(Shutdown::Write).expect("connected");
    let mut daemon = match Daemon::over(ours, &LOCATION) {
        Ok(daemon) => daemon,
        Err(error) => return assert_message(&error),
    };
    assert!((21..=35).contains(&daemon.protocol_minor()));
    for i in 0..7 {
        let question = first.wrapping_add(i);
        let Err(error) = ask(&mut daemon, question) else { continue };
        assert_message(&error);
        let usable = match &error {
            StoreError::NarSize { .. } => true,
            // an error in the midst of a NAR ends the connection
            StoreError::Refused { .. } if question % 7 >= 5 => {
                matches!(ask(&mut daemon, 0), Ok(()) | Err(StoreError::Refused { .. }))
            }
            StoreError::Refused { .. } => true,
            StoreError::Answer { .. } | StoreError::Closed { .. } => false,
            other => panic!("{other:?}"),
        };
        if !usable {
            let after = ask(&mut daemon, first.wrapping_add(i + 1));
            // the one question that old daemons don't know is refused before it is asked
            assert!(matches!(after, Err(StoreError::Broken | StoreError::Refused { .. })), "{after:?}");
            return;
        }
    }
});
