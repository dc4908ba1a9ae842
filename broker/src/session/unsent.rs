//! What was on its way to a client when its connection ended.

use std::collections::{HashMap, VecDeque};

use super::outbound::{Flight, What};
use crate::hub::message::Mail;

/// What outlives the connection.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    pub(super) again: VecDeque<(u16, Flight)>,
    pub(super) last_id: u16,
    pub(super) copies: VecDeque<Mail>,
    /// Of each state topic, the rank that the client has acknowledged.
    pub(super) ranks: HashMap<String, u64>,
}

impl Unsent {
    fn weight(&self) -> usize {
        let weight = |mail: &Mail| size_of::<Mail>() + mail.message.bytes();
        let again = self.again.iter().map(|(_, flight)| match &flight.what {
            What::App(mail) => weight(mail),
            What::Once | What::Receipt(_) | What::State(..) | What::Released => 0,
        });
        again.sum::<usize>() + self.copies.iter().map(weight).sum::<usize>()
    }

    /// As [`super::leaving::Kept::shorten`].
    pub(super) fn shorten(&mut self, room: usize) -> (usize, u64) {
        let mut dropped = 0;
        while self.weight() > room {
            dropped += 1;
            if self.copies.pop_back().is_some() {
                continue;
            }
            let newest = self.again.iter().rposition(|(_, flight)| matches!(flight.what, What::App(_)));
            match newest {
                Some(at) => drop(self.again.remove(at)),
                None => break,
            }
        }
        (self.weight(), dropped)
    }
}
