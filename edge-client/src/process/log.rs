//! What a command writes, on its way to the server.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millpond_protocol::limits;

/// Bytes that may wait for the server: while it cannot be reached, the command must not stop.
const WAITING_MAX: usize = 1 << 20;
/// Bytes of one message: JSON may write a byte as six.
const MESSAGE: usize = limits::LOG_MESSAGE_MAX / 2;
/// Bytes of one line; the rest of a longer one is the next.
const LINE_MAX: u64 = 8 << 10;

/// Lines that wait, and the progress that was stated last.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    text: String,
    dropped: usize,
    progress: Option<f64>,
    /// The progress is another one than the server was told.
    stated: bool,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, as it was written. `progress 0.4` states progress and is no part of the log.
    pub(super) fn line(&self, line: &str) {
        let mut waiting = self.lock();
        if let Some(progress) = progress(line) {
            waiting.stated |= waiting.progress.replace(progress) != Some(progress);
        } else if waiting.text.len() + line.len() > WAITING_MAX {
            waiting.dropped += line.len();
        } else {
            waiting.text.push_str(line);
        }
    }

    /// Reads a command's output to its end.
    pub(super) fn read(&self, from: impl Read) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        // An error is an end: nobody writes there any more.
        while let Ok(1..) = from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            self.line(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }

    /// As much as one message takes, and the progress.
    pub(super) fn take(&self) -> (Option<String>, Option<f64>) {
        let mut waiting = self.lock();
        if waiting.dropped > 0 {
            let note = format!("({} bytes of the log were dropped here)\n", waiting.dropped);
            waiting.text.push_str(&note);
            waiting.dropped = 0;
        }
        waiting.stated = false;
        let cut = waiting.text.floor_char_boundary(MESSAGE);
        let rest = waiting.text.split_off(cut);
        let text = std::mem::replace(&mut waiting.text, rest);
        ((!text.is_empty()).then_some(text), waiting.progress)
    }

    /// Puts back what the server did not get, and the progress with it.
    pub(super) fn put_back(&self, text: &str) {
        let mut waiting = self.lock();
        waiting.text.insert_str(0, text);
        waiting.stated = waiting.progress.is_some();
    }

    /// The end of it, for the last message; what is before that is dropped.
    pub(super) async fn tail(&self) -> Option<String> {
        // What is on its way may be put back.
        let _turn = self.turn().await;
        let Waiting { mut text, mut dropped, .. } = std::mem::take(&mut *self.lock());
        let last = text.split_off(text.ceil_char_boundary(text.len().saturating_sub(MESSAGE)));
        dropped += text.len();
        if dropped > 0 {
            return Some(format!("({dropped} bytes of the log were dropped here)\n{last}"));
        }
        (!last.is_empty()).then_some(last)
    }

    /// The right to tell a part: one at a time keeps the order.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.turn.lock().await
    }

    /// Whether more waits than one message takes.
    pub(super) fn is_long(&self) -> bool {
        self.lock().text.len() > MESSAGE
    }

    /// Whether nothing waits: no text, and no progress that is news.
    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.text.is_empty() && !waiting.stated
    }
}

/// The statement of a line `progress 0.4`.
fn progress(line: &str) -> Option<f64> {
    let value: f64 = line.trim().strip_prefix("progress ")?.trim().parse().ok()?;
    (0.0..=1.0).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_in_order_and_progress_is_understood() {
        let log = Log::default();
        log.read(&b"reading\nprogress 0.25\nmerging\nprogress 7\nno newline"[..]);
        assert_eq!(log.take(), (Some("reading\nmerging\nprogress 7\nno newline".into()), Some(0.25)));
        assert_eq!(log.take(), (None, Some(0.25)));
        log.line("progress 0.25\n");
        assert!(log.is_empty(), "the server knows it");
        log.line("progress 0.5\n");
        assert!(!log.is_empty());
        assert_eq!(log.take(), (None, Some(0.5)));
        assert!(log.is_empty());
        log.put_back("");
        assert!(!log.is_empty(), "the server did not get it");
    }

    #[test]
    fn what_is_too_much_is_dropped_and_counted_and_a_message_has_a_limit() {
        let log = Log::default();
        for _ in 0..200 {
            log.read(&[b'x'; 10_000][..]);
        }
        let mut got = String::new();
        while let (Some(text), _) = log.take() {
            assert!(text.len() <= MESSAGE);
            got.push_str(&text);
        }
        assert!(got.len() <= WAITING_MAX + 100 && got.contains("bytes of the log were dropped"));
        log.put_back("again\n");
        assert_eq!(log.take().0.as_deref(), Some("again\n"));
        assert!(log.is_empty());
    }

    #[tokio::test]
    async fn the_last_message_is_the_end_of_what_waits() {
        let log = Log::default();
        assert_eq!(log.tail().await, None);
        log.line("why it failed\n");
        assert_eq!(log.tail().await.as_deref(), Some("why it failed\n"));
        for n in 0..10_000 {
            log.line(&format!("{n} ü\n"));
        }
        let tail = log.tail().await.unwrap();
        assert!(tail.contains("bytes of the log were dropped here") && tail.ends_with("9999 ü\n"));
        assert!(tail.len() <= limits::LOG_MESSAGE_MAX && log.is_empty());
    }
}
