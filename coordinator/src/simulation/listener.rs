//! Listeners: they subscribe, keep what is pushed to them, and come back when the connection ends.

use millpond_broker::StateMessage;
use millpond_protocol::message::Pointer;
use millpond_protocol::{Principal, Sha256, topic};

use super::net::{Said, Wish};
use super::stage::Stage;

/// Listens until everything is over.
pub(super) async fn live(stage: Stage, who: Principal, number: usize) {
    while !stage.is_over() {
        // The connection is there before the answer: what commits meanwhile is pushed.
        let mut pushed = stage.net().connect(number);
        let Some(Said::States(states)) = stage.request(&who, Wish::Listen).await else { continue };
        states.iter().for_each(|state| see(&stage, &who, number, state));
        while let Some(state) = pushed.recv().await {
            see(&stage, &who, number, &state);
        }
    }
}

fn see(stage: &Stage, who: &Principal, number: usize, state: &StateMessage) {
    if state.topic != topic::result(&who.pool) || state.payload.is_empty() {
        return;
    }
    let mut book = stage.book();
    let Ok(pointer) = serde_json::from_slice::<Pointer>(&state.payload) else {
        return book.fail("a pointer does not read");
    };
    let found = stage.store().fetch(&pointer.url).map(|bytes| Sha256::of(&bytes));
    book.check(found == Some(pointer.sha256), || {
        format!("the pointer names version {}, and its bytes are {found:?}", pointer.version)
    });
    let have = book.versions.entry(number).or_default();
    *have = pointer.version.max(*have);
}
