//! Packages that NAS boxes and Linux systems take, made byte for byte the same from the same input, and checks of them by
//! the rules that their vendors publish.
//!
//! Owns the formats (`targets/FORMATS.md`). What goes into a package lies in a folder beside this crate for each format, such
//! as `targets/synology`; the programs come from `cargo xtask dist`. Nothing here runs anything.

/// A file of a folder beside this crate.
macro_rules! asset {
    ($path:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../", $path)).as_slice()
    };
}

pub mod container;
pub mod deb;
pub mod elf;
pub mod ipk;
pub mod linux;
pub mod qpkg;
pub mod rpm;
pub mod spk;
pub mod tarball;
pub mod tree;
pub mod wd;

/// The programs and texts of one release, as packages of every format need them.
#[derive(Clone, Copy)]
pub struct Release<'a> {
    /// `1.2.3`.
    pub version: &'a str,
    /// Counts packagings of one version, from 1.
    pub build: u32,
    /// The time that all files in packages have, seconds since 1970: that of the commit.
    pub time: u64,
    /// Licence texts.
    pub licence: &'a str,
}
