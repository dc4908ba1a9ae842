//! Processors: they seal or claim, prove what they are given, and answer in time, late, twice or not at all.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::Lease;
use millpond_protocol::topic::Inbound;
use millpond_protocol::{Code, Principal, Sha256};
use serde_json::json;

use super::publisher::incoming;
use super::stage::Stage;

/// The first pause of who finds no work; it doubles up to the other one.
const IDLE: Duration = Duration::from_secs(20);
const IDLE_MAX: Duration = Duration::from_secs(1_200);

/// One of a member's connections, of that name: works until everything is over, and knows nothing of the others.
pub(super) async fn live(stage: Stage, who: Principal, connection: &'static str) {
    let (mut asks, mut idle) = (0, IDLE);
    while !stage.is_over() {
        asks += 1;
        let id = format!("{connection}{asks}");
        // In the end everything that is open is sealed, and everything that is on offer is claimed.
        let triggers = stage.chance(96) || (stage.is_calm() && asks % 2 == 0);
        let answer = if triggers {
            stage
                .ask(&who, Op::Trigger, json!({"id": id, "which": "oldest", "take": true}))
                .await
                .map(|it| it["lease"].clone())
        } else {
            stage.ask(&who, Op::Claim, json!({"id": id})).await
        };
        match answer.map(serde_json::from_value::<Lease>) {
            Ok(Ok(lease)) => {
                idle = IDLE;
                work(&stage, &who, lease, connection).await;
                continue;
            }
            Ok(Err(_)) => {}
            Err(refused) => {
                let fine = refused.error.code == Code::NotFound;
                stage.book().check(fine, || format!("{} gets no work: {refused:?}", who.name));
            }
        }
        stage.sleep(idle).await;
        idle = (idle * 2).min(IDLE_MAX);
    }
}

/// What a processor does with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Diligent,
    /// Answers, and answers again.
    Twice,
    /// Answers when the lease has run out.
    Slow,
    /// Forgets the lease.
    Gone,
    GivesBack,
    Refuses,
}

async fn work(stage: &Stage, who: &Principal, lease: Lease, connection: &str) {
    let moods =
        [Mood::Diligent, Mood::Diligent, Mood::Twice, Mood::Slow, Mood::Gone, Mood::GivesBack, Mood::Refuses];
    let mood = if stage.is_calm() { Mood::Diligent } else { moods[stage.below(moods.len())] };
    stage.note(|| format!("{} has round {}, attempt {}: {mood:?}", who.name, lease.round, lease.attempt));
    if mood == Mood::Gone {
        return;
    }
    let Some(lease) = ready(stage, who, lease, connection).await else { return };
    let (round, attempt) = (lease.round, lease.attempt);
    prove(stage, &lease);
    if matches!(mood, Mood::GivesBack | Mood::Refuses) {
        let ask = json!({"id": format!("fail-{connection}-{round}-{attempt}"), "round": round, "attempt": attempt, "error": "no",
            "retryable": mood == Mood::GivesBack});
        let said = stage.ask(who, Op::Fail, ask).await;
        let fine = said.as_ref().err().is_none_or(|refused| refused.error.code == Code::Stale);
        return stage.book().check(fine, || format!("{} cannot give round {round} back: {said:?}", who.name));
    }
    if mood == Mood::Slow {
        stage.sleep(Duration::from_secs(u64::from(stage.byte()) * 2)).await;
    }
    let result = format!("result of round {round} by {} in attempt {attempt}", who.name).into_bytes();
    answer(stage, who, &lease, &result).await;
    if mood == Mood::Twice {
        answer(stage, who, &lease, &result).await;
    }
}

/// Beats until the packs and the manifest are there.
async fn ready(stage: &Stage, who: &Principal, mut lease: Lease, connection: &str) -> Option<Lease> {
    let (round, attempt) = (lease.round, lease.attempt);
    let mut beats = 0;
    while !lease.ready {
        beats += 1;
        let id = format!("beat-{connection}-{round}-{attempt}-{beats}");
        match stage.ask(who, Op::Beat, json!({"id": id, "round": round, "attempt": attempt})).await {
            Ok(answer) => lease = serde_json::from_value(answer).ok()?,
            Err(refused) => {
                let fine = refused.error.code == Code::Stale;
                stage.book().check(fine, || format!("{} cannot beat: {refused:?}", who.name));
                return None;
            }
        }
        if !lease.ready {
            stage.sleep(Duration::from_secs(5)).await;
        }
    }
    Some(lease)
}

/// What the lease names is in storage, whole: each file of the round once.
fn prove(stage: &Stage, lease: &Lease) {
    let round = lease.round;
    let manifest = lease.manifest_url.as_deref().and_then(|url| stage.store().fetch(url));
    let mut book = stage.book();
    let Some(manifest) = manifest else {
        return book.fail(format!("round {round} is ready and its manifest is not in storage"));
    };
    book.check(Some(Sha256::of(&manifest)) == lease.manifest_sha256, || {
        format!("the manifest of round {round} is not what the lease says")
    });
    book.read(round, &manifest);
    let counted = |line: &&[u8]| !line.is_empty() && !line.ends_with(br#""superseded":true}"#);
    let listed = manifest.split(|byte| *byte == b'\n').skip(1).filter(counted).count();
    let mut packed = BTreeSet::new();
    for file in &lease.files {
        let bytes = stage.store().fetch(&file.url);
        let whole = bytes.as_ref().is_some_and(|bytes| Sha256::of(bytes) == file.sha256);
        book.check(whole, || format!("a pack of round {round} is not in storage as the lease says"));
        let bytes = bytes.unwrap_or_default();
        let mut tar = tar::Archive::new(&*bytes);
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let (member, upload) = path.split_once('/').unwrap();
            let sent = book.sent.get(&(member.to_owned(), upload.to_owned())).copied();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            let is_new = packed.insert(path.clone());
            book.check(is_new && sent == Some(Sha256::of(&data)), || {
                format!("{path} of round {round} is twice in its packs, or not what was sent")
            });
        }
    }
    book.check(lease.cursor.is_some() || packed.len() == listed, || {
        format!("round {round} has {listed} files in its manifest and {} in its packs", packed.len())
    });
}

/// Publishes the result until the server says what became of it.
async fn answer(stage: &Stage, who: &Principal, lease: &Lease, result: &[u8]) {
    let to = Inbound::Result { round: lease.round, attempt: lease.attempt };
    let wish = incoming(to, result.to_vec(), Vec::new());
    loop {
        let Some(acked) = stage.publish(who, wish.clone()).await else { continue };
        let mut book = stage.book();
        match acked {
            Ok(()) => book.returned(lease.round, Sha256::of(result)),
            Err(refusal) => {
                let before = book.results.get(&lease.round) == Some(&Sha256::of(result));
                book.check(refusal.code == Code::Stale && !before, || {
                    format!("the result of round {} is refused: {refusal}", lease.round)
                });
            }
        }
        return;
    }
}
