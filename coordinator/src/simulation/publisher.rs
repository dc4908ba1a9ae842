//! Publishers: they send each file until it is acknowledged, repeat some, say when they are through, and want their receipts.

use std::time::Duration;

use bytes::Bytes;
use millpond_broker::Incoming;
use millpond_protocol::access::Op;
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::message::Receipt;
use millpond_protocol::topic::Inbound;
use millpond_protocol::{Code, Principal, Sha256, Timestamp};
use serde_json::json;

use super::net::{Said, Wish};
use super::stage::Stage;

/// A file to be sent.
#[derive(Debug, Clone)]
struct File {
    upload: String,
    bytes: Vec<u8>,
    label: &'static str,
    event_time: Option<Timestamp>,
}

/// Lives until some new files are acknowledged, `most` at most.
pub(super) async fn live(stage: Stage, who: Principal, most: usize) {
    let mut n = stage.read_book().sent.keys().filter(|(member, _)| *member == who.name.as_str()).count();
    let files = n + 1 + stage.below(most);
    while n < files {
        let bundled = stage.chance(48);
        let now: Vec<File> = (0..1 + usize::from(bundled)).map(|_| file(&stage, &who, &mut n)).collect();
        for file in &now {
            let key = (who.name.to_string(), file.upload.clone());
            stage.book().sent.insert(key, Sha256::of(&file.bytes));
        }
        let wish = if bundled { bundle(&now, &format!("b{n}")) } else { publish(&now[0]) };
        send(&stage, &who, &now, wish.clone(), bundled).await;
        if stage.chance(64) {
            send(&stage, &who, &now, wish, bundled).await;
        }
        if stage.chance(24) {
            contradict(&stage, &who, &now[0]).await;
        }
        if stage.chance(64) {
            status(&stage, &who, &now[0]).await;
        }
        let pause = [0, 0, 1, 40, 600][stage.below(5)];
        if pause > 0 {
            stage.sleep(Duration::from_secs(pause)).await;
        }
    }
    if stage.chance(128) {
        let through = stage.now();
        let ask = json!({"id": format!("through-{}", through.as_millis()), "through": through});
        let said = stage.ask(&who, Op::Complete, ask).await;
        let fine = said.as_ref().err().is_none_or(|refused| refused.error.code == Code::Malformed);
        stage.book().check(fine, || format!("{} is not through: {said:?}", who.name));
    }
    stage.book().publishing -= 1;
}

/// A new file of the moment, of a while ago, or of no time.
fn file(stage: &Stage, who: &Principal, n: &mut usize) -> File {
    *n += 1;
    let ago = [0, 10, 1_800, 4_000][stage.below(4)];
    let timed = stage.chance(160);
    File {
        upload: format!("u{n}"),
        bytes: format!("{} {n}", who.name).into_bytes(),
        label: ["x", "y"][stage.below(2)],
        event_time: timed.then(|| stage.now().before(Duration::from_secs(ago))),
    }
}

fn publish(file: &File) -> Wish {
    let mut user_properties = vec![("label".to_owned(), file.label.to_owned())];
    user_properties
        .extend(file.event_time.map(|time| ("event-time".to_owned(), time.as_millis().to_string())));
    let to = file.upload.parse().map(|upload| Inbound::Up { upload, at: None });
    incoming(to.unwrap_or_else(|e| unreachable!("{e}")), file.bytes.clone(), user_properties)
}

fn bundle(files: &[File], id: &str) -> Wish {
    let entry = |file| {
        let File { upload, bytes, label, event_time }: &File = file;
        let event_time_ms = event_time.map_or(0, Timestamp::as_millis);
        Entry { upload, event_time_ms, label: Some(label), data: bytes, ..Entry::default() }
    };
    let entries = files.iter().map(entry).collect();
    let bundle = Bundle { clock_offset_ms: None, complete_through_ms: None, entries };
    let bytes = bundle::encode(&bundle).unwrap_or_else(|e| unreachable!("{e}"));
    let to = id.parse().map(|id| Inbound::Bundle { id });
    incoming(to.unwrap_or_else(|e| unreachable!("{e}")), bytes, Vec::new())
}

/// A PUBLISH.
pub(super) fn incoming(to: Inbound, payload: Vec<u8>, user_properties: Vec<(String, String)>) -> Wish {
    Wish::Publish(Box::new(Incoming {
        to,
        payload: Bytes::from(payload),
        user_properties,
        content_type: None,
        response_topic: None,
        correlation_data: None,
    }))
}

/// Sends until there is an acknowledgement; it says the same whenever it comes.
async fn send(stage: &Stage, who: &Principal, files: &[File], wish: Wish, bundled: bool) {
    loop {
        let Some(acked) = stage.publish(who, wish.clone()).await else { continue };
        let fine = acked.as_ref().err().is_none_or(|refusal| refusal.code == Code::Rejected && !bundled);
        let mut book = stage.book();
        book.check(fine, || format!("{} of {} is refused: {acked:?}", files[0].upload, who.name));
        let keys = files.iter().map(|file| (who.name.to_string(), file.upload.clone()));
        book.acknowledged.extend(keys);
        return;
    }
}

/// Other bytes under a key that is taken are a conflict.
async fn contradict(stage: &Stage, who: &Principal, file: &File) {
    let other = publish(&File { bytes: b"other".to_vec(), ..file.clone() });
    if let Some(acked) = stage.publish(who, other).await {
        let conflict = matches!(&acked, Err(refusal) if refusal.code == Code::Conflict);
        stage.book().check(conflict, || format!("other bytes of {}: {acked:?}", file.upload));
    }
}

/// What became of an upload, in the words of `status`.
async fn status(stage: &Stage, who: &Principal, file: &File) {
    match stage.ask(who, Op::Status, json!({"upload": file.upload})).await {
        Ok(answer) => match serde_json::from_value::<Receipt>(answer.clone()) {
            // It says where the upload is now, which may have been carried on.
            Ok(receipt) => stage.book().receipted(who.name.as_str(), Receipt { batch: None, ..receipt }),
            Err(error) => stage.book().fail(format!("a status does not read: {error}: {answer}")),
        },
        Err(refused) => {
            let what = format!("{} was acknowledged and has no status: {refused:?}", file.upload);
            stage.book().fail(what);
        }
    }
}

/// Subscribes to the member's receipts and comes back again and again: in the end each row was shown, in order.
pub(super) async fn receipts(stage: Stage, who: Principal) {
    let (mut shown, mut pause) = (None, Duration::from_secs(20));
    while !stage.is_over() {
        let Some(Said::Receipts(from, _)) = stage.request(&who, Wish::Receipts(None)).await else { continue };
        if shown.is_none() {
            shown = Some(from);
            stage.book().subscribed.insert(who.id, from);
        }
        stage.book().check(Some(from) <= shown, || {
            format!("receipts of {} go on at {from} after {shown:?}", who.name)
        });
        let mut at = from;
        let pulls = 1 + stage.below(3);
        let mut pulled = 0;
        while pulled < pulls || stage.is_calm() {
            pulled += 1;
            let Some(Said::Receipts(_, rows)) = stage.request(&who, Wish::Receipts(Some(at))).await else {
                break;
            };
            if rows.is_empty() {
                break;
            }
            for row in rows {
                stage.book().check(row.seq > at, || format!("receipts of {} are out of order", who.name));
                at = row.seq;
                match serde_json::from_slice::<Receipt>(&row.payload) {
                    Ok(receipt) => stage.book().receipted(who.name.as_str(), receipt),
                    Err(error) => stage.book().fail(format!("a receipt does not read: {error}")),
                }
            }
            shown = shown.max(Some(at));
            if stage.chance(160) {
                stage.request(&who, Wish::Acknowledge(at)).await;
            }
        }
        stage.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1_200));
    }
}
