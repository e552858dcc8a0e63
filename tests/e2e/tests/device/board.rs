//! The emulated board: its flash as a file, made as a factory would, and QEMU around the firmware.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_proto::TrustBundle;
use device_core::{Board, Device, Layout, Provision, Region, Slot, Taken};
use ed25519_dalek::SigningKey;
use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use event_schema::Timestamp;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::source::{Source, credential, issuer_key, now};

pub(crate) const BOARD: Board = Board::named("mps2-an386");

/// As in the firmware's board: what is written here is read there.
const LAYOUT: Layout = Layout {
    identity: Region { start: 0, len: 0x2000 },
    journal: Region { start: 0x2000, len: 0x10000 },
    segment_len: 0x4000,
    manifests: [Region { start: 0x12000, len: 0x2000 }, Region { start: 0x14000, len: 0x2000 }],
    slots: [Region { start: 0x18000, len: 0x80000 }, Region { start: 0x98000, len: 0x80000 }],
};
const CREDENTIAL: usize = 0x16000;
const FLASH_LEN: usize = 0x118000;
/// The board's memory that stands for flash.
const MEMORY_LEN: u64 = 16 << 20;

pub(crate) fn device_key() -> SigningKey {
    SigningKey::from_bytes(&[4; 32])
}

pub(crate) fn root_key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

pub(crate) fn command_key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// The firmware's file, if it can be run here.
pub(crate) fn firmware() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built = std::env::var_os("FLOTILLA_FIRMWARE")
        .map_or_else(|| root.join("target/firmware/thumbv7em-none-eabihf/release/firmware"), PathBuf::from);
    let mut qemu = Command::new("qemu-system-arm");
    let qemu = qemu.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let missing = if !qemu.is_ok_and(|status| status.success()) {
        "qemu-system-arm is missing"
    } else if !built.is_file() {
        "the firmware is not built: cargo xtask firmware"
    } else {
        return Some(built);
    };
    assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

/// NOR flash in memory.
struct Memory(Vec<u8>);

impl ErrorType for Memory {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Memory {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        bytes.copy_from_slice(&self.0[offset as usize..offset as usize + bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }
}

impl NorFlash for Memory {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = 4096;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.0[from as usize..to as usize].fill(0xff);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        for (cell, byte) in self.0[offset as usize..].iter_mut().zip(bytes) {
            *cell &= byte;
        }
        Ok(())
    }
}

/// The flash of one device.
pub(crate) struct FlashFile {
    folder: TempDir,
    firmware: PathBuf,
}

impl FlashFile {
    /// A device that has just been made, and has been given its order.
    pub(crate) fn of_a_new_device(firmware: &Path, source: &Source) -> Self {
        let bundle = TrustBundle {
            version: 1,
            root_key: root_key().verifying_key().to_bytes(),
            command_keys: vec![command_key().verifying_key().to_bytes()],
            credential_keys: vec![issuer_key().verifying_key().to_bytes()],
            ca_certificate: Vec::new(),
        };
        let as_whom = Provision {
            seed: device_key().to_bytes(),
            root_key: bundle.root_key,
            trust: &bundle.sign(&root_key()),
            board: BOARD,
            version: 1,
            running: Slot::A,
            now: Timestamp(now().0 - 60_000),
        };
        let memory = Memory(vec![0xff; FLASH_LEN]);
        let mut device = Device::provision(memory, LAYOUT, &as_whom).expect("new flash");
        let taken = device.take(&source.order(), Some(now()));
        assert!(matches!(taken, Ok(Taken::Obey(_))), "{taken:?}");
        let mut bytes = device.into_flash().0;
        let credential = credential(&device_key(), "device");
        let len = u16::try_from(credential.len()).expect("a short credential");
        bytes[CREDENTIAL..CREDENTIAL + 2].copy_from_slice(&len.to_le_bytes());
        bytes[CREDENTIAL + 2..CREDENTIAL + 2 + credential.len()].copy_from_slice(&credential);
        let folder = TempDir::new().expect("a folder");
        let mut file = File::create(folder.path().join("flash")).expect("a file");
        file.write_all(&bytes).expect("room for a flash");
        file.set_len(MEMORY_LEN).expect("room for a flash");
        Self { folder, firmware: firmware.to_owned() }
    }

    /// The device on it; the emulator is not running.
    pub(crate) fn open(&self) -> Device<impl NorFlash> {
        let mut bytes = std::fs::read(self.folder.path().join("flash")).expect("the flash");
        bytes.truncate(FLASH_LEN);
        Device::open(Memory(bytes), LAYOUT, BOARD).expect("a device")
    }
}

/// The board, while it has power.
pub(crate) struct Emulator {
    process: Child,
    lines: mpsc::UnboundedReceiver<String>,
    reader: Option<std::thread::JoinHandle<()>>,
    said: Vec<String>,
    heard: Instant,
}

impl Emulator {
    pub(crate) fn start(flash: &FlashFile) -> Self {
        let folder = flash.folder.path();
        let memory = format!(
            "memory-backend-file,id=flash,size={MEMORY_LEN},share=on,mem-path={}",
            folder.join("flash").display()
        );
        let log = File::create(folder.join("qemu.log")).expect("a log");
        let mut process = Command::new("qemu-system-arm")
            .args(["-machine", "mps2-an386,memory-backend=flash", "-object", &memory])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .args(["-semihosting-config", "enable=on,target=native", "-nic", "user", "-kernel"])
            .arg(&flash.firmware)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("qemu-system-arm");
        let output = process.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::unbounded_channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        Self { process, lines, reader: Some(reader), said: Vec::new(), heard: Instant::now() }
    }

    /// The next line, if it comes in time.
    pub(crate) async fn line(&mut self, within: Duration) -> Option<String> {
        let line = tokio::time::timeout(within, self.lines.recv()).await.ok()?;
        let line = line.unwrap_or_else(|| panic!("the emulator has ended\n{}", self.said()));
        self.said.push(line.clone());
        self.heard = Instant::now();
        Some(line)
    }

    /// For how long nothing was said.
    pub(crate) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// All that was said, for failures.
    pub(crate) fn said(&self) -> String {
        self.said.join("\n")
    }

    /// Takes the power; gives the lines that were said and not read yet.
    pub(crate) fn kill(&mut self) -> Vec<String> {
        self.process.kill().expect("a process of ours");
        self.process.wait().expect("a process of ours");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends with the pipe");
        }
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
