//! How a device becomes a member by itself: it knows a join token, makes a device token that nobody else ever sees, and asks the
//! server to let a member with that token's SHA-256 in.
//!
//! The token is on disk before the first request leaves, so an answer that was lost is asked for again with the same one,
//! also by a later process, and costs one use of the join token in all.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use millpond_edge::enrol::{Request, enrol};
//! use millpond_edge::identity::Identity;
//! use millpond_edge::session::{self, Token};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let server = stage.server_url().to_owned();
//! # let new = serde_json::json!({ "name": "line-3", "role": "publisher", "uses": 1, "expires_s": 600 });
//! # let join = stage.post("pools/demo/joins", &new).await?;
//! # let join = join["token"].as_str().expect("a token").to_owned();
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path().join("identity");
//! let (pool, member, join) = ("demo".parse()?, "edge-9".parse()?, Token::new(join));
//! let request = Request { server, pool, member, join, ca: None };
//! enrol(&directory, &request, Duration::from_secs(60)).await?;
//! // From then on, also in another process:
//! let identity = Identity::read(&directory)?.expect("it was enrolled");
//! let (session, _inbox) = session::open(identity.config()?.expect("the server has answered"));
//! session.connected(Duration::from_secs(30)).await?;
//! # Ok(()) }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_protocol::error::ErrorBody;
use millpond_protocol::{MemberName, PoolName, Refusal, Sha256};
use reqwest::{Response, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::identity::{self, Identity, IdentityError, hold};
use crate::session::{Token, Trust};
use crate::transfer::{authorities, http_client, told};

/// Bytes of an answer: far more than a hand-out with its authority.
const ANSWER_MAX: usize = 256 << 10;
/// Longest time for one request.
const REQUEST: Duration = Duration::from_secs(15);

/// What a device asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// URL of the server's HTTP listener. Over `http://` the join token can be read on the way.
    pub server: String,
    pub pool: PoolName,
    /// The name that the device wants.
    pub member: MemberName,
    /// The join token (`mpj_…`).
    pub join: Token,
    /// Authorities in PEM that the server's certificate comes from, beside the public ones.
    pub ca: Option<PathBuf>,
}

/// Why a device is no member yet.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The directory is another member's, or will be when the server has answered.
    #[error("{} is of {user} already: use another directory, or remove that one", .directory.display())]
    Taken { directory: PathBuf, user: String },
    /// What was asked for cannot be asked.
    #[error("{0}")]
    Usage(String),
    /// The server refused; nothing of the attempt is kept.
    #[error(transparent)]
    Refused(Refusal),
    /// What answered is no Millpond, or one of another version.
    #[error("{0} does not answer like a Millpond: {1}")]
    Strange(String, String),
    /// No answer in the time given, or none but "later". The same call goes on with the same token.
    #[error("it is not known whether it worked: repeat the command. {0}")]
    Unanswered(String),
    #[error(transparent)]
    Directory(#[from] IdentityError),
}

/// The part of the hand-out that counts here.
#[derive(Deserialize)]
struct HandOut {
    user: String,
    mqtt_url: String,
    ca: Option<String>,
}

/// How one request ended that brought no member.
enum Attempt {
    /// Another may.
    Again(String, Duration),
    Final(EnrolError),
}

/// Makes the device a member, and leaves in the directory what it connects with. Repeated, it asks again with the same token and
/// writes what the server says now.
///
/// # Errors
/// As [`EnrolError`] says.
pub async fn enrol(directory: &Path, request: &Request, within: Duration) -> Result<Identity, EnrolError> {
    let url = address(request)?;
    let authorities = match &request.ca {
        None => Vec::new(),
        Some(path) => authorities(path).map_err(EnrolError::Usage)?,
    };
    let client = http_client(&url, &authorities, REQUEST, REQUEST)
        .map_err(|error| EnrolError::Usage(format!("{url}: {}", told(error))))?;
    let _held = hold(directory)?;
    let identity = prepare(directory, request)?;
    let deadline = Instant::now() + within;
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let hand_out = loop {
        let (why, pause) = match ask(&client, &url, request, &identity).await {
            Ok(hand_out) => break hand_out,
            Err(Attempt::Again(why, pause)) => (why, pause),
            Err(Attempt::Final(error)) => {
                // One that the server does not know is free to ask again, under another name too.
                if matches!(error, EnrolError::Refused(_)) && identity.address.is_none() {
                    identity::forget(directory)?;
                }
                return Err(error);
            }
        };
        let pause = pause.max(backoff.next(crate::backoff::random()));
        if Instant::now() + pause >= deadline {
            return Err(EnrolError::Unanswered(why));
        }
        tokio::time::sleep(pause).await;
    };
    settle(directory, request, identity, hand_out, &url)
}

/// Where to ask.
fn address(request: &Request) -> Result<Url, EnrolError> {
    let Request { server, pool, .. } = request;
    let wrong = |why: String| EnrolError::Usage(format!("the server's URL {server:?}: {why}"));
    let url = format!("{}/v1/pools/{pool}/enrol", server.trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() || url.query().is_some() => {
            Err(wrong("it holds more than a host, a port and a path".to_owned()))
        }
        "http" | "https" => Ok(url),
        _ => Err(wrong("it begins with https://, or with http:// where plain text is meant".to_owned())),
    }
}

/// The token that the server is asked for: that of an earlier attempt, or a new one that is on disk now.
fn prepare(directory: &Path, request: &Request) -> Result<Identity, EnrolError> {
    if let Some(known) = Identity::read(directory)? {
        if (&known.pool, &known.member) == (&request.pool, &request.member) {
            return Ok(known);
        }
        let user = format!("{}/{}", known.pool, known.member);
        return Err(EnrolError::Taken { directory: directory.to_owned(), user });
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| EnrolError::Usage(format!("the system has no random numbers: {error}")))?;
    let token = Token::new(format!("mpd_{}", Sha256(secret)));
    let (pool, member) = (request.pool.clone(), request.member.clone());
    let identity = Identity { pool, member, token, address: None, ca: None };
    identity.write(directory)?;
    Ok(identity)
}

/// One request.
async fn ask(
    client: &reqwest::Client,
    url: &Url,
    request: &Request,
    identity: &Identity,
) -> Result<HandOut, Attempt> {
    let hash = Sha256::of(identity.token.reveal().as_bytes());
    let body = json!({ "member": request.member, "token_sha256": hash });
    let again = |why: String| Attempt::Again(why, Duration::ZERO);
    let answer = async {
        let sent = client.post(url.clone()).bearer_auth(request.join.reveal()).json(&body).send();
        let response = sent.await.map_err(|error| again(told(error)))?;
        let status = response.status();
        Ok((status, read(response).await.map_err(again)?))
    };
    let (status, answer) = match tokio::time::timeout(REQUEST, answer).await {
        Ok(answer) => answer?,
        Err(_) => return Err(again(format!("{url} does not answer within {REQUEST:?}"))),
    };
    if status.is_success() {
        return serde_json::from_slice(&answer)
            .map_err(|error| strange(url, format!("the hand-out is not understood: {error}")));
    }
    match serde_json::from_slice::<ErrorBody>(&answer) {
        Ok(ErrorBody { error, .. }) if error.code.is_temporary() => {
            let pause = error.retry_after_ms.map_or(Duration::ZERO, Duration::from_millis);
            Err(Attempt::Again(error.to_string(), pause))
        }
        Ok(ErrorBody { error, .. }) => Err(Attempt::Final(EnrolError::Refused(error))),
        Err(_) if status.is_server_error() => Err(again(format!("HTTP {status}"))),
        Err(_) => Err(strange(url, format!("HTTP {status}"))),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        answer.extend_from_slice(&chunk);
        if answer.len() > ANSWER_MAX {
            return Err(format!("the answer is longer than {ANSWER_MAX} bytes"));
        }
    }
    Ok(answer)
}

/// Writes what the server said, the authority first.
fn settle(
    directory: &Path,
    request: &Request,
    mut identity: Identity,
    hand_out: HandOut,
    url: &Url,
) -> Result<Identity, EnrolError> {
    let strange = |why: String| EnrolError::Strange(url.to_string(), why);
    let expected = format!("{}/{}", request.pool, request.member);
    if hand_out.user != expected {
        return Err(strange(format!("it speaks of {:?}", hand_out.user)));
    }
    identity.address = Some(hand_out.mqtt_url.parse().map_err(strange)?);
    // The server's word for all of its ports; else what the device was given for this one.
    let pem = match (&hand_out.ca, &request.ca) {
        (Some(pem), _) => Some(pem.clone().into_bytes()),
        (None, Some(path)) => Some(
            std::fs::read(path).map_err(|error| EnrolError::Usage(format!("{}: {error}", path.display())))?,
        ),
        (None, None) => None,
    };
    identity::write_authority(directory, pem.as_deref())?;
    identity.ca = pem.is_some().then(|| directory.join("ca.crt"));
    if let Some(ca) = &identity.ca {
        Trust::new(Some(ca), None).map_err(strange)?;
    }
    identity.write(directory)?;
    Ok(identity)
}

fn strange(url: &Url, why: String) -> Attempt {
    Attempt::Final(EnrolError::Strange(url.to_string(), why))
}
