//! A million entries and more: what stays in memory while a manifest is written, and when it is read.
//!
//! `--nocapture` shows the figures; `--ignored` has ten million.

use std::alloc::System;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use sync_core::BlockMap;
use sync_core::manifest::{
    BlockHash, Entry, HASH_ROW_LEN, HEADER_LEN, Kind, Manifest, Mtime, Source, Unreadable, Writer,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

struct InFile(File, u64);

impl Source for InFile {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        self.0.read_exact_at(buf, offset).map_err(|e| Unreadable { code: e.raw_os_error().unwrap_or(0) })
    }
}

/// Bytes that are held now and were not when `region` began.
fn held(region: &Region<'_, System>) -> f64 {
    let change = region.change();
    change.bytes_allocated as f64 - change.bytes_deallocated as f64
}

/// Writes a manifest of so many files of 10 KB, a thousand to a folder, and reads it.
fn measure(files: u64) {
    let (mut out, mut pages) = (tempfile::tempfile().expect("room"), tempfile::tempfile().expect("room"));
    let (begun, region) = (Instant::now(), Region::new(ALLOCATOR));
    let mut writer = Writer::default();
    let (mut held_writing, mut rows) = (0f64, BufWriter::new(&out));
    rows.seek(SeekFrom::Start(HEADER_LEN)).expect("room");
    for i in 0..files {
        if i % 1000 == 0 {
            let path = format!("folder {:06}", i / 1000);
            let folder =
                Entry::new(path.as_bytes(), 0o755, Mtime { seconds: 1_700_000_000, nanos: 1 }, Kind::Folder);
            let page = writer.push(&folder).expect("in order");
            page.map_or(Ok(()), |page| pages.write_all(&page)).expect("room");
            held_writing = held_writing.max(held(&region));
        }
        let path = format!("folder {:06}/picture {i:09}.jpeg", i / 1000);
        let mtime =
            Mtime { seconds: 1_700_000_000 + i as i64, nanos: (i * 1_000_003 % 1_000_000_000) as u32 };
        let page =
            writer.push(&Entry::new(path.as_bytes(), 0o644, mtime, Kind::file(10_000))).expect("in order");
        page.map_or(Ok(()), |page| pages.write_all(&page)).expect("room");
        let hash = BlockHash { strong: [i as u8; 32], weak: i as u32 };
        rows.write_all(&hash.to_row()).expect("room");
    }
    drop(rows);
    let ending = writer.finish().expect("not too large");
    pages.rewind().expect("ours");
    std::io::copy(&mut pages, &mut out).expect("room");
    out.write_all(&ending.page).and_then(|()| out.write_all(&ending.table)).expect("room");
    out.write_all_at(&ending.header, 0).expect("room");
    drop(ending);
    let (written, len) = (begun.elapsed(), out.stream_position().expect("ours"));

    let (begun, region) = (Instant::now(), Region::new(ALLOCATOR));
    let manifest = Manifest::open(InFile(out, len)).expect("good");
    let (opened, held_reading) = (begun.elapsed(), held(&region));
    assert_eq!(manifest.entries(), files + files.div_ceil(1000));
    let begun = Instant::now();
    let looked = 10_000;
    for i in 0..looked {
        let block = i * 2_654_435_761 % files;
        let page = manifest.page(manifest.page_of_block(block).expect("there")).expect("readable");
        assert_eq!(page.place(block).expect("there").len, 10_000);
        assert_eq!(manifest.hash(block).expect("readable").weak, block as u32);
    }
    let each = begun.elapsed() / looked as u32;
    let mut map = BlockMap::new(files);
    (0..files).step_by(2).for_each(|block| _ = map.insert(block));
    let with_map = held(&region);
    println!(
        "{files} files: {:.1} bytes of manifest a file ({HASH_ROW_LEN} for the hashes), written in {written:.2?} with \
         {:.0} KiB in memory, checked in {opened:.2?}; {:.2} bytes a file in memory, {:.2} with a map of blocks in \
         which every second one is missing; a look-up without cache {each:.1?}",
        len as f64 / files as f64,
        held_writing / 1024.0,
        held_reading / files as f64,
        with_map / files as f64,
    );
    // The page table, 24 bytes for each page of 4 KiB, and a bit of the checker for each entry.
    assert!(held_writing / (files as f64) < 2.0 || held_writing < 1e6, "{held_writing} bytes while writing");
    assert!(held_reading / (files as f64) < 0.5, "{held_reading} bytes");
    assert!(with_map / (files as f64) < 1.0, "{with_map} bytes");
}

#[test]
fn a_million_files_take_less_than_a_byte_each() {
    measure(1_000_000);
}

#[test]
#[ignore = "measures; half a minute, and 700 MB of temporary files"]
fn ten_million_files_take_less_than_a_byte_each() {
    measure(10_000_000);
}
