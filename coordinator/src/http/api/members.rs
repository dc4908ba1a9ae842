//! Members, what they sign in with, and who did what.

use std::fmt;

use millpond_protocol::{MemberName, PoolName, Role, Sha256, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /v1/pools/{pool}/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub members: Vec<MemberInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A member, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    pub member: MemberName,
    pub role: Role,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// Tokens that are valid.
    pub tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upload: Option<Timestamp>,
    /// What it last said of a result, and of which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// `POST /v1/pools/{pool}/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    pub member: MemberName,
    pub role: Role,
    /// The SHA-256 of a token that the device made itself; the request can then be repeated. Without it the server
    /// makes one, and says it once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<Sha256>,
}

/// `POST /v1/pools/{pool}/members/{member}/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// As in [`NewMember`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<Sha256>,
    /// Whether the member's other tokens end with this request, and its sessions with them.
    #[serde(default)]
    pub replace: bool,
    /// Seconds that they hold on if they are replaced, for devices that get the new one later; 30 days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_s: Option<u64>,
}

/// `PATCH /v1/pools/{pool}/members/{member}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRole {
    pub role: Role,
}

/// `POST /v1/pools/{pool}/joins`: devices that know the token become members by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewJoin {
    /// What operators call it.
    pub name: MemberName,
    /// What the devices become; no operators.
    pub role: Role,
    /// Devices that may use it.
    pub uses: u32,
    /// Seconds until it ends; 30 days at most.
    pub expires_s: u64,
    /// As in [`NewMember`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<Sha256>,
}

/// A join token, as the operator sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInfo {
    pub pool: PoolName,
    pub name: MemberName,
    pub role: Role,
    /// Devices that may still use it.
    pub uses: u32,
    pub expires: Timestamp,
    /// The token, if the server made it just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `GET /v1/pools/{pool}/joins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joins {
    pub joins: Vec<JoinInfo>,
}

/// `POST /v1/pools/{pool}/enrol`, with the join token as the bearer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// The name that the device wants.
    pub member: MemberName,
    /// The SHA-256 of a token that the device made itself.
    pub token_sha256: Sha256,
}

/// `GET /v1/audit`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    pub entries: Vec<AuditEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Who did what, from where, when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub id: u64,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// `admin`, `pool/member`, or what a refused sign-in named.
    pub who: String,
    /// An address.
    pub from: String,
    pub action: String,
    pub detail: Value,
}

/// All that a device needs to connect. The token is shown once and kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOut {
    pub pool: PoolName,
    pub member: MemberName,
    pub role: Role,
    pub mqtt_host: String,
    pub mqtt_port: u16,
    /// The same as a URL: `mqtts://` where the port speaks TLS, else `mqtt://`.
    pub mqtt_url: String,
    /// Where the server has the certificate of the authority that the device must trust, for all ports; absent: a public
    /// one, or no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The same in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What the URLs of files begin with: the device must reach it too.
    pub storage_url: String,
    /// The MQTT user name.
    pub user: String,
    /// The MQTT password; absent if the device made it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A command line to try it with.
    pub example: String,
}

// No token gets into a log.
impl fmt::Debug for JoinInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("JoinInfo");
        shown.field("pool", &self.pool).field("name", &self.name).field("role", &self.role);
        shown.field("uses", &self.uses).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl fmt::Debug for HandOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("HandOut");
        shown.field("pool", &self.pool).field("member", &self.member).field("role", &self.role);
        shown
            .field("mqtt_url", &self.mqtt_url)
            .field("storage_url", &self.storage_url)
            .finish_non_exhaustive()
    }
}
