//! From an accepted connection to a signed-in session: CONNECT, credentials, take-over, CONNACK.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use data_encoding::HEXLOWER;
use millpond_net::{Full, Shown, Standing};
use millpond_protocol::{MemberName, PoolName, Principal, limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::admission::Turn;
use crate::backend::{Credential, SignIn, SignInError};
use crate::codec::frame::fixed_header;
use crate::codec::packet::Connect;
use crate::codec::read::{self, BadConnect};
use crate::codec::write::{Announced, Out, clipped};
use crate::codec::{Bad, Version, reason};
use crate::gate::Shared;
use crate::registry::{NotRegistered, Registered, Registration, Wish};
use crate::session::{Kept, Session, check_will, expiry_of};

/// How long the connection that holds a session has to leave it to another.
const LEAVE: Duration = Duration::from_secs(5);
/// Bytes of a client id: it is kept for as long as the connection.
const CLIENT_ID_MAX: usize = 1_024;

/// A client that has signed in.
pub(crate) struct Welcome {
    pub(crate) session: Session,
    pub(crate) from: SocketAddr,
    pub(crate) registration: Registration,
    pub(crate) version: Version,
    /// What came behind CONNECT.
    pub(crate) rest: BytesMut,
    /// Where nothing but a certificate proved who it is: that one.
    pub(crate) standing: Option<Standing>,
}

struct SignedIn {
    who: Principal,
    registration: Registration,
    /// What was kept of an earlier connection.
    kept: Option<Kept>,
    /// The client id, where the client brought none.
    assigned: Option<String>,
}

/// Why there is no session: what is answered, in both versions.
struct Refused {
    v4: u8,
    v5: u8,
    why: &'static str,
}

const WRONG_USER: &str = "the user name is {pool}/{member}, and the password is the member's token";

const NO_ANSWER: Refused =
    Refused { v4: 3, v5: reason::SERVER_UNAVAILABLE, why: "credentials cannot be checked now" };

/// Reads CONNECT. What answers it is the first that the session has to write; `None`: the connection has been told why there
/// is none, where that is possible.
pub(crate) async fn welcome<S>(
    io: &mut S,
    from: SocketAddr,
    (shown, standing): (Shown, Option<Standing>),
    mut turn: Turn,
    gate: &Shared,
) -> Option<Welcome>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BytesMut::with_capacity(1_024);
    let connect = tokio::time::timeout(gate.config.connect_timeout, read_connect(io, &mut stream, gate));
    let connect = match turn.within(connect).await {
        Ok(read) => read?,
        Err(_) => {
            count_refused("connect_time");
            return None;
        }
    };
    let connect = match connect {
        Ok(connect) => connect,
        Err(bad) => {
            // Who is told lingers.
            drop(turn);
            answer_bad(io, bad).await;
            return None;
        }
    };
    let mut out = Out::default();
    let user = connect.user.clone().or_else(|| match &shown {
        Shown::Member(certified) => Some(format!("{}/{}", certified.pool, certified.member)),
        Shown::Nothing | Shown::Nobody => None,
    });
    let signed_in =
        tokio::time::timeout(gate.config.sign_in_timeout, sign_in(&connect, from, shown, &mut turn, gate))
            .await;
    drop(turn);
    match signed_in.unwrap_or(Err(NO_ANSWER)) {
        Ok(SignedIn { who, registration, kept, assigned }) => {
            let own = connect.wants_response_information.then(|| format!("mp/{}/d/{}/", who.pool, who.name));
            let announced = Announced {
                receive_max: u16::try_from(gate.config.uncommitted_per_connection).ok(),
                packet_max: u32::try_from(gate.config.packet_max()).ok(),
                client_id: assigned.as_deref(),
                alias_max: Some(limits::TOPIC_ALIASES),
                keep_alive: gate.config.keep_alive_of(&connect),
                session_expiry: u32::try_from(expiry_of(&connect).as_secs())
                    .ok()
                    .filter(|granted| *granted != connect.session_expiry),
                response_information: own.as_deref(),
                reason: None,
            };
            out.connack(connect.version, reason::SUCCESS, kept.is_some(), &announced);
            let kept = (registration.mailbox.id(), kept);
            let mut session = Session::new(who, &connect, gate.config.clone(), Instant::now(), kept);
            session.count_answers_in(gate.handle.hub().answers().clone());
            // The connection writes it, so that the session is handed back if the client does not get it.
            if session.is_too_long(out.remaining()) {
                // Nothing may be sent that is longer than the client accepts, so nothing is said at all.
                session.fail(Bad { code: reason::PACKET_TOO_LARGE, what: "CONNACK is too large for you" });
                out = Out::default();
            }
            session.out = out;
            let standing = standing.filter(|_| connect.password.is_none());
            Some(Welcome { session, from, registration, version: connect.version, rest: stream, standing })
        }
        Err(refused) => {
            self::refused(gate, user.as_deref(), from, refused.why);
            refuse(&mut out, connect.version, connect.wants_problem_information, &refused);
            // Whoever cannot be told is not told.
            let _ = tokio::time::timeout(gate.config.connect_timeout, write(io, &mut out)).await;
            crate::socket::linger(io).await;
            None
        }
    }
}

/// Counts a refused sign-in, and tells the backend of it.
pub(crate) fn refused(gate: &Shared, user: Option<&str>, from: SocketAddr, why: &'static str) {
    metrics::counter!("millpond_gate_sign_ins_refused_total").increment(1);
    gate.backend.sign_in_refused(user, from, why);
}

/// `None`: the connection ended, or what came is no CONNECT within its limit.
async fn read_connect<S>(
    io: &mut S,
    stream: &mut BytesMut,
    gate: &Shared,
) -> Option<Result<Connect, BadConnect>>
where
    S: AsyncRead + Unpin,
{
    loop {
        if stream.first().is_some_and(|first| first >> 4 != 1) {
            return None;
        }
        if let Some((first, header, body)) = fixed_header(stream, Version::V4).ok()? {
            if header + body > gate.config.connect_max {
                count_refused("connect_bytes");
                // Nothing of it is waited for: whose version is not there yet is not told.
                return read::version_of(&stream[header..]).map(|version| {
                    Err(BadConnect::Bad(
                        version,
                        Bad { code: reason::PACKET_TOO_LARGE, what: "CONNECT is too long" },
                    ))
                });
            }
            if stream.len() >= header + body {
                stream.advance(header);
                return Some(read::connect(first, stream.split_to(body).freeze()));
            }
        }
        if io.read_buf(stream).await.ok()? == 0 {
            return None;
        }
    }
}

async fn answer_bad<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, bad: BadConnect) {
    let mut out = Out::default();
    match bad {
        // 3.1.1 has no code for a malformed CONNECT: the connection just ends.
        BadConnect::NotMqtt | BadConnect::Bad(Version::V4, _) => return,
        BadConnect::Level(level) => {
            // A bridge of mosquitto sets the highest bit.
            let version = if level & 0x7F < 5 { Version::V4 } else { Version::V5 };
            let refused = Refused { v4: 1, v5: reason::UNSUPPORTED_VERSION, why: "use MQTT 3.1.1 or 5" };
            refuse(&mut out, version, true, &refused);
        }
        BadConnect::Bad(Version::V5, bad) => {
            refuse(&mut out, Version::V5, true, &Refused { v4: 0, v5: bad.code, why: bad.what });
        }
    }
    // Whoever cannot be told is not told.
    let _ = tokio::time::timeout(limits::CONNECT_TIMEOUT, write(io, &mut out)).await;
    crate::socket::linger(io).await;
}

async fn write<S: AsyncWrite + Unpin>(io: &mut S, out: &mut Out) -> std::io::Result<()> {
    io.write_all_buf(out).await?;
    io.flush().await
}

fn refuse(out: &mut Out, version: Version, explains: bool, refused: &Refused) {
    let code = if version == Version::V4 { refused.v4 } else { refused.v5 };
    let why = clipped(refused.why, 256);
    out.connack(
        version,
        code,
        false,
        &Announced { reason: explains.then_some(&*why), ..Announced::default() },
    );
}

async fn sign_in(
    connect: &Connect,
    from: SocketAddr,
    shown: Shown,
    turn: &mut Turn,
    gate: &Shared,
) -> Result<SignedIn, Refused> {
    if connect.auth_method {
        return Err(Refused { v4: 5, v5: reason::BAD_AUTH_METHOD, why: "use a user name and a token" });
    }
    let empty = connect.client_id.is_empty();
    if (empty && connect.version == Version::V4 && !connect.clean) || connect.client_id.len() > CLIENT_ID_MAX
    {
        let why = "use a client id of 1–1024 bytes, or a clean session";
        return Err(Refused { v4: 2, v5: reason::CLIENT_ID, why });
    }
    let attempt = attempt(connect, from, shown)?;
    let assigned = if empty { Some(client_id().ok_or(NO_ANSWER)?) } else { None };
    let client_id = assigned.as_deref().unwrap_or(&connect.client_id);
    let mut force = false;
    loop {
        turn.resume().await;
        let endings = gate.handle.registry().endings();
        let who = turn.within(check(attempt.clone(), gate)).await?;
        if let Some(will) = &connect.will
            && check_will(&who, &gate.config, will).is_err()
        {
            let why = "a will is for an app topic that is open to you, within the limits on those";
            return Err(Refused { v4: 5, v5: reason::TOPIC_INVALID, why });
        }
        let connections_max = gate.config.connections_per_member;
        let (places, from, clean) = (&gate.connections, from.ip(), connect.clean);
        let wish = Wish { client_id, clean, connections_max, places, from, endings, force };
        match gate.handle.registry().register(&who, wish) {
            Ok(Registered { registration, kept, discarded }) => {
                if let Some(who) = discarded {
                    gate.backend.session_left(&who, client_id, None);
                }
                return Ok(SignedIn { who, registration, kept, assigned });
            }
            // Members were ended meanwhile, this one perhaps.
            Err(NotRegistered::CheckAgain) => {}
            Err(NotRegistered::TooMany) => {
                count_refused("member");
                let why = "the member has too many connections or sessions";
                return Err(Refused { v4: 3, v5: reason::QUOTA, why });
            }
            Err(NotRegistered::Full(full)) => {
                count_refused(full.as_str());
                let why = match full {
                    Full::All => "the server has as many connections as it may have",
                    Full::Address => "too many connections from your address",
                };
                return Err(Refused { v4: 3, v5: reason::QUOTA, why });
            }
            Err(NotRegistered::Held(left)) => {
                force = tokio::time::timeout(LEAVE, turn.within(left.cancelled())).await.is_err();
            }
        }
    }
}

/// A client id for a client that brought none: of random bits, because a number would tell it how many others came.
fn client_id() -> Option<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    Some(format!("assigned-{}", HEXLOWER.encode(&random)))
}

fn count_refused(limit: &'static str) {
    metrics::counter!("millpond_gate_connections_refused_total", "limit" => limit).increment(1);
}

/// Who the client says it is, and what is to prove it: a password where there is one, else its certificate. Where it has
/// shown a certificate, its user name may not say anything else.
fn attempt(connect: &Connect, from: SocketAddr, shown: Shown) -> Result<SignIn, Refused> {
    let refused = |why| Refused { v4: 4, v5: reason::BAD_CREDENTIALS, why };
    let (certified, wrong) = match shown {
        Shown::Member(certified) => (Some(certified), WRONG_USER),
        Shown::Nothing => (None, WRONG_USER),
        Shown::Nobody => (None, "the certificate names no member here, or was revoked"),
    };
    let wrong = || refused(wrong);
    let named = match connect.user.as_deref() {
        Some(user) => Some(parse_user(user).ok_or_else(|| refused(WRONG_USER))?),
        None => None,
    };
    let (certified, issued) = certified.map(|it| ((it.pool, it.member), it.issued)).unzip();
    if certified.as_ref().zip(named.as_ref()).is_some_and(|(certified, named)| certified != named) {
        return Err(refused("the user name is another than the certificate's"));
    }
    let (pool, member) = named.or(certified).ok_or_else(wrong)?;
    let credential = match (&connect.password, issued) {
        (Some(token), _) => Credential::Token(token.clone()),
        (None, Some(issued)) => Credential::Certificate { issued },
        (None, None) => return Err(wrong()),
    };
    Ok(SignIn { pool, member, credential, from })
}

async fn check(attempt: SignIn, gate: &Shared) -> Result<Principal, Refused> {
    gate.backend.sign_in(attempt).await.map_err(|error| match error {
        SignInError::BadCredentials => {
            Refused { v4: 4, v5: reason::BAD_CREDENTIALS, why: "unknown user name or wrong token" }
        }
        SignInError::Quota => Refused { v4: 3, v5: reason::QUOTA, why: "too many failed attempts: wait" },
        SignInError::Unavailable => NO_ANSWER,
    })
}

fn parse_user(user: &str) -> Option<(PoolName, MemberName)> {
    let (pool, member) = user.split_once('/')?;
    Some((pool.parse().ok()?, member.parse().ok()?))
}
