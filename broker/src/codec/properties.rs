//! The properties of MQTT 5 (OASIS MQTT 5, 2.2.2): read by the table of the packets that allow each.

use bytes::Bytes;
use millpond_protocol::limits;

use super::packet::{Bad, Details};
use super::read::Reader;

/// What clients may say in properties. Those that the gate has no use for are checked and dropped.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub(super) details: Details,
    pub(super) subscription_identifier: Option<u32>,
    pub(super) session_expiry: Option<u32>,
    pub(super) auth_method: Option<String>,
    pub(super) has_auth_data: bool,
    pub(super) request_problem: Option<bool>,
    pub(super) request_response: Option<bool>,
    pub(super) receive_max: Option<u16>,
    pub(super) topic_alias: Option<u16>,
    pub(super) alias_max: Option<u16>,
    pub(super) packet_max: Option<u32>,
    pub(super) will_delay: Option<u32>,
    /// More user properties than are kept.
    pub(super) has_too_many: bool,
}

pub(super) const CONNECT: &[u8] = &[17, 21, 22, 23, 25, 33, 34, 38, 39];
pub(super) const WILL: &[u8] = &[1, 2, 3, 8, 9, 24, 38];
/// A subscription identifier is for servers to send: a client that does breaks the protocol.
pub(super) const PUBLISH: &[u8] = &[1, 2, 3, 8, 9, 35, 38];
pub(super) const ACK: &[u8] = &[31, 38];
pub(super) const SUBSCRIBE: &[u8] = &[11, 38];
pub(super) const UNSUBSCRIBE: &[u8] = &[38];
pub(super) const DISCONNECT: &[u8] = &[17, 28, 31, 38];

impl Properties {
    /// Reads the length and the properties, of which only `allowed` may appear.
    pub(super) fn read(from: &mut Reader, allowed: &[u8]) -> Result<Self, Bad> {
        let length = from.varint()?;
        let mut from = from.part(length)?;
        let mut found = Self::default();
        let mut seen: u64 = 0;
        while !from.is_empty() {
            let id = from.varint()?;
            let id = u8::try_from(id).map_err(|_| Bad::malformed("unknown property"))?;
            if !allowed.contains(&id) {
                return Err(if id <= 42 {
                    Bad::protocol("property not allowed in this packet")
                } else {
                    Bad::malformed("unknown property")
                });
            }
            if id != 38 && seen & (1 << id) != 0 {
                return Err(Bad::protocol("property given twice"));
            }
            seen |= 1 << id;
            found.read_one(id, &mut from)?;
        }
        Ok(found)
    }

    fn read_one(&mut self, id: u8, from: &mut Reader) -> Result<(), Bad> {
        match id {
            1 => self.details.is_text = flag(from)?,
            2 => self.details.expiry = Some(from.u32()?),
            3 => self.details.content_type = Some(from.text()?),
            8 => self.details.response_topic = Some(from.text()?),
            // A copy: a slice would keep the whole packet for as long as the ask is under way.
            9 => self.details.correlation_data = Some(Bytes::copy_from_slice(&from.binary()?)),
            11 => self.subscription_identifier = Some(from.varint_nonzero()?),
            17 => self.session_expiry = Some(from.u32()?),
            21 => self.auth_method = Some(from.text()?),
            22 => {
                from.binary()?;
                self.has_auth_data = true;
            }
            23 => self.request_problem = Some(flag(from)?),
            25 => self.request_response = Some(flag(from)?),
            28 | 31 => drop(from.text()?),
            33 => self.receive_max = Some(nonzero(from.u16()?)?),
            24 => self.will_delay = Some(from.u32()?),
            34 => self.alias_max = Some(from.u16()?),
            35 => self.topic_alias = Some(from.u16()?),
            39 => self.packet_max = Some(from.u32().and_then(nonzero)?),
            38 => {
                let pair = (from.text()?, from.text()?);
                if self.details.user_properties.len() < limits::USER_PROPERTIES_MAX {
                    self.details.user_properties.push(pair);
                } else {
                    self.has_too_many = true;
                }
            }
            _ => return Err(Bad::malformed("unknown property")),
        }
        Ok(())
    }
}

fn flag(from: &mut Reader) -> Result<bool, Bad> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Bad::protocol("property must be 0 or 1")),
    }
}

fn nonzero<N: Default + PartialEq>(value: N) -> Result<N, Bad> {
    if value == N::default() { Err(Bad::protocol("property must not be 0")) } else { Ok(value) }
}
