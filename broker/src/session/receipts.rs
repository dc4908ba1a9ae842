//! The stream of one member's receipts to one connection: pulled a page at a time as the client acknowledges, so that
//! a backlog never stands in the way of live messages.

use std::collections::VecDeque;

use bytes::Buf;

use super::outbound::{Sent, What};
use super::{Effect, Question, Session};
use crate::backend::ReceiptRow;
use crate::hub::message::Message;

/// Rows of one page.
const PAGE: usize = 64;

/// Where the stream stands.
#[derive(Debug)]
pub(super) struct Receipts {
    topic: String,
    /// Receipts that may be unacknowledged: half of the client's window.
    window: usize,
    stage: Stage,
    /// The backend was asked where to begin, perhaps for a subscription that has ended since.
    cursor_asked: bool,
    /// The page above this is on its way.
    page_asked: Option<i64>,
    /// There may be rows behind the last page.
    more: bool,
    rows: VecDeque<ReceiptRow>,
    /// Sequence numbers that were sent, in order, and whether they were acknowledged.
    sent: VecDeque<(i64, bool)>,
    /// Sent at QoS 0: acknowledged when so many bytes are written.
    unwritten: VecDeque<(u64, i64)>,
    /// Acknowledged up to here, and not yet reported.
    report: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody subscribes.
    Off,
    /// The backend was asked where to begin.
    Starting,
    /// Rows above `after` are wanted.
    On { after: i64 },
}

impl Receipts {
    pub(super) fn new(topic: String, window: usize) -> Self {
        Self {
            topic,
            window: (window / 2).max(1),
            stage: Stage::Off,
            cursor_asked: false,
            page_asked: None,
            more: false,
            rows: VecDeque::new(),
            sent: VecDeque::new(),
            unwritten: VecDeque::new(),
            report: None,
        }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Follows the subscriptions. Tells whether the backend is to be asked where to begin.
    pub(super) fn follow(&mut self, wanted: bool) -> bool {
        match (wanted, self.stage) {
            (true, Stage::Off) => {
                self.stage = Stage::Starting;
                !std::mem::replace(&mut self.cursor_asked, true)
            }
            (false, Stage::Starting | Stage::On { .. }) => {
                self.stage = Stage::Off;
                self.rows.clear();
                false
            }
            _ => false,
        }
    }

    /// Whether the beginning is still to be set.
    pub(super) fn is_starting(&self) -> bool {
        self.cursor_asked
    }

    pub(super) fn start(&mut self, cursor: i64) {
        self.cursor_asked = false;
        if self.stage == Stage::Starting {
            self.stage = Stage::On { after: cursor };
            self.more = true;
        }
    }

    pub(super) fn ready(&mut self) {
        self.more = true;
    }

    pub(super) fn page(&mut self, after: i64, rows: Vec<ReceiptRow>) {
        self.page_asked = None;
        // Of a subscription that has ended since, it may be another page than the one wanted now.
        if self.stage == (Stage::On { after }) {
            let last = rows.last().map_or(after, |row| row.seq.max(after));
            self.more |= !rows.is_empty();
            self.stage = Stage::On { after: last };
            self.rows.extend(rows);
        }
    }

    /// The client has the receipt `seq`.
    pub(super) fn acknowledged(&mut self, seq: i64) {
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.0 == seq) {
            sent.1 = true;
        }
        while let Some((seq, true)) = self.sent.front().copied() {
            self.sent.pop_front();
            self.report = Some(seq);
        }
    }

    /// The page to ask for now, if any.
    fn wanted(&mut self) -> Option<(i64, usize)> {
        match self.stage {
            Stage::On { after } if self.more && self.rows.is_empty() && self.page_asked.is_none() => {
                self.more = false;
                self.page_asked = Some(after);
                Some((after, PAGE))
            }
            _ => None,
        }
    }
}

impl Session {
    pub(super) fn send_receipts(&mut self) {
        let topic = self.receipts.topic.clone();
        while self.receipts.sent.len() < self.receipts.window {
            let Some(row) = self.receipts.rows.pop_front() else {
                break;
            };
            let message = Message::event(topic.clone(), row.payload.clone());
            match self.send_own(&message, false, || What::Receipt(row.seq)) {
                Sent::Later => {
                    self.receipts.rows.push_front(row);
                    break;
                }
                Sent::Yes { qos: 0 } => {
                    self.receipts.sent.push_back((row.seq, false));
                    self.receipts.unwritten.push_back((self.out.queued(), row.seq));
                }
                Sent::Yes { .. } => self.receipts.sent.push_back((row.seq, false)),
                // The client says that it can never take it: the next one must not wait for it.
                Sent::Dropped => {
                    self.receipts.sent.push_back((row.seq, false));
                    self.receipts.acknowledged(row.seq);
                }
            }
        }
        if self.out.remaining() < super::OUT_HIGH
            && let Some((after, max)) = self.receipts.wanted()
        {
            self.effects.push_back(Effect::Ask(Question::Receipts { after, max }));
        }
    }

    pub(super) fn report_receipts(&mut self) {
        if let Some(seq) = self.receipts.report.take() {
            self.effects.push_back(Effect::ReceiptsAcknowledged(seq));
        }
    }

    /// Bytes of the output were written.
    pub(crate) fn wrote(&mut self) {
        while let Some((at, seq)) = self.receipts.unwritten.front().copied()
            && at <= self.out.written()
        {
            self.receipts.unwritten.pop_front();
            self.receipts.acknowledged(seq);
        }
    }
}
