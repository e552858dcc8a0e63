//! What an entry costs: sealing, checkpoints, proofs, exporting and verifying, for a log of N entries (default
//! 1,000,000) of 172 bytes each.
//!
//! `cargo run -p event-audit --example cost --release -- 1000000`

use std::hint::black_box;
use std::io::{BufReader, BufWriter};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use event_audit::Hash;
use event_audit::export::{Expectation, ExportWriter, verify};
use event_audit::frontier::Frontier;
use event_audit::keys::KeyList;
use event_audit::ledger::Ledger;
use event_audit::note::NoteSigner;
use event_audit::proof::verify_inclusion;

/// About what a record has on average.
const ENTRY_BYTES: usize = 172;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let mut entry = [0; ENTRY_BYTES];
    let mut fill = move |index: u64| {
        entry[..8].copy_from_slice(&index.to_le_bytes());
        entry
    };
    let (root, log) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let keys = KeyList::sign(&root, &[log.verifying_key().to_bytes()])?;
    let signer = NoteSigner::new(keys.origin(), log)?;
    let folder = tempfile::tempdir()?;

    let each = |what: &str, spent: Duration, count: u64| {
        println!("{what:<44} {:>8} ns each", spent.as_nanos() / u128::from(count));
    };
    let start = Instant::now();
    let mut frontier = Frontier::new();
    for index in 0..count {
        frontier.push(Hash::leaf(&fill(index)));
    }
    each("leaf hash and frontier, in memory", start.elapsed(), count);

    let mut ledger = Ledger::open(folder.path(), keys.origin(), keys.log_keys())?;
    let start = Instant::now();
    for index in 0..count {
        ledger.append(&fill(index))?;
    }
    each("sealing: leaf, tree and tiles on disk", start.elapsed(), count);
    let start = Instant::now();
    let checkpoint = ledger.checkpoint(&signer)?;
    println!("{:<44} {:>8} µs", "a checkpoint, synced", start.elapsed().as_micros());
    assert_eq!(checkpoint.head(), &frontier.head());

    let start = Instant::now();
    drop(ledger);
    let ledger = Ledger::open(folder.path(), keys.origin(), keys.log_keys())?;
    println!("{:<44} {:>8} µs", "opening again", start.elapsed().as_micros());
    assert_eq!(ledger.size(), count);

    let proofs = 200;
    let start = Instant::now();
    let made: Vec<_> = (0..proofs)
        .map(|i| ledger.prove_entry(i * (count / proofs).max(1) % count, &checkpoint))
        .collect::<Result<_, _>>()?;
    println!("{:<44} {:>8} µs", "an inclusion proof", start.elapsed().as_micros() / u128::from(proofs));
    let start = Instant::now();
    for proof in &made {
        verify_inclusion(checkpoint.head(), proof.index, &Hash::leaf(&fill(proof.index)), &proof.path)?;
    }
    println!("{:<44} {:>8} µs", "checking one", start.elapsed().as_micros() / u128::from(proofs));

    let path = folder.path().join("export");
    let out = BufWriter::with_capacity(1 << 18, std::fs::File::create(&path)?);
    let start = Instant::now();
    let mut writer = ExportWriter::new(out, &ledger, &keys, std::slice::from_ref(&checkpoint))?;
    for index in 0..count {
        writer.entry(&fill(index))?;
    }
    writer.finish()?;
    each("exporting", start.elapsed(), count);
    let bytes = std::fs::metadata(&path)?.len();
    println!(
        "{:<44} {:>8.1} bytes each",
        "an export beside its entries",
        bytes as f64 / count as f64 - ENTRY_BYTES as f64
    );
    let input = BufReader::with_capacity(1 << 18, std::fs::File::open(&path)?);
    let start = Instant::now();
    let report = verify(input, &Expectation { origin: Some(keys.origin().to_owned()), heads: Vec::new() })?;
    each("verifying an export", start.elapsed(), count);
    black_box(report);
    Ok(())
}
