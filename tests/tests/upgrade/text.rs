//! A directory as text, for people to read and for git to compare.
//!
//! ```text
//! directory 700 ready                    the last of those that are empty
//! file 600 ready/000001700000000.5.u1    then its bytes in order, a run a line:
//!   "text, as a JSON string\n"
//!   hex 00ff10
//!   61 * 140000                          the byte 0x61 so many times
//! ```

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// As many equal bytes in a row are counted.
const RUN: usize = 16;
/// As many printable ones are text.
const WORD: usize = 4;
/// Bytes of a line in hex.
const HEX: usize = 48;

/// Writes down everything in the directory whose path below it `wanted` takes.
pub fn of(directory: &Path, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    add(&mut text, directory, directory, &wanted);
    text
}

fn add(text: &mut String, root: &Path, directory: &Path, wanted: &impl Fn(&str) -> bool) {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if !wanted(name) {
            continue;
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        if !path.is_dir() {
            writeln!(text, "file {mode:o} {name}").unwrap();
            lines(text, &fs::read(&path).unwrap());
        } else if fs::read_dir(&path).unwrap().next().is_none() {
            writeln!(text, "directory {mode:o} {name}").unwrap();
        } else {
            add(text, root, &path, wanted);
        }
    }
}

/// How many at its beginning are alike.
fn alike(bytes: &[u8], kind: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| kind(**byte)).count()
}

fn printable(byte: u8) -> bool {
    byte == b'\n' || (b' '..=b'~').contains(&byte)
}

fn lines(text: &mut String, mut rest: &[u8]) {
    while let Some(first) = rest.first() {
        let (same, word) = (alike(rest, |byte| byte == *first), alike(rest, printable));
        let taken = if same >= RUN {
            writeln!(text, "  {first:02x} * {same}").unwrap();
            same
        } else if word >= WORD {
            let line = alike(rest, |byte| byte != b'\n') + 1;
            let until_run = (1..word).find(|at| alike(&rest[*at..], |byte| byte == rest[*at]) >= RUN);
            let taken = word.min(line).min(until_run.unwrap_or(word));
            let string = std::str::from_utf8(&rest[..taken]).unwrap();
            writeln!(text, "  {}", serde_json::to_string(string).unwrap()).unwrap();
            taken
        } else {
            let ends = |at: &usize| {
                let next = &rest[*at..];
                alike(next, printable) >= WORD || alike(next, |byte| byte == next[0]) >= RUN
            };
            let taken = (1..rest.len().min(HEX)).find(ends).unwrap_or(rest.len().min(HEX));
            let hex: String = rest[..taken].iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "  hex {hex}").unwrap();
            taken
        };
        rest = &rest[taken..];
    }
}

fn bytes(line: &str) -> Vec<u8> {
    let byte = |hex: &str| u8::from_str_radix(hex, 16).unwrap();
    if line.starts_with('"') {
        serde_json::from_str::<String>(line).unwrap().into_bytes()
    } else if let Some(hex) = line.strip_prefix("hex ") {
        (0..hex.len()).step_by(2).map(|at| byte(&hex[at..at + 2])).collect()
    } else {
        let (hex, count) = line.split_once(" * ").unwrap();
        vec![byte(hex); count.parse().unwrap()]
    }
}

/// Makes the directory that the text describes.
pub fn make(text: &str, directory: &Path) {
    let mut file: Option<(&str, &str, Vec<u8>)> = None;
    let finish = |file: Option<(&str, &str, Vec<u8>)>| {
        let Some((mode, name, bytes)) = file else { return };
        let path = directory.join(name);
        make_directories(path.parent().unwrap());
        fs::write(&path, bytes).unwrap();
        set_mode(&path, mode);
    };
    for line in text.lines() {
        if let Some(run) = line.strip_prefix("  ") {
            file.as_mut().unwrap().2.extend(bytes(run));
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap();
        let (kind, mode, name) = (word(), word(), word());
        finish(file.take());
        if kind == "file" {
            file = Some((mode, name, Vec::new()));
        } else {
            make_directories(&directory.join(name));
            set_mode(&directory.join(name), mode);
        }
    }
    finish(file);
}

fn make_directories(path: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).unwrap();
}

fn set_mode(path: &Path, octal: &str) {
    fs::set_permissions(path, Permissions::from_mode(u32::from_str_radix(octal, 8).unwrap())).unwrap();
}

#[test]
fn any_bytes_are_the_same_after_they_were_text() {
    let mut odd: Vec<u8> = (0..=255).collect();
    odd.extend(b"a line\nanother \"one\"\\\n");
    odd.extend([0; 700]);
    odd.extend(b"abab * 16 hex ");
    odd.extend([b'x'; 15]);
    odd.extend([b'y'; 16]);
    odd.extend([0xff, b'z']);
    for bytes in [odd, b"x * 5".to_vec(), Vec::new(), vec![7; 20]] {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(one.path().join("a/empty")).unwrap();
        fs::write(one.path().join("a/file"), &bytes).unwrap();
        let text = of(one.path(), |_| true);
        make(&text, two.path());
        assert!(fs::read(two.path().join("a/file")).unwrap() == bytes, "{text}");
        assert_eq!(of(two.path(), |_| true), text);
    }
}
