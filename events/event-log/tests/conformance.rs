//! The shared suite on the backends of this crate: in memory, and on files with segments of different sizes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use event_log::conformance::{Backend, run_all};
use event_log::file::{FileLog, FileLogOptions};
use event_log::memory::MemoryLog;
use event_log::{BoxFuture, EventLog, Position};

#[derive(Default)]
struct Memory(Mutex<HashMap<usize, Arc<MemoryLog>>>);

impl Backend for Memory {
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn EventLog>> {
        Box::pin(async {
            let made = Arc::new(MemoryLog::new());
            let log: Arc<dyn EventLog> = Arc::clone(&made) as _;
            self.0.lock().unwrap().insert(address(&log), made);
            log
        })
    }

    fn shortened(&self, log: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        Box::pin(async move {
            self.0.lock().unwrap()[&address(&log)].begin_after(Position(17));
            Some(log)
        })
    }

    fn reopen(&self, _: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        Box::pin(async { None })
    }
}

struct Files {
    root: tempfile::TempDir,
    segment_bytes: u64,
    /// Which folder belongs to which handle.
    folders: Mutex<HashMap<usize, (PathBuf, Arc<FileLog>)>>,
}

impl Files {
    fn new(segment_bytes: u64) -> Files {
        Files { root: tempfile::tempdir().unwrap(), segment_bytes, folders: Mutex::default() }
    }

    async fn open(&self, dir: &Path) -> Arc<dyn EventLog> {
        let options = FileLogOptions { segment_bytes: self.segment_bytes, ..FileLogOptions::default() };
        let opened = Arc::new(FileLog::open(dir, options).await.unwrap());
        let log: Arc<dyn EventLog> = Arc::clone(&opened) as _;
        self.folders.lock().unwrap().insert(address(&log), (dir.to_path_buf(), opened));
        log
    }
}

fn address(log: &Arc<dyn EventLog>) -> usize {
    Arc::as_ptr(log).cast::<()>() as usize
}

impl Backend for Files {
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn EventLog>> {
        Box::pin(async {
            let dir = tempfile::tempdir_in(self.root.path()).unwrap().keep();
            self.open(&dir.join("made/on/opening")).await
        })
    }

    fn reopen(&self, closed: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        Box::pin(async move {
            let dir = self.folders.lock().unwrap()[&address(&closed)].0.clone();
            Some(self.open(&dir).await)
        })
    }

    fn shortened(&self, log: Arc<dyn EventLog>) -> BoxFuture<'_, Option<Arc<dyn EventLog>>> {
        Box::pin(async move {
            let files = Arc::clone(&self.folders.lock().unwrap()[&address(&log)].1);
            // In large segments nothing is closed yet.
            let middle = files.closed_segments().into_iter().nth(2)?;
            files.begin_after(middle.last, b"noted".to_vec()).unwrap();
            assert_eq!(files.base().unwrap().note, b"noted");
            Some(log)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keeps_the_contract() {
    run_all(&Memory::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_keep_the_contract() {
    run_all(&Files::new(FileLogOptions::default().segment_bytes)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_with_small_segments_keep_the_contract() {
    run_all(&Files::new(event_log::limits::MIN_SEGMENT_BYTES)).await;
}

#[tokio::test]
async fn files_keep_the_contract_on_one_thread() {
    run_all(&Files::new(8 * 1024)).await;
}
