//! The thread that writes lines, in the order in which they were handed over. It holds what it could not write and
//! tries again, from the byte where it stopped, so that a disk that was full for a while tears no line.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, Release},
        },
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender, never, select};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::line;

/// Between two tries to write what could not be written.
const RETRY: Duration = Duration::from_millis(250);
/// Between two looks at whether the file was moved away.
const LOOK: Duration = Duration::from_secs(1);
/// Lines that are written together are at most this much, and one more line.
const BATCH_BYTES_MAX: usize = 64 << 10;
/// Who reads the trail need not be who runs the server; others may not.
const FILE_MODE: u32 = 0o600;

type Sink = Box<dyn Write + Send>;
/// Opens the file, at the start and after each rotation.
pub(super) type Open = Box<dyn FnMut() -> io::Result<Opened> + Send>;

/// What was opened.
pub(super) struct Opened {
    sink: Sink,
    /// The file, where it is one that can be moved away.
    file: Option<Inode>,
    /// The same, to ask for its size.
    sized: Option<File>,
}

impl Opened {
    pub(super) fn of(sink: impl Write + Send + 'static) -> Self {
        Self { sink: Box::new(sink), file: None, sized: None }
    }

    /// The same for what ends up in a file.
    #[cfg(test)]
    pub(super) fn sized(sink: impl Write + Send + 'static, file: File) -> Self {
        Self { sized: Some(file), ..Self::of(sink) }
    }

    fn bytes(&self) -> Option<u64> {
        self.sized.as_ref()?.metadata().ok().map(|metadata| metadata.len())
    }
}

/// Tells a file from any other, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// None for what is no regular file.
    fn of(metadata: &Metadata) -> Option<Self> {
        metadata.is_file().then(|| Self { device: metadata.dev(), number: metadata.ino() })
    }
}

/// What the thread is told besides lines; it answers when it is done.
#[derive(Debug)]
pub(super) enum Order {
    Reopen(Sender<Result<(), String>>),
    Stop(Sender<()>),
}

/// What the thread shares with those who hand lines over.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Places in the queue that are taken: reserved, waiting, or being written.
    pub(super) taken: AtomicUsize,
    /// Lines that were handed over, with those of the thread itself.
    pub(super) handed_over: AtomicU64,
    pub(super) written: AtomicU64,
    /// The last write failed.
    pub(super) failing: AtomicBool,
}

pub(super) fn open(file: &str) -> Open {
    if file == "-" {
        return Box::new(|| Ok(Opened::of(io::stderr())));
    }
    let path = PathBuf::from(file);
    Box::new(move || {
        let torn = ends_torn(&path);
        let mut file = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(&path)?;
        if torn {
            // Where this fails, so will the first line, which is told.
            let _ = file.write_all(b"\n");
        }
        let inode = file.metadata().ok().and_then(|metadata| Inode::of(&metadata));
        let sized = inode.and_then(|_| file.try_clone().ok());
        Ok(Opened { sink: Box::new(file), file: inode, sized })
    })
}

/// Whether `open` would succeed, without making the file: who asks may be another user than who is to write it.
pub(super) fn could_open(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // A pipe would wait for its reader, and have the one that it waits for lose a line.
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => Ok(()),
        Ok(_) => OpenOptions::new().append(true).open(path).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            let may = Access::WRITE_OK | Access::EXEC_OK;
            Ok(accessat(CWD, folder, may, AtFlags::EACCESS)?)
        }
        Err(error) => Err(error),
    }
}

/// Whether a file ends within a line, as one does whose writer was killed, so that the next would go on in it.
fn ends_torn(path: &Path) -> bool {
    let last = || {
        if !fs::metadata(path)?.is_file() {
            return Ok(None); // reading from a pipe would wait
        }
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        io::Result::Ok(Some(last[0]))
    };
    matches!(last(), Ok(Some(byte)) if byte != b'\n')
}

pub(super) struct Writer {
    open: Open,
    /// The name of the file.
    path: PathBuf,
    opened: Opened,
    looked_at: Instant,
    /// The log has said that the file was moved away and cannot be opened again.
    told: bool,
    node: String,
    lines: Receiver<Vec<u8>>,
    orders: Receiver<Order>,
    progress: Arc<Progress>,
    /// Whole lines; those before `done` bytes are written.
    batch: Vec<u8>,
    done: usize,
    /// Size of the file when a write failed within a line.
    torn_at: Option<u64>,
}

impl Writer {
    /// Opens the file and writes the first line, so that a file that takes none is known before the first call.
    ///
    /// # Errors
    /// When the file cannot be opened. That it cannot be written is no error here: it may be later.
    pub(super) fn start(
        mut open: Open,
        path: PathBuf,
        node: String,
        lines: Receiver<Vec<u8>>,
        orders: Receiver<Order>,
        progress: Arc<Progress>,
    ) -> io::Result<Self> {
        let opened = open()?;
        let looked_at = Instant::now();
        let (batch, done, told, torn_at) = (Vec::new(), 0, false, None);
        let mut writer =
            Self { open, path, opened, looked_at, told, node, lines, orders, progress, batch, done, torn_at };
        writer.note("start");
        writer.write();
        Ok(writer)
    }

    /// Until it is told to stop, or nobody is left who could hand it a line.
    pub(super) fn run(mut self) {
        let idle = never();
        loop {
            if self.opened.file.is_some() && self.looked_at.elapsed() >= LOOK {
                self.look();
            }
            // What could not be written comes first; more waits in the queue, whose length is limited.
            let pending = !self.batch.is_empty();
            let lines = if pending { &idle } else { &self.lines };
            let wait = match self.opened.file {
                _ if pending => RETRY,
                Some(_) => LOOK,
                None => Duration::MAX,
            };
            select! {
                recv(lines) -> line => match line {
                    Ok(line) => {
                        self.batch.extend_from_slice(&line);
                        self.fill();
                        self.write();
                    }
                    Err(_) => return self.finish(),
                },
                recv(self.orders) -> order => match order {
                    Ok(Order::Reopen(answer)) => {
                        let _ = answer.send(self.reopen());
                    }
                    Ok(Order::Stop(answer)) => {
                        self.finish();
                        let _ = answer.send(());
                        return;
                    }
                    Err(_) => return self.finish(),
                },
                default(wait) => self.write(),
            }
        }
    }

    fn note(&mut self, event: &str) {
        self.progress.taken.fetch_add(1, Relaxed);
        self.progress.handed_over.fetch_add(1, Relaxed);
        self.batch.extend_from_slice(&line::note(&self.node, event, SystemTime::now(), ""));
    }

    fn fill(&mut self) {
        while self.batch.len() < BATCH_BYTES_MAX
            && let Ok(line) = self.lines.try_recv()
        {
            self.batch.extend_from_slice(&line);
        }
    }

    /// Writes what there is, as far as that goes.
    fn write(&mut self) {
        // Who cut the file short has taken the beginning of that line away.
        if self.torn_at.take().is_some_and(|before| self.opened.bytes().is_some_and(|now| now < before)) {
            self.rewind();
        }
        while self.done < self.batch.len() {
            match self.opened.sink.write(&self.batch[self.done..]) {
                Ok(0) => return self.failed(&io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    let lines = self.batch[self.done..self.done + n].iter().filter(|&&byte| byte == b'\n').count();
                    self.done += n;
                    self.progress.taken.fetch_sub(lines, Relaxed);
                    // Who sees that it is written sees that its place is free.
                    self.progress.written.fetch_add(lines as u64, Release);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(&error),
            }
        }
        if let Err(error) = self.opened.sink.flush() {
            return self.failed(&error);
        }
        self.batch.clear();
        self.done = 0;
        if self.progress.failing.swap(false, Relaxed) {
            tracing::info!("the audit log can be written again");
        }
    }

    /// Goes back to the beginning of the line that is half written.
    fn rewind(&mut self) {
        self.done = self.batch[..self.done].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    }

    fn failed(&mut self, error: &io::Error) {
        let is_torn = self.done > 0 && self.batch[self.done - 1] != b'\n';
        self.torn_at = if is_torn { self.opened.bytes() } else { None };
        if !self.progress.failing.swap(true, Relaxed) {
            tracing::error!(%error, "the audit log cannot be written; tried again until it can");
        }
    }

    /// Goes on in a new file when the one that is open was moved away. Looked at here, where a disk that hangs holds up
    /// nobody else.
    fn look(&mut self) {
        self.looked_at = Instant::now();
        let moved = match fs::metadata(&self.path) {
            Ok(metadata) => Inode::of(&metadata) != self.opened.file,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !moved {
            self.told = false;
            return;
        }
        match self.reopen() {
            Ok(()) => tracing::info!(file = %self.path.display(), "the audit log was moved away and begun anew"),
            Err(problem) if !self.told => {
                self.told = true;
                tracing::error!("{problem}");
            }
            Err(_) => {}
        }
    }

    /// Goes on in the file that has the name now. A line that was half written stands whole in the new one.
    fn reopen(&mut self) -> Result<(), String> {
        let opened = (self.open)().map_err(|error| {
            format!("the audit log cannot be opened again ({error}); lines go on to the file that was open")
        })?;
        self.write(); // what is left for the old file, if that takes it
        (self.opened, self.torn_at) = (opened, None);
        self.rewind();
        self.write();
        Ok(())
    }

    /// Writes all that was handed over, and that this was the end.
    fn finish(&mut self) {
        loop {
            self.fill();
            if self.batch.is_empty() {
                break;
            }
            self.write();
            if !self.batch.is_empty() {
                tracing::error!("the audit log cannot be written at the end; its last lines are lost");
                return;
            }
        }
        self.note("stop");
        self.write();
    }
}
