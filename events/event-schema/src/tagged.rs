//! Numbered, versioned variants: the byte form of every enum that is stored, signed or sent.
//!
//! A plain serde enum would be numbered by the order of its source lines, and postcard would decode
//! `Done` as `Started` after somebody inserts a line. Here each variant names its own number, its
//! version and its payload struct; the payload's bytes are kept apart, so that an unknown kind can be
//! named in an error instead of being misread.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The byte form of one variant: its number, the version of its payload, and the payload as postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    /// Number of the variant, never reused.
    pub kind: u16,
    /// Version of the payload's shape, from 1.
    pub version: u8,
    /// The payload, postcard-encoded.
    pub payload: Vec<u8>,
}

/// Why bytes are not what they should be. The bytes' fault, never ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not the encoding of the named type: truncated, or a value out of range.
    Malformed {
        /// Type that was expected.
        what: &'static str,
    },
    /// More bytes than the named type takes.
    Trailing {
        /// Type that was expected.
        what: &'static str,
        /// How many bytes were left over.
        bytes: usize,
    },
    /// A kind or version that this program does not know: written by a newer one. Stop, never skip.
    Unknown {
        /// Enum that was expected.
        what: &'static str,
        /// Number found.
        kind: u16,
        /// Version found.
        version: u8,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { what } => write!(f, "these bytes are no {what}"),
            Self::Trailing { what, bytes } => write!(f, "{bytes} bytes follow the {what}"),
            Self::Unknown { what, kind, version } => {
                write!(f, "{what} of unknown kind {kind} version {version}: written by a newer program")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes `bytes` as one `T` and nothing more.
pub fn decode_exact<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes::<T>(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::Trailing { what, bytes: rest.len() }),
        Err(_) => Err(DecodeError::Malformed { what }),
    }
}

/// Encodes a value as postcard.
///
/// # Panics
/// If the value cannot be serialised, which none of this crate's types can bring about: they hold no
/// maps of unknown length and no foreign `Serialize` implementations.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data serialises into a growing buffer")
}

/// Defines an enum whose variants carry a number, a wire name and a payload struct of a version.
///
/// Generates the enum, `kind()`, `name()`, `From<Payload>`, `to_tagged`, `from_tagged`, `encode`,
/// `decode`. Only the newest version of a payload is a variant; older ones are handled by the `upcast`
/// function given, which turns a [`Tagged`] of an old version into the newest.
#[macro_export]
macro_rules! tagged_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident, upcast = $upcast:path {
        $($(#[$vmeta:meta])* ($kind:literal, $version:literal) $wire:literal => $variant:ident),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis enum $name {
            $($(#[$vmeta])* $variant($variant),)+
        }

        impl $name {
            /// Every kind there is: number, version of the payload, wire name.
            pub const KINDS: &'static [(u16, u8, &'static str)] = &[$(($kind, $version, $wire)),+];

            /// Number of the variant on the wire.
            pub fn kind(&self) -> u16 {
                match self { $(Self::$variant(_) => $kind,)+ }
            }

            /// Name of the variant as shown to people and scripts, such as `run.started`.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $wire,)+ }
            }

            /// The byte form, in parts.
            pub fn to_tagged(&self) -> $crate::Tagged {
                match self {
                    $(Self::$variant(p) => $crate::Tagged {
                        kind: $kind,
                        version: $version,
                        payload: $crate::encode(p),
                    },)+
                }
            }

            /// Reads the byte form back; payloads of older versions are upcast first.
            pub fn from_tagged(tagged: &$crate::Tagged) -> Result<Self, $crate::DecodeError> {
                let upcast;
                let tagged = match $upcast(tagged) {
                    Some(newer) => { upcast = newer; &upcast }
                    None => tagged,
                };
                match (tagged.kind, tagged.version) {
                    $(($kind, $version) => {
                        $crate::decode_exact::<$variant>($wire, &tagged.payload).map(Self::$variant)
                    })+
                    (kind, version) => {
                        Err($crate::DecodeError::Unknown { what: stringify!($name), kind, version })
                    }
                }
            }

            /// Encodes the variant with its number and version.
            pub fn encode(&self) -> alloc::vec::Vec<u8> {
                $crate::encode(&self.to_tagged())
            }

            /// Decodes what [`Self::encode`] gives, and nothing more.
            pub fn decode(bytes: &[u8]) -> Result<Self, $crate::DecodeError> {
                Self::from_tagged(&$crate::decode_exact(stringify!($name), bytes)?)
            }
        }

        $(impl From<$variant> for $name {
            fn from(payload: $variant) -> Self {
                Self::$variant(payload)
            }
        })+
    };
}
