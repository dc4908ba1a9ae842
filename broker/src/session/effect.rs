//! What a session has its owner do, and how it ends.

use crate::backend::{Incoming, RefusedPublish, Subscription};
use crate::codec::packet::Replay;
use crate::hub::message::Message;
use crate::hub::trie::Options;

/// Something that the owner does for the session.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Hand the message to the backend. Outcomes come back by [`Session::outcome`](super::Session::outcome) in the order of these.
    Take(Incoming),
    /// Hand the message to the hub. Outcomes come back in one order with those of [`Effect::Take`].
    Publish(Box<Message>),
    /// Tell the hub of a subscription.
    Subscribe { filter: String, options: Options, replay: Replay },
    /// All that the hub was to be told before is so: [`Session::subscribed`](super::Session::subscribed).
    Subscribed(Suback),
    /// Tell the hub that one has ended.
    Unsubscribe(String),
    /// Tell the backend that the gate refused a PUBLISH.
    Refused(RefusedPublish),
    /// Find something out.
    Ask(Question),
    /// The client has every receipt up to here.
    ReceiptsAcknowledged(i64),
}

impl Effect {
    /// Whether it has to come behind the subscriptions before it.
    pub(crate) fn follows_subscriptions(&self) -> bool {
        matches!(self, Self::Subscribe { .. } | Self::Subscribed(_) | Self::Ask(Question::States(_)))
    }
}

/// The acknowledgement of a SUBSCRIBE that the hub is told of.
#[derive(Debug)]
pub(crate) struct Suback {
    pub(super) id: u16,
    pub(super) codes: Vec<u8>,
    /// How many codes it counted for while it waited.
    pub(super) filters: usize,
}

/// Something that the session wants to know. Of each kind one is asked at a time.
#[derive(Debug)]
pub(crate) enum Question {
    /// Keep these subscriptions for as long as the session lives; answered by [`Session::kept`](super::Session::kept).
    Keep(Vec<Subscription>),
    /// Ask for the current messages of state topics; answered by [`Session::states`](super::Session::states).
    States(Vec<String>),
    /// Ask where the receipts begin; answered by [`Session::cursor`](super::Session::cursor).
    Cursor,
    /// Ask for a page of receipts; answered by [`Session::receipts`](super::Session::receipts).
    Receipts { after: i64, max: usize },
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said goodbye: what it sent before counts.
    Client,
    /// The gate ended it; over MQTT 5 a DISCONNECT is in the output.
    Gate(u8),
}
