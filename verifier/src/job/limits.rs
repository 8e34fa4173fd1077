//! What a job may use: what the kernel and Nix don't bound by themselves is looked at, some times a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use pushgate_formats::{StorePath, jobs::Failure};

use super::failure;
use crate::{
    config::Limits,
    nix::Layout,
    processes::{self, Usage},
};

/// Between looks at the disk.
const PAUSE: Duration = Duration::from_millis(500);
/// Between looks at the processes: what multiplies does so fast.
const SHORT: Duration = Duration::from_millis(100);

/// What was too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exceeded {
    Disk,
    Output(u64),
    Memory,
    Processes,
}

impl Exceeded {
    pub fn failure(&self, limits: &Limits) -> Failure {
        match self {
            Self::Disk => failure("disk-full", format!("the build wrote more than {} bytes", limits.disk)),
            Self::Output(size) => failure(
                "output-too-large",
                format!("an output has {size} bytes and more, {} are allowed", limits.output),
            ),
            Self::Memory => failure(
                "out-of-memory",
                format!("the build used more than {} bytes of memory", limits.memory),
            ),
            Self::Processes => failure(
                "too-many-processes",
                format!("the build had more than {} processes and threads", limits.processes),
            ),
        }
    }
}

/// Watches a job's directory and processes.
pub struct Watch {
    layout: Layout,
    limits: Limits,
    /// Entries of the store that were there before.
    before: BTreeSet<OsString>,
    outputs: BTreeSet<OsString>,
    /// The process below which all of the build runs.
    process: Option<u32>,
}

impl Watch {
    /// Only the disk.
    pub fn of_disk(layout: Layout, disk: u64) -> Self {
        let limits =
            Limits { disk, output: u64::MAX, memory: u64::MAX, processes: u64::MAX, ..Limits::default() };
        Self { layout, limits, before: BTreeSet::new(), outputs: BTreeSet::new(), process: None }
    }

    /// All that a build may use, beyond what was there.
    pub fn of_build<'a>(
        layout: Layout,
        limits: Limits,
        process: Option<u32>,
        before: impl Iterator<Item = &'a StorePath>,
        outputs: impl Iterator<Item = &'a StorePath>,
    ) -> Self {
        let name = |path: &StorePath| OsString::from(path.base_name());
        Self {
            layout,
            limits,
            before: before.map(name).collect(),
            outputs: outputs.map(name).collect(),
            process,
        }
    }

    /// Returns when something is too much.
    pub async fn run(self) -> Exceeded {
        let watch = Arc::new(self);
        tokio::select! {
            exceeded = watch.clone().again(PAUSE, Self::files) => exceeded,
            exceeded = watch.again(SHORT, Self::running) => exceeded,
        }
    }

    async fn again(self: Arc<Self>, pause: Duration, look: fn(&Self) -> Option<Exceeded>) -> Exceeded {
        loop {
            let began = Instant::now();
            let watch = self.clone();
            if let Ok(Some(exceeded)) = tokio::task::spawn_blocking(move || look(&watch)).await {
                return exceeded;
            }
            // a large tree isn't walked all the time
            tokio::time::sleep(pause.max(began.elapsed() * 5)).await;
        }
    }

    fn running(&self) -> Option<Exceeded> {
        let Usage { threads, memory } = processes::below(self.process?);
        // those that confine, and Nix with some threads of its own, aren't the build's
        if threads > self.limits.processes.saturating_add(8) {
            return Some(Exceeded::Processes);
        }
        (memory > self.limits.memory).then_some(Exceeded::Memory)
    }

    fn files(&self) -> Option<Exceeded> {
        let mut sizes = Sizes::default();
        self.walk(&self.layout.dir, 0, None, &mut sizes);
        if sizes.disk > self.limits.disk {
            return Some(Exceeded::Disk);
        }
        sizes.outputs.into_values().find(|size| *size > self.limits.output).map(Exceeded::Output)
    }

    /// Adds up what lies in a directory. Entries come and go meanwhile: what can't be read counts as gone.
    fn walk(&self, dir: &Path, depth: usize, output: Option<&OsString>, sizes: &mut Sizes) {
        // a build that nests deeper than this has paths that nobody can open; its disk blocks stay bounded by the quota of
        // one verifier's file system
        if depth > 400 {
            return;
        }
        let in_store = dir == self.layout.store();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if in_store && self.before.contains(&name) {
                continue;
            }
            let output = output.or_else(|| self.outputs.get(&name));
            // of the entry itself: links are not followed
            let Ok(metadata) = entry.metadata() else { continue };
            sizes.disk += metadata.blocks() * 512;
            if let Some(output) = output {
                // the size that a NAR has, also of what has holes; with what each entry takes at least
                *sizes.outputs.entry(output.clone()).or_default() += metadata.len().max(100);
            }
            if metadata.is_dir() {
                self.walk(&entry.path(), depth + 1, output, sizes);
            }
        }
    }
}

#[derive(Default)]
struct Sizes {
    disk: u64,
    outputs: BTreeMap<OsString, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_count_for_outputs_and_inputs_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { dir: dir.path().to_owned() };
        let path =
            |c: char| StorePath::parse(&format!("/nix/store/{}-x", String::from(c).repeat(32))).unwrap();
        let (input, output) = (path('a'), path('b'));
        fs::create_dir_all(layout.real(&input)).unwrap();
        fs::write(layout.real(&input).join("large"), vec![1; 1 << 20]).unwrap();
        let chroot = layout.store().join("b.drv.chroot/nix/store").join(output.base_name());
        fs::create_dir_all(&chroot).unwrap();
        fs::File::create(chroot.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let watch = |output_limit, disk| {
            let limits = Limits { output: output_limit, disk, ..Limits::default() };
            Watch::of_build(layout.clone(), limits, None, [&input].into_iter(), [&output].into_iter()).files()
        };
        assert_eq!(watch(2 << 30, 1 << 20), None);
        assert!(matches!(watch(1 << 29, 1 << 20), Some(Exceeded::Output(_))));
        fs::write(layout.dir.join("other"), vec![1; 2 << 20]).unwrap();
        assert_eq!(watch(2 << 30, 1 << 20), Some(Exceeded::Disk));
    }
}
