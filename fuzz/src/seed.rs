//! Bytes as text, and back.

use std::path::{Path, PathBuf};

/// Every seed of a directory, by name.
pub(crate) fn read_all(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(files) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut seeds: Vec<_> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "seed"))
        .map(|path| {
            let text =
                std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let bytes = read(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
            (path, bytes)
        })
        .collect();
    seeds.sort();
    seeds
}

fn read(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        if char != '\\' {
            bytes.extend(char.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        match rest.next() {
            Some('\n') => {}
            Some('\\') => bytes.push(b'\\'),
            Some('r') => bytes.push(b'\r'),
            Some('n') => bytes.push(b'\n'),
            Some('t') => bytes.push(b'\t'),
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let byte = u8::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
                bytes.push(byte.ok_or_else(|| format!("\\x{digits} is no byte"))?);
            }
            other => return Err(format!("{other:?} after a backslash means nothing")),
        }
    }
    Ok(bytes)
}

/// The text of which [`read`] makes these bytes.
pub(crate) fn write(bytes: &[u8]) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for byte in bytes {
        let piece = match byte {
            b'\n' => {
                text.push('\n');
                column = 0;
                continue;
            }
            b'\\' => "\\\\".to_owned(),
            b'\r' => "\\r".to_owned(),
            b'\t' => "\\t".to_owned(),
            b' '..=b'~' => char::from(*byte).to_string(),
            other => format!("\\x{other:02x}"),
        };
        if column > 110 {
            text.push_str("\\\n");
            column = 0;
        }
        column += piece.len();
        text.push_str(&piece);
    }
    if column > 0 {
        text.push_str("\\\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bytes_have_a_text_of_short_lines_of_which_they_are_read() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [b"".as_slice(), b"\n", b"a", b"a\n", b"\\\n\\", b"\x30\x02\\x30", &all, &all.repeat(9)]
        {
            let text = write(bytes);
            assert_eq!(read(&text).unwrap(), bytes, "{text}");
            assert!(text.is_ascii() && text.lines().all(|line| line.len() < 120), "{text}");
        }
        for wrong in ["\\", "\\q", "\\x1", "\\xyz", "\\x+1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
