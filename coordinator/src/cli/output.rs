//! Standard output as text or JSON, and errors.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::json;

use super::failure::Failure;

/// Where a command writes.
pub(super) struct Out {
    json: bool,
}

impl Out {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Writes the value as JSON, or calls `text` where text is wanted.
    pub(super) fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&Self, &T)) {
        if self.json {
            self.line(escaped(&serde_json::to_string_pretty(value).unwrap_or_default()));
        } else {
            text(self, value);
        }
    }

    /// Writes one line of text. A reader that has gone (`| head`) is no error.
    pub(super) fn line(&self, text: impl AsRef<str>) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_ref().as_bytes());
        let _ = stdout.write_all(b"\n");
        let _ = stdout.flush();
    }

    /// Writes a table; `none` where there are no rows.
    pub(super) fn table<const N: usize>(&self, header: [&str; N], rows: Vec<[String; N]>, none: &str) {
        if rows.is_empty() {
            return self.line(none);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
        for line in table.lines() {
            self.line(line.trim());
        }
    }

    /// Says how to get the next page, where there is one.
    pub(super) fn more(&self, cursor: Option<&str>) {
        if let Some(cursor) = cursor {
            self.line(format!("… more with --cursor {cursor}"));
        }
    }

    /// Writes why the command failed to standard error.
    pub(super) fn failure(&self, failure: &Failure) {
        let mut stderr = io::stderr().lock();
        if self.json {
            let _ = writeln!(stderr, "{}", escaped(&json!({"error": failure}).to_string()));
            return;
        }
        let _ = writeln!(stderr, "error: {}", printable(&failure.message));
        if let Some(hint) = &failure.hint {
            let _ = writeln!(stderr, "  → {}", printable(hint));
        }
    }
}

/// Text from elsewhere without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// JSON in which what a terminal would obey is escaped; what lies below U+0020 is so already.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    text
}

/// An optional value, or a dash.
pub(super) fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

/// Bytes for people.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1_024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1_024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1_024.0 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\td"), "a\u{fffd}[2Jb\u{fffd}\nc\td");
    }

    #[test]
    fn json_for_a_terminal_reads_as_what_it_was() {
        let (text, json) = ("a\u{9b}2Jb\u{7f}ü", "\"a\\u009b2Jb\\u007fü\"");
        assert_eq!(escaped(&serde_json::to_string(text).unwrap()), json);
        assert_eq!(serde_json::from_str::<String>(json).unwrap(), text);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(
            [bytes(0), bytes(1_023), bytes(1_536), bytes(5 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }
}
