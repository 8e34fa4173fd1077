//! The blob store with faults: every method that writes is a point at which one can come, each piece of a pack too.

use std::{
    fs,
    io::{self, Read},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use pushgate_formats::Sha256;
use pushgate_gateway::blobs::{Blobs, PackRange, PackWriter, PublicFile};

use super::{Faults, Kind, Todo};

/// What is done between a call and its execution.
type Hook = Box<dyn Fn(&'static str) + Send + Sync>;

/// See the module's documentation.
pub struct FaultyBlobs {
    inner: Arc<dyn Blobs>,
    faults: Arc<Faults>,
    /// The directory that `inner` keeps its files in.
    root: PathBuf,
    /// Files published since somebody waited for them to be on the disk.
    unsynced: Mutex<Vec<PathBuf>>,
    before: Option<Hook>,
}

fn fault() -> io::Error {
    io::Error::other("a fault of the test's making")
}

/// Ends the thread's work without a word: what a killed process was doing isn't answered.
fn end() -> ! {
    resume_unwind(Box::new("killed by the test"))
}

/// What a published file is, by its name.
fn label(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "narinfo")) => "publish narinfo",
        Some((_, "ls")) => "publish listing",
        _ if name == "nix-cache-info" => "publish nix-cache-info",
        _ if name.starts_with("nar/") => "publish nar",
        _ => "publish other",
    }
}

impl FaultyBlobs {
    /// `root` is the directory of `inner`.
    pub fn new(inner: Arc<dyn Blobs>, root: &Path, faults: Arc<Faults>) -> Self {
        Self { inner, faults, root: root.to_owned(), unsynced: Mutex::default(), before: None }
    }

    /// Has something done before each write, in the thread that writes.
    pub fn before(mut self, hook: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        self.before = Some(Box::new(hook));
        self
    }

    /// `half` is what a process leaves that dies in the middle of it.
    fn write<T>(
        &self,
        what: &'static str,
        half: impl FnOnce(),
        call: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        if let Some(hook) = &self.before {
            hook(what);
        }
        write(&self.faults, what, half, call)
    }

    /// A published file that was written in part, as the store writes them.
    fn half_a_file(&self) {
        let tmp = self.root.join("quarantine/tmp/half-written");
        fs::write(tmp, "StorePath: /nix/st").expect("a half-written file");
    }

    fn publish(&self, cache: &str, name: &str, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        // before it is written: what fails may be stored
        self.unsynced().push(self.root.join(cache).join(name));
        self.write(label(name), || self.half_a_file(), call)
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails: of what nobody has waited for, some files are short and some are gone.
    pub fn cut_power(&self) {
        for (n, file) in std::mem::take(&mut *self.unsynced()).into_iter().enumerate() {
            let Ok(bytes) = fs::read(&file) else { continue };
            // not in place: it may be a link to a pack, which was waited for
            fs::remove_file(&file).expect("a published file");
            if n % 2 == 0 {
                fs::write(&file, &bytes[..bytes.len() / 2]).expect("half a file");
            }
        }
    }
}

fn write<T>(
    faults: &Faults,
    what: &'static str,
    half: impl FnOnce(),
    call: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let Some(entered) = faults.enter(what) else { end() };
    let answer = match entered.todo {
        Todo::Go => call(),
        Todo::Strike(Kind::NotStored) => Err(fault()),
        Todo::Strike(Kind::Stored) => call().and(Err(fault())),
        Todo::Strike(Kind::KilledBefore) => {
            half();
            faults.die();
            Err(fault())
        }
        Todo::Strike(Kind::KilledAfter | Kind::PowerCut) => {
            let _ = call();
            faults.die();
            Err(fault())
        }
    };
    drop(entered);
    if faults.is_dead() { end() } else { answer }
}

struct FaultyPack {
    /// `None` once finished.
    inner: Option<Box<dyn PackWriter>>,
    faults: Arc<Faults>,
}

impl FaultyPack {
    fn inner(&mut self) -> &mut dyn PackWriter {
        self.inner.as_mut().expect("taken only by `finish`").as_mut()
    }
}

impl Drop for FaultyPack {
    fn drop(&mut self) {
        // dropped unfinished it leaves nothing, but the dead clean up nothing
        if self.faults.is_dead() {
            std::mem::forget(self.inner.take());
        }
    }
}

impl PackWriter for FaultyPack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let faults = self.faults.clone();
        let inner = std::cell::RefCell::new(self.inner());
        let half = || inner.borrow_mut().write(&bytes[..bytes.len() / 2]).expect("half of it");
        write(&faults, "write to a pack", half, || inner.borrow_mut().write(bytes))
    }

    fn position(&self) -> u64 {
        self.inner.as_ref().expect("taken only by `finish`").position()
    }

    fn rollback(&mut self, position: u64) -> io::Result<()> {
        let faults = self.faults.clone();
        write(&faults, "roll a pack back", || {}, || self.inner().rollback(position))
    }

    fn finish(mut self: Box<Self>, whole: Option<&Sha256>) -> io::Result<String> {
        let faults = self.faults.clone();
        let finish = || self.inner.take().expect("taken only here").finish(whole);
        write(&faults, "finish a pack", || {}, finish)
    }
}

#[async_trait]
impl Blobs for FaultyBlobs {
    fn begin_pack(&self) -> io::Result<Box<dyn PackWriter>> {
        let inner = Some(self.write("begin a pack", || {}, || self.inner.begin_pack())?);
        Ok(Box::new(FaultyPack { inner, faults: self.faults.clone() }))
    }

    fn read_pack(&self, range: &PackRange) -> io::Result<Box<dyn Read + Send>> {
        self.inner.read_pack(range)
    }

    fn remove_packs(&self, packs: &[String]) -> io::Result<()> {
        let half = || self.inner.remove_packs(&packs[..packs.len() / 2]).expect("half of them");
        self.write("remove packs", half, || self.inner.remove_packs(packs))
    }

    fn free(&self, ranges: &[PackRange]) -> io::Result<()> {
        self.write("free ranges", || {}, || self.inner.free(ranges))
    }

    fn packs(&self) -> io::Result<Vec<String>> {
        self.inner.packs()
    }

    fn publish_pack(&self, cache: &str, name: &str, from: &PackRange, hash: &Sha256) -> io::Result<()> {
        self.publish(cache, name, || self.inner.publish_pack(cache, name, from, hash))
    }

    fn publish_stream(&self, cache: &str, name: &str, contents: &mut dyn Read) -> io::Result<()> {
        self.publish(cache, name, || self.inner.publish_stream(cache, name, contents))
    }

    fn withdraw(&self, cache: &str, name: &str) -> io::Result<()> {
        self.write("withdraw", || {}, || self.inner.withdraw(cache, name))
    }

    fn is_published(&self, cache: &str, name: &str) -> io::Result<bool> {
        self.inner.is_published(cache, name)
    }

    fn sync(&self) -> io::Result<()> {
        // only what was there when it began is on the disk when it ends
        let waited_for = std::mem::take(&mut *self.unsynced());
        let synced = self.write("sync", || {}, || self.inner.sync());
        if synced.is_err() {
            self.unsynced().extend(waited_for);
        }
        synced
    }

    async fn open(&self, cache: &str, name: &str) -> io::Result<Option<PublicFile>> {
        self.inner.open(cache, name).await
    }

    fn clean(&self) -> io::Result<()> {
        self.write("clean", || {}, || self.inner.clean())
    }

    fn probe(&self) -> io::Result<()> {
        self.inner.probe()
    }
}
