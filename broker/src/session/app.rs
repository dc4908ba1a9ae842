//! What is asked of a message on an app topic beside the right to publish it, and of a will.

use millpond_protocol::access::may;
use millpond_protocol::{Action, Code, Principal, Refusal, app_topics, limits};

use crate::codec::packet::Will;
use crate::config::GateConfig;

/// What is asked of a message on an app topic beside the right to publish it.
pub(super) fn check_app(
    config: &GateConfig,
    topic: &str,
    payload: usize,
    response: Option<&str>,
) -> Result<(), Refusal> {
    if !app_topics::is_within_limits(topic) {
        let (bytes, levels) = (limits::APP_TOPIC_BYTES, limits::APP_TOPIC_LEVELS);
        let what = format!("an app topic has at most {bytes} bytes and {levels} levels");
        return Err(Refusal::new(Code::TooLarge, what).limit(bytes as u64));
    }
    if payload > config.publish_max {
        let max = config.publish_max;
        let what = format!("a message on an app topic has at most {max} bytes, not {payload}");
        return Err(Refusal::new(Code::TooLarge, what).limit(max as u64));
    }
    if response.is_some_and(|response| response.is_empty() || response.contains(['+', '#'])) {
        return Err(Refusal::new(Code::Malformed, "the response topic is none"));
    }
    Ok(())
}

/// Whether the will of a CONNECT could be published when the time comes.
pub(crate) fn check_will(who: &Principal, config: &GateConfig, will: &Will) -> Result<(), Refusal> {
    let is_app = !will.topic.starts_with("mp/") && may(who, Action::Publish(&will.topic, &config.app_topics));
    if !is_app {
        return Err(Refusal::new(
            Code::Unauthorized,
            "a will is for app topics that are yours to publish to",
        ));
    }
    if will.has_too_many_properties {
        return Err(Refusal::new(Code::TooLarge, "the will has too many user properties"));
    }
    check_app(config, &will.topic, will.payload.len(), will.details.response_topic.as_deref())
}
