//! The other side of the gate's seam, in memory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millpond_broker::{
    Backend, Credential, Incoming, KeptSession, LeftSession, ReceiptRow, RefusedPublish, SignIn, SignInError,
    StateMessage,
};
use millpond_protocol::{Principal, Refusal, Role};
use tokio::sync::{Notify, oneshot};

use super::SOON;

/// What the backend was given.
#[derive(Debug, Clone)]
pub struct Taken {
    pub from: String,
    pub message: Incoming,
}

/// How the backend answers to a topic's last level.
#[derive(Debug, Clone)]
pub enum Verdict {
    Refuse(Refusal),
    /// Answers when [`Memory::decide`] is called.
    Wait,
}

/// The coordinator's side of the seam, in memory. Members are `{role}` or `{role}-…`; the token of each is `secret`.
#[derive(Debug, Default)]
pub struct Memory {
    pub taken: Mutex<Vec<Taken>>,
    pub refused: Mutex<Vec<RefusedPublish>>,
    pub verdicts: Mutex<HashMap<String, Verdict>>,
    pub waiting: Mutex<HashMap<String, oneshot::Sender<Result<(), Refusal>>>>,
    pub states: Mutex<Vec<StateMessage>>,
    pub receipts: Mutex<Vec<ReceiptRow>>,
    pub cursor: Mutex<i64>,
    /// What is kept of sessions, by member and client id.
    pub sessions: Mutex<HashMap<(String, String), (Principal, KeptSession)>>,
    pub sign_in: Mutex<Option<SignInError>>,
    held: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    pub changed: Notify,
}

impl Memory {
    pub fn decide(&self, id: &str, outcome: Result<(), Refusal>) {
        self.waiting.lock().unwrap().remove(id).unwrap().send(outcome).unwrap();
    }

    pub fn taken_ids(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|taken| id_of(&taken.message)).collect()
    }

    /// Holds the next sign-in after its check: when that is reached, and how it goes on.
    pub fn hold_sign_in(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (reached, wait) = oneshot::channel();
        let (go_on, gone_on) = oneshot::channel();
        *self.held.lock().unwrap() = Some((reached, gone_on));
        (wait, go_on)
    }

    /// Waits until `done` holds.
    pub async fn until(&self, done: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("the backend is never told");
    }
}

pub fn id_of(message: &Incoming) -> String {
    use millpond_protocol::topic::Inbound;
    match &message.to {
        Inbound::Up { upload, .. } => upload.to_string(),
        Inbound::Bundle { id } => id.to_string(),
        Inbound::Ask(op) => op.to_string(),
        Inbound::Result { round, attempt } => format!("{round}/{attempt}"),
        Inbound::Delivery { version } => version.to_string(),
    }
}

#[async_trait]
impl Backend for Memory {
    fn sign_in_refused(&self, _: Option<&str>, _: SocketAddr, _: &'static str) {}

    async fn sign_in(&self, attempt: SignIn) -> Result<Principal, SignInError> {
        if let Some(error) = *self.sign_in.lock().unwrap() {
            return Err(error);
        }
        let held = self.held.lock().unwrap().take();
        if let Some((reached, go_on)) = held {
            reached.send(()).unwrap();
            go_on.await.unwrap();
        }
        let role = attempt.member.as_str().split('-').next().unwrap().parse::<Role>();
        match role {
            Ok(role) if matches!(&attempt.credential, Credential::Token(token) if &token[..] == b"secret") => {
                Ok(Principal { pool: attempt.pool, name: attempt.member, role, id: 1 })
            }
            _ => Err(SignInError::BadCredentials),
        }
    }

    fn take(
        &self,
        from: &Principal,
        _: SocketAddr,
        message: Incoming,
    ) -> BoxFuture<'static, Result<(), Refusal>> {
        let id = id_of(&message);
        self.taken.lock().unwrap().push(Taken { from: from.name.to_string(), message });
        let verdict = self.verdicts.lock().unwrap().get(&id).cloned();
        let answer = match verdict {
            None => std::future::ready(Ok(())).boxed(),
            Some(Verdict::Refuse(refusal)) => std::future::ready(Err(refusal)).boxed(),
            Some(Verdict::Wait) => {
                let (decide, decided) = oneshot::channel();
                self.waiting.lock().unwrap().insert(id, decide);
                async move { decided.await.unwrap() }.boxed()
            }
        };
        self.changed.notify_waiters();
        answer
    }

    fn refused(&self, _from: &Principal, refused: RefusedPublish) {
        self.refused.lock().unwrap().push(refused);
        self.changed.notify_waiters();
    }

    async fn states(&self, _who: &Principal, topics: &[String]) -> Result<Vec<StateMessage>, Refusal> {
        let states = self.states.lock().unwrap();
        Ok(states.iter().filter(|state| topics.contains(&state.topic)).cloned().collect())
    }

    async fn receipt_cursor(&self, _who: &Principal) -> Result<i64, Refusal> {
        Ok(*self.cursor.lock().unwrap())
    }

    async fn receipts(&self, _who: &Principal, after: i64, max: usize) -> Result<Vec<ReceiptRow>, Refusal> {
        let receipts = self.receipts.lock().unwrap();
        Ok(receipts.iter().filter(|row| row.seq > after).take(max).cloned().collect())
    }

    async fn keep_session(&self, who: &Principal, session: KeptSession) -> Result<(), Refusal> {
        let key = (who.name.to_string(), session.client_id.clone());
        self.sessions.lock().unwrap().insert(key, (who.clone(), session));
        Ok(())
    }

    fn session_left(&self, who: &Principal, client_id: &str, left: Option<LeftSession>) {
        let key = (who.name.to_string(), client_id.to_owned());
        let mut sessions = self.sessions.lock().unwrap();
        match left {
            None => drop(sessions.remove(&key)),
            Some(LeftSession { expiry, certificates }) => {
                if let Some((_, session)) = sessions.get_mut(&key) {
                    (session.expiry, session.certificates) = (expiry, certificates);
                }
            }
        }
        drop(sessions);
        self.changed.notify_waiters();
    }

    async fn sessions(&self) -> Result<Vec<(Principal, KeptSession)>, Refusal> {
        Ok(self.sessions.lock().unwrap().values().cloned().collect())
    }

    fn receipts_acknowledged(&self, _who: &Principal, seq: i64) {
        let mut cursor = self.cursor.lock().unwrap();
        *cursor = seq.max(*cursor);
        drop(cursor);
        self.changed.notify_waiters();
    }
}

pub fn state(topic: &str, rank: u64, payload: &str) -> StateMessage {
    StateMessage {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        rank,
        user_properties: Vec::new(),
        content_type: None,
    }
}

pub fn receipt(seq: i64) -> ReceiptRow {
    ReceiptRow { seq, payload: Bytes::from(format!("receipt {seq}")) }
}
