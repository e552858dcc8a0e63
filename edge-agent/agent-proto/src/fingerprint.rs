//! The text form of a certificate's SHA-256, as people copy it around.

use alloc::string::String;
use core::fmt::Write;

/// `AB:CD:…`, 32 bytes.
pub fn fingerprint_text(fingerprint: &[u8; 32]) -> String {
    let mut text = String::with_capacity(95);
    for (i, byte) in fingerprint.iter().enumerate() {
        let colon = if i == 0 { "" } else { ":" };
        write!(text, "{colon}{byte:02X}").expect("a String takes everything");
    }
    text
}

/// Reads 64 hex digits of any case; colons and white space around it are ignored.
pub fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let mut fingerprint = [0; 32];
    let mut digits = 0;
    for c in text.trim().chars().filter(|c| *c != ':') {
        let value = u8::try_from(c.to_digit(16)?).ok()?;
        let byte = fingerprint.get_mut(digits / 2)?;
        *byte = *byte << 4 | value;
        digits += 1;
    }
    (digits == 64).then_some(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn reads_what_it_writes_and_what_people_paste() {
        let fingerprint: [u8; 32] = core::array::from_fn(|i| (i * 7) as u8);
        let text = fingerprint_text(&fingerprint);
        assert_eq!(text.len(), 95);
        for text in [text.clone(), text.to_lowercase().replace(':', ""), " ".to_string() + &text + "\n"] {
            assert_eq!(parse_fingerprint(&text), Some(fingerprint), "{text}");
        }
        for bad in ["", "00", &text[..93], &(text.clone() + ":00"), &text.replace('0', "g"), "é"] {
            assert_eq!(parse_fingerprint(bad), None, "{bad}");
        }
    }
}
