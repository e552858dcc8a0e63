//! What an executable needs of the machine it is to run on, read from its ELF headers.

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, FileKind, elf::PT_INTERP, elf::PT_LOAD};

/// ARM NAS boxes run kernels with pages of 4, 32 and 64 KiB: segments aligned to less cannot be mapped by all of them.
pub const LOAD_ALIGN_MIN: u64 = 64 << 10;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// `e_machine` by its usual name, such as `arm`, `aarch64`, `x86_64`.
    pub machine: &'static str,
    /// It loads without an interpreter, and so without libraries.
    pub is_static: bool,
    /// The least alignment of a segment that is loaded, bytes.
    pub load_align: u64,
    /// Whether it still has a symbol table.
    pub has_symbols: bool,
    /// On 32-bit ARM: the architecture that code was compiled for, `Tag_CPU_arch` of the build attributes (4: v5TE, 10: v7).
    pub arm_arch: Option<u64>,
    /// On 32-bit ARM: `Tag_Advanced_SIMD_arch`, 0 without NEON.
    pub arm_neon: Option<u64>,
}

/// Why a file is not what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It is no ELF executable that can be read.
    #[error("no ELF executable: {0}")]
    Malformed(String),
}

impl Elf {
    /// Reads the headers.
    pub fn read(bytes: &[u8]) -> Result<Self, ElfError> {
        let bad = |e: object::Error| ElfError::Malformed(e.to_string());
        match FileKind::parse(bytes).map_err(bad)? {
            FileKind::Elf32 => read::<FileHeader32<Endianness>>(bytes).map_err(bad),
            FileKind::Elf64 => read::<FileHeader64<Endianness>>(bytes).map_err(bad),
            other => Err(ElfError::Malformed(format!("{other:?}"))),
        }
    }

    /// What keeps it from being shipped as a static program for `machine`; empty if nothing does.
    #[must_use]
    pub fn faults(&self, machine: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.machine != machine {
            faults.push(format!("it is for {}, not {machine}", self.machine));
        }
        if !self.is_static {
            faults.push("it needs an interpreter: libraries of the system".into());
        }
        if self.load_align < LOAD_ALIGN_MIN {
            faults.push(format!(
                "a segment is aligned to {} bytes; kernels with pages of {LOAD_ALIGN_MIN} cannot load it",
                self.load_align
            ));
        }
        if self.has_symbols {
            faults.push("it is not stripped".into());
        }
        faults
    }
}

fn read<H: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> object::Result<Elf> {
    let header = H::parse(bytes)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, bytes)?;
    let loads = segments.iter().filter(|s| s.p_type(endian) == PT_LOAD);
    let load_align = loads.map(|s| s.p_align(endian).into()).min().unwrap_or(0);
    let sections = header.sections(endian, bytes)?;
    let has_symbols = sections.symbols(endian, bytes, elf::SHT_SYMTAB).is_ok_and(|s| !s.is_empty());
    let mut attributes = [None; 2];
    for section in sections.iter() {
        if section.sh_type(endian) != elf::SHT_ARM_ATTRIBUTES || header.e_machine(endian) != elf::EM_ARM {
            continue;
        }
        let mut subsections = section.attributes(endian, bytes)?.subsections()?;
        while let Some(subsection) = subsections.next()? {
            if subsection.vendor() != b"aeabi" {
                continue;
            }
            let mut parts = subsection.subsubsections();
            while let Some(part) = parts.next()? {
                arm(part.attributes(), &mut attributes)?;
            }
        }
    }
    Ok(Elf {
        machine: match header.e_machine(endian) {
            elf::EM_ARM => "arm",
            elf::EM_AARCH64 => "aarch64",
            elf::EM_386 => "i386",
            elf::EM_X86_64 => "x86_64",
            _ => "another machine",
        },
        is_static: !segments.iter().any(|s| s.p_type(endian) == PT_INTERP),
        load_align,
        has_symbols,
        arm_arch: attributes[0],
        arm_neon: attributes[1],
    })
}

/// Numbers of two build attributes.
const CPU_ARCH: u64 = 6;
const ADVANCED_SIMD_ARCH: u64 = 12;

/// `Tag_CPU_arch` and `Tag_Advanced_SIMD_arch` ("Addenda to, and Errata in, the ABI for the Arm Architecture", §3.3.5).
fn arm(
    mut reader: object::read::elf::AttributeReader<'_>,
    found: &mut [Option<u64>; 2],
) -> object::Result<()> {
    while let Some(tag) = reader.read_tag()? {
        match tag {
            CPU_ARCH => found[0] = Some(reader.read_integer()?),
            ADVANCED_SIMD_ARCH => found[1] = Some(reader.read_integer()?),
            // Texts: CPU_raw_name, CPU_name, compatibility (a number and a text), conformance; beyond 32 odd ones.
            32 => {
                reader.read_integer()?;
                reader.read_string()?;
            }
            4 | 5 | 65 | 67 => drop(reader.read_string()?),
            tag if tag > 32 && tag % 2 == 1 => drop(reader.read_string()?),
            _ => drop(reader.read_integer()?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// This test's own program: of this machine, with libraries and symbols.
    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().expect("a path")).expect("read")
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
    fn what_an_ordinary_program_lacks_is_told() {
        let elf = Elf::read(&own()).expect("an executable");
        assert_eq!((elf.machine, elf.is_static, elf.arm_arch), ("x86_64", false, None));
        let faults = elf.faults("arm").join("; ");
        for word in ["not arm", "interpreter", "aligned to 4096"] {
            assert!(faults.contains(word), "{faults}");
        }
    }

    #[test]
    fn what_is_no_program_is_told() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 100]] {
            assert!(Elf::read(bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn damaged_programs_do_no_harm(at in 0usize..4096, byte: u8, len in 0usize..8192) {
            let mut bytes = own();
            bytes[at] = byte;
            let _ = Elf::read(&bytes);
            bytes.truncate(len);
            let _ = Elf::read(&bytes);
        }
    }
}
