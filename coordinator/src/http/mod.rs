//! The HTTP API: `/v1` for the command line and for operators' programs, health, metrics, and the event stream.

pub mod api;
