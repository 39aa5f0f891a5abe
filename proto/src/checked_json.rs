//! Small JSON files that people may read and bits may flip in: the last field is a checksum of the whole text.

use crate::checksum::crc32c;

/// How the field is spelled, up to its value of eight hexadecimal digits.
const FIELD: &str = "\"crc32c\": \"";
const BLANK: &str = "00000000";

/// Adds the field to a JSON object as `serde_json` prints it for people; `None` if it is no such object.
pub fn seal(object: &str) -> Option<String> {
    let fields = object.trim_end().strip_suffix('}')?.trim_end();
    let comma = if fields.ends_with('{') { "" } else { "," };
    let blank = format!("{fields}{comma}\n  {FIELD}{BLANK}\"\n}}\n");
    let sum = format!("{:08x}", crc32c(blank.as_bytes()));
    Some(blank.replacen(&format!("{FIELD}{BLANK}"), &format!("{FIELD}{sum}"), 1))
}

/// Whether a text is as it was sealed; `None` for one without the field, as older programs wrote it.
pub fn is_intact(text: &[u8]) -> Option<bool> {
    let field = text.windows(FIELD.len()).rposition(|window| window == FIELD.as_bytes())?;
    let at = field + FIELD.len();
    let Some(found) = text.get(at..at + BLANK.len()) else { return Some(false) };
    let blank = [&text[..at], BLANK.as_bytes(), &text[at + BLANK.len()..]].concat();
    Some(found == format!("{:08x}", crc32c(&blank)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_is_json_and_any_flipped_bit_is_noticed() {
        for object in ["{}", "{\n  \"a\": 1,\n  \"b\": \"crc32c\"\n}"] {
            let sealed = seal(object).unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(&sealed).unwrap()["crc32c"].is_string());
            assert_eq!(is_intact(sealed.as_bytes()), Some(true));
            for bit in 0..sealed.len() * 8 {
                let mut bad = sealed.clone().into_bytes();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(is_intact(&bad), Some(true), "bit {bit}");
            }
        }
        assert_eq!(is_intact(b"{\"a\": 1}"), None);
        assert_eq!(seal("[1]"), None);
    }
}
