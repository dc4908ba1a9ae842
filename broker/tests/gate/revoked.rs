//! What a member had sent to others goes nowhere once its right has ended.

use millpond_broker::EndReason;
use millpond_protocol::{Code, Refusal};

use crate::support::{Raw, Server, Verdict, app_server, connect, publish};

/// How the connection of whoever is revoked ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Revoked,
    Goodbye,
    Lost,
}

/// A session that is kept for an hour.
const HOUR: &[u8] = &[17, 0, 0, 14, 16];

async fn thief(server: &Server, properties: &[u8]) -> Raw {
    let mut raw = server.raw().await;
    raw.level = 5;
    raw.send(&connect(5, "thief", "p/publisher-thief", properties)).await;
    assert_eq!(raw.packet().await.1[1], 0);
    raw
}

#[tokio::test]
async fn what_waits_behind_a_large_upload_goes_to_nobody_after_a_revocation() {
    for ending in [Ending::Revoked, Ending::Goodbye, Ending::Lost] {
        for properties in [&[][..], HOUR] {
            let server = app_server().await;
            server.backend.verdicts.lock().unwrap().insert("large".into(), Verdict::Wait);
            let mut to = server.client(5, "listener").await;
            to.subscribe("app/p/#", 1).await;
            let mut thief = thief(&server, properties).await;
            thief.publish(0, 0, "mp/p/c/publisher-thief/up/large", &vec![7; 200 << 10]).await;
            for id in 0..60 {
                let mut bytes = publish(5, id.min(1) as u8, id, "app/p/cmd", &[], b"stolen");
                bytes[0] |= 1;
                thief.send(&bytes).await;
            }
            thief.publish(0, 0, "mp/p/c/publisher-thief/up/last", b"").await;
            thief.ping().await;
            match ending {
                Ending::Revoked => {}
                Ending::Goodbye => {
                    thief.send(&[0xE0, 0]).await;
                    assert_eq!(thief.packet_or_end().await, None);
                }
                Ending::Lost => drop(std::mem::replace(&mut thief, server.raw().await)),
            }
            while ending != Ending::Revoked && server.handle.connections() > 1 {
                tokio::task::yield_now().await;
            }
            let (pool, member) = ("p".parse().unwrap(), "publisher-thief".parse().unwrap());
            server.handle.disconnect_member(&pool, &member, EndReason::Revoked);
            if ending == Ending::Revoked {
                assert_eq!(thief.end().await, 0x87);
            }
            server.backend.decide("large", Err(Refusal::new(Code::Unauthorized, "revoked")));
            // It is behind all the others.
            server.backend.until(|backend| backend.taken_ids() == ["large", "last"]).await;
            let mut other = server.client(5, "publisher").await;
            other.publish(1, 1, "app/p/x", b"after").await;
            assert_eq!(to.message().await.text(), "after", "{ending:?} {properties:?}");
            assert_eq!(to.subscribe("app/p/cmd", 1).await, 1);
            to.ping().await;
        }
    }
}
