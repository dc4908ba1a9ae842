//! The connection's task: it owns the socket, connects again, and sorts what comes.

use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::message::{Card, Pointer};
use millpond_protocol::{MemberName, PoolName, limits, topic};
use tokio::sync::watch;
use tokio::time::Instant;

use super::inbox::{Ack, Deliver, Event};
use super::mqtt::{self, Ended, Happening, Pipe, Token};
use super::{Cause, Config, Message, Online, Shared, Status, Topic};

/// A connection that lasted so long was a good one: the pause after its end is short again. One that the server closes at once is none.
const LASTED: Duration = Duration::from_secs(10);

/// The card, and when it came.
type ShowCard = watch::Sender<Option<(Card, Instant)>>;
/// What the session's sending half reads at any time: whether there is a connection, and the card.
pub(super) type Shown = (watch::Sender<Status>, ShowCard);

/// Runs until nobody holds a half of the session, or this side closed it.
pub(super) async fn run(config: Arc<Config>, shared: Arc<Shared>, (announce, card): Shown, deliver: Deliver) {
    let mut backoff = config.backoff.clone();
    loop {
        let begin = Instant::now();
        let Ended { cause, later } = tokio::select! {
            ended = connection(&config, &shared, (&announce, &card), &deliver) => ended,
            // Nobody is left to tell: the socket is dropped where it stands.
            () = announce.closed() => return,
        };
        let was_online = matches!(*announce.borrow(), Status::Online(_));
        if was_online && begin.elapsed() >= LASTED {
            backoff.reset();
        }
        announce.send_replace(Status::Offline(cause.clone()));
        shared.book().turn_over(later);
        // Only news: nobody misses one that finds no room.
        let _ = deliver.put(Event::Offline(cause.clone()), None);
        if cause == Cause::Closed {
            return;
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = announce.closed() => return,
        }
    }
}

/// One connection from CONNECT to its end.
async fn connection(
    config: &Config,
    shared: &Shared,
    (announce, card): (&watch::Sender<Status>, &ShowCard),
    deliver: &Deliver,
) -> Ended {
    let (pipe, mut wire) = match mqtt::open(config) {
        Ok(opened) => opened,
        Err(cause) => return cause.into(),
    };
    let filters = config.filters();
    shared.book().heard();
    loop {
        let happening = match wire.next(shared).await {
            Ok(happening) => happening,
            Err(ended) => return ended,
        };
        match happening {
            Happening::Connected => {
                if pipe.subscribe(&filters).is_err() {
                    return Cause::Lost("the connection ended at once".into()).into();
                }
            }
            Happening::Granted(None) => {
                let connection = shared.book().connection;
                announce.send_replace(Status::Online(Online { pipe: pipe.clone(), connection }));
                if deliver.put(Event::Online, None).is_err() {
                    return Cause::Lost("nobody reads the inbox".into()).into();
                }
            }
            Happening::Granted(Some(index)) => {
                let filter = filters.get(index).map_or("a filter", String::as_str);
                return Cause::Refused(format!("the server refuses the subscription to {filter}")).into();
            }
            Happening::Published(id) => shared.book().published(id),
            Happening::Acknowledged(id, verdict) => shared.book().acknowledged(id, verdict),
            Happening::Message(message, token) => {
                if sort(config, shared, (deliver, card), &pipe, message, token).is_err() {
                    return Cause::Lost("nobody reads the inbox".into()).into();
                }
            }
        }
    }
}

/// Hands a message to who waits for it.
fn sort(
    config: &Config,
    shared: &Shared,
    (deliver, card): (&Deliver, &ShowCard),
    pipe: &Pipe,
    message: Message,
    token: Token,
) -> Result<(), ()> {
    let ack = Ack::new(pipe.clone(), token, shared.book().connection);
    let answer =
        message.correlation.as_ref().is_some_and(|about| shared.book().answered(about, &message.payload));
    if answer {
        ack.later();
        return Ok(());
    }
    let (event, ack) = match read(&config.pool, &config.member, &message) {
        Some(Told::Receipt(receipt)) => (Event::Receipt(receipt, ack), None),
        Some(Told::State(event)) => (event, Some(ack)),
        // An answer that nobody waits for any more, or a message of a later protocol.
        None => {
            ack.later();
            return Ok(());
        }
    };
    match &event {
        Event::Card(now) => {
            card.send_replace(Some((now.clone(), Instant::now())));
        }
        // The bytes come right behind it.
        Event::Result(Some(Pointer { size, .. })) if config.topics.contains(&Topic::ResultData) => {
            if let Some(size) = usize::try_from(*size).ok().filter(|size| *size <= limits::SMALL_MAX) {
                shared.book().announced(size);
            }
        }
        Event::ResultData { .. } => shared.book().arrived(),
        _ => {}
    }
    deliver.put(event, ack)
}

enum Told {
    Receipt(millpond_protocol::message::Receipt),
    State(Event),
}

fn read(pool: &PoolName, member: &MemberName, message: &Message) -> Option<Told> {
    let Message { topic, payload, user_properties, .. } = message;
    let property = |name: &str| user_properties.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    if *topic == topic::receipt(pool, member) {
        return serde_json::from_slice(payload).ok().map(Told::Receipt);
    }
    let event = if *topic == topic::result(pool) {
        Event::Result(if payload.is_empty() { None } else { Some(serde_json::from_slice(payload).ok()?) })
    } else if *topic == topic::result_data(pool) {
        if payload.is_empty() {
            return None;
        }
        Event::ResultData {
            version: property("version")?.parse().ok()?,
            sha256: property("sha256").and_then(|text| text.parse().ok()),
            bytes: payload.clone(),
        }
    } else if *topic == topic::card(pool) {
        Event::Card(serde_json::from_slice(payload).ok()?)
    } else if *topic == topic::offer(pool) {
        Event::Offer(if payload.is_empty() { None } else { Some(serde_json::from_slice(payload).ok()?) })
    } else {
        return None;
    };
    Some(Told::State(event))
}
