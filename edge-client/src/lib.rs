//! The place of the client for devices. This version has none: any MQTT client speaks the protocol of docs/protocol.md,
//! and docs/examples/ shows how.
