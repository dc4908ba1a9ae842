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
    /// As [`super::leaving::Kept::shorten`].
    pub(super) fn shorten(&mut self, room: usize) -> (usize, u64) {
        let flights = self.again.iter().map(|(_, flight)| weight(flight));
        let mut held = flights.sum::<usize>() + self.copies.iter().map(Mail::weight).sum::<usize>();
        let mut dropped = 0;
        while held > room
            && let Some(newest) = self.copies.pop_back()
        {
            (held, dropped) = (held - newest.weight(), dropped + 1);
        }
        let mut kept = VecDeque::with_capacity(self.again.len());
        while let Some((id, flight)) = self.again.pop_back() {
            if held > room && weight(&flight) > 0 {
                (held, dropped) = (held - weight(&flight), dropped + 1);
            } else {
                kept.push_front((id, flight));
            }
        }
        self.again = kept;
        (held, dropped)
    }
}

fn weight(flight: &Flight) -> usize {
    match &flight.what {
        What::App(mail) => mail.weight(),
        What::Once | What::Receipt(_) | What::State(..) | What::Released => 0,
    }
}
