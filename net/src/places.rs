//! How many connections there may be: in all, and from one address, so that no address keeps the others out.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// The address that limits count by: an IPv6 client owns a whole /64, so that is one, and IPv4 is the same however it is
/// written.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// That of all addresses together.
    All,
    /// That of one address.
    Address,
}

impl Full {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Address => "address",
        }
    }
}

/// Addresses where one waits that have their turns one after the other before one is for those that want more.
const NEW_IN_A_ROW: usize = 4;

/// Places, so many in all and so many of them for one address. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A place has become free, and nobody waits for it.
    vacant: Notify,
}

#[derive(Debug)]
struct State {
    max: usize,
    per_address: usize,
    taken: usize,
    /// Each address that has a place or waits for one.
    addresses: HashMap<IpAddr, Address>,
    /// Addresses that wait and may have another place.
    turns: Turns,
}

/// Whose turn is next. An address that has just come, with one who waits, goes before those that have had a turn and want another
/// or where several wait: the sparse flows of fair queueing (RFC 8290, section 4.2).
#[derive(Debug, Default)]
struct Turns {
    new: VecDeque<IpAddr>,
    more: VecDeque<IpAddr>,
    /// New ones that were next, one after the other.
    in_a_row: usize,
}

#[derive(Debug, Default)]
struct Address {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
    has_turn: bool,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Places,
    network: IpAddr,
}

impl Places {
    /// `max` places, at most `per_address` of them for one address.
    pub fn new(max: usize, per_address: usize) -> Self {
        let (addresses, turns) = (HashMap::new(), Turns::default());
        let state = State { max, per_address: per_address.min(max), taken: 0, addresses, turns };
        Self(Arc::new(Shared { state: Mutex::new(state), vacant: Notify::new() }))
    }

    /// A place, if one is free now.
    ///
    /// # Errors
    /// Which limit says no.
    pub fn try_take(&self, from: IpAddr) -> Result<Place, Full> {
        let network = network(from);
        let mut state = self.state();
        let taken = state.addresses.get(&network).map_or(0, |address| address.taken);
        if taken >= state.per_address {
            return Err(Full::Address);
        }
        // None is free while somebody waits who may have it.
        if state.is_full() {
            return Err(Full::All);
        }
        Ok(self.give(&mut state, network))
    }

    /// Waits for a place. Addresses have turns, and those of one address their order of asking; four turns of five are for
    /// addresses that have just come and where one waits. So whoever comes alone waits for others who do and not for a fleet, though
    /// that has many addresses, and whoever is over the share of its address keeps nobody else waiting. Safe to cancel.
    pub async fn take(&self, from: IpAddr) -> Place {
        loop {
            // Nobody is left without an answer.
            if let Ok(place) = self.wait(network(from)).await {
                return place;
            }
        }
    }

    fn wait(&self, network: IpAddr) -> oneshot::Receiver<Place> {
        let (give, given) = oneshot::channel();
        let mut state = self.state();
        let is_new = !state.addresses.contains_key(&network);
        let address = state.addresses.entry(network).or_default();
        address.waiting.push_back(give);
        if is_new {
            address.has_turn = true;
            state.turns.new.push_back(network);
        } else {
            state.line_up(network);
        }
        self.hand_out(state);
        given
    }

    /// Waits until a place is free for somebody, and nobody waits who may have it. Safe to cancel.
    pub async fn vacancy(&self) {
        loop {
            let mut vacant = pin!(self.0.vacant.notified());
            vacant.as_mut().enable();
            if !self.is_full() {
                return;
            }
            vacant.await;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.state().is_full()
    }

    /// Whether nothing is left of anybody.
    #[cfg(test)]
    pub(crate) fn keeps_nothing(&self) -> bool {
        let state = self.state();
        let turns = &state.turns;
        state.taken == 0 && state.addresses.is_empty() && turns.new.is_empty() && turns.more.is_empty()
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    fn give(&self, state: &mut State, network: IpAddr) -> Place {
        state.taken += 1;
        state.addresses.entry(network).or_default().taken += 1;
        Place { of: self.clone(), network }
    }

    /// Gives free places to those who wait, in turns; the first one while nobody else can take it.
    fn hand_out<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        loop {
            if state.is_full() {
                return;
            }
            let Some((network, waits)) = state.next() else { break };
            let place = self.give(&mut state, network);
            state.line_up(network);
            drop(state);
            // Who has given up in this moment leaves it to the next one.
            let _ = waits.send(place);
            state = self.state();
        }
        drop(state);
        self.0.vacant.notify_waiters();
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// The address has a turn if somebody there waits and may have a place; nothing is kept of one that has none and wants none.
    fn line_up(&mut self, network: IpAddr) {
        let Some(address) = self.addresses.get_mut(&network) else { return };
        while address.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            address.waiting.pop_front();
        }
        let waits = !address.waiting.is_empty();
        if address.has_turn {
            return;
        }
        if waits && address.taken < self.per_address {
            address.has_turn = true;
            self.turns.more.push_back(network);
        } else if !waits && address.taken == 0 {
            self.addresses.remove(&network);
        }
    }

    /// Whose turn it is.
    fn next(&mut self) -> Option<(IpAddr, oneshot::Sender<Place>)> {
        while let Some(network) = self.turns.next(&self.addresses) {
            let Some(address) = self.addresses.get_mut(&network) else { continue };
            address.has_turn = false;
            // A place of its own may have been taken meanwhile.
            let may = address.taken < self.per_address;
            while may && let Some(waits) = address.waiting.pop_front() {
                if !waits.is_closed() {
                    return Some((network, waits));
                }
            }
            if may && address.taken == 0 {
                self.addresses.remove(&network);
            }
        }
        None
    }
}

impl Address {
    fn is_crowd(&self) -> bool {
        self.waiting.iter().filter(|waits| !waits.is_closed()).nth(1).is_some()
    }
}

impl Turns {
    fn next(&mut self, addresses: &HashMap<IpAddr, Address>) -> Option<IpAddr> {
        while self.new.front().and_then(|it| addresses.get(it)).is_some_and(Address::is_crowd) {
            self.more.extend(self.new.pop_front());
        }
        let has_waited = self.in_a_row >= NEW_IN_A_ROW && !self.more.is_empty();
        let new = if has_waited { None } else { self.new.pop_front() };
        self.in_a_row = if new.is_some() { self.in_a_row + 1 } else { 0 };
        new.or_else(|| self.more.pop_front())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.taken -= 1;
        if let Some(address) = state.addresses.get_mut(&self.network) {
            address.taken -= 1;
        }
        state.line_up(self.network);
        self.of.hand_out(state);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_has_its_share_and_leaves_the_rest_to_others() {
        let places = Places::new(4, 2);
        let (here, there) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let held = [places.try_take(here).unwrap(), places.try_take(here).unwrap()];
        assert_eq!(places.try_take(here).unwrap_err(), Full::Address);
        let others = [places.try_take(there).unwrap(), places.try_take(there).unwrap()];
        assert_eq!(places.try_take(ip("192.0.2.3")).unwrap_err(), Full::All);
        drop(others);
        assert_eq!(places.try_take(here).unwrap_err(), Full::Address, "what others leave is not here's");
        assert_eq!(places.taken(), 2);
        drop(held);
        assert!(places.try_take(here).is_ok());
        assert!(places.keeps_nothing(), "nothing is kept of who has no place");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_ipv4_is_the_same_however_it_is_written() {
        let places = Places::new(9, 1);
        let _held = [places.try_take(ip("2001:db8::1")).unwrap(), places.try_take(ip("192.0.2.1")).unwrap()];
        for same in ["2001:db8::ffff:1", "::ffff:192.0.2.1"] {
            assert_eq!(places.try_take(ip(same)).unwrap_err(), Full::Address, "{same}");
        }
        assert!(places.try_take(ip("2001:db8:0:1::1")).is_ok());
    }

    #[tokio::test]
    async fn whoever_gives_up_leaves_the_turn_to_the_next_one_there_and_nothing_is_kept() {
        let places = Places::new(1, 1);
        let (crowd, alone) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let held = places.try_take(ip("192.0.2.3")).unwrap();
        let mut waiting = [crowd, crowd, alone].map(|from| Box::pin(places.take(from)));
        for waits in &mut waiting {
            assert!(timeout(Duration::ZERO, waits).await.is_err());
        }
        let [gives_up, next, mut last] = waiting;
        drop((gives_up, held));
        let place = next.await;
        assert!(timeout(Duration::ZERO, &mut last).await.is_err(), "there is one place");
        drop(place);
        drop(last.await);
        assert!(places.keeps_nothing(), "{:?}", places.state());
    }

    #[tokio::test]
    async fn addresses_where_one_waits_go_before_those_that_want_more_four_times_of_five() {
        let places = Places::new(1, 1);
        let held = places.try_take(ip("192.0.2.1")).unwrap();
        let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
        // Three of a crowd, which has not had a turn either, and then six who come alone.
        for from in [9, 9, 9, 11, 12, 13, 14, 15, 16] {
            let (places, say) = (places.clone(), say.clone());
            tokio::spawn(async move {
                let _place = places.take(IpAddr::from([192, 0, 2, from])).await;
                say.send(from).unwrap();
            });
            tokio::task::yield_now().await;
        }
        drop((held, say));
        let mut order = Vec::new();
        while let Some(from) = said.recv().await {
            order.push(from);
        }
        assert_eq!(order, [11, 12, 13, 14, 9, 15, 16, 9, 9]);
        assert!(places.keeps_nothing(), "{:?}", places.state());
    }
}
