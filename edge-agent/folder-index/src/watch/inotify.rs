//! Linux's inotify, through rustix: one watch a folder, one thread that reads (§8.1).

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::{How, Notice, Watched, Watcher};
use crate::record::FolderId;

/// Some 400 notices at once.
const BUFFER: usize = 64 << 10;

/// See the module.
pub struct Inotify {
    inotify: Arc<OwnedFd>,
    watches: Arc<Mutex<Watches>>,
    most: usize,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// 40 bytes a watch here, beside about 1 KB that the kernel keeps.
#[derive(Default)]
struct Watches {
    folders: HashMap<i32, FolderId>,
    watches: HashMap<FolderId, i32>,
}

impl Inotify {
    /// Begins to watch nothing. `most`: folders watched at most, beside the system's own limit
    /// (`/proc/sys/fs/inotify/max_user_watches`).
    ///
    /// # Errors
    /// If the system gives no more (`max_user_instances`).
    pub fn new(notice: Arc<dyn Notice>, most: usize) -> rustix::io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let watches = Arc::<Mutex<Watches>>::default();
        let (files, shared) = ((inotify.clone(), stop.clone()), watches.clone());
        let thread = std::thread::spawn(move || read(&files.0, &files.1, &shared, &*notice));
        Ok(Self { inotify, watches, most, stop, thread: Some(thread) })
    }
}

impl Watcher for Inotify {
    fn watch(&mut self, folder: FolderId, file: BorrowedFd<'_>, path: &Path) -> Watched {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        // Held while the watch comes into being, so that its first notice finds whose it is.
        let mut watches = lock(&self.watches);
        if watches.folders.len() >= self.most && !watches.watches.contains_key(&folder) {
            return Watched::No;
        }
        // By the opened folder: what stands at its path may be another by now.
        let opened = format!("/proc/self/fd/{}/.", file.as_raw_fd());
        let added = match inotify::add_watch(&self.inotify, opened, flags) {
            Err(Errno::NOENT) => inotify::add_watch(&self.inotify, path, flags | WatchFlags::DONT_FOLLOW),
            other => other,
        };
        let Ok(watch) = added else { return Watched::No };
        // A folder that was renamed has the watch it had, and another number.
        if let Some(before) = watches.folders.insert(watch, folder)
            && before != folder
        {
            watches.watches.remove(&before);
        }
        if let Some(before) = watches.watches.insert(folder, watch)
            && before != watch
        {
            watches.folders.remove(&before);
            let _ = inotify::remove_watch(&self.inotify, before);
        }
        Watched::Yes
    }

    fn unwatch(&mut self, folder: FolderId) {
        let mut watches = lock(&self.watches);
        if let Some(watch) = watches.watches.remove(&folder) {
            watches.folders.remove(&watch);
            // Refused if the folder is gone: so is the watch.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    fn watches(&self, folder: FolderId) -> bool {
        lock(&self.watches).watches.contains_key(&folder)
    }

    fn count(&self) -> usize {
        lock(&self.watches).folders.len()
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(watches: &Mutex<Watches>) -> MutexGuard<'_, Watches> {
    watches.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(inotify: &OwnedFd, stop: &OwnedFd, watches: &Mutex<Watches>, notice: &dyn Notice) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify.as_fd(), &mut buffer);
    loop {
        let mut files = [PollFd::new(inotify, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return notice.everything(),
        }
        if !files[1].revents().is_empty() {
            return;
        }
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return notice.everything(),
            };
            let events = event.events();
            if events.contains(ReadFlags::QUEUE_OVERFLOW) {
                notice.everything();
                continue;
            }
            let folder = {
                let mut watches = lock(watches);
                let folder = watches.folders.get(&event.wd()).copied();
                if events.contains(ReadFlags::IGNORED)
                    && let Some(folder) = folder
                {
                    watches.folders.remove(&event.wd());
                    watches.watches.remove(&folder);
                }
                folder
            };
            let Some(folder) = folder else { continue };
            match event.file_name() {
                Some(name) => {
                    let folder_made = events.contains(ReadFlags::CREATE | ReadFlags::ISDIR);
                    let writing = events.intersects(ReadFlags::MODIFY | ReadFlags::CREATE);
                    let how = if writing && !folder_made { How::Writing } else { How::Done };
                    notice.name(Instant::now(), folder, name.to_bytes(), how);
                }
                // The folder itself; of those below the root the folder above hears too.
                None if folder == FolderId::ROOT
                    && events.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) =>
                {
                    notice.everything();
                }
                None => {}
            }
        }
    }
}
