//! Where the server is: `mqtt://`, `mqtts://`, `ws://` and `wss://`.

use std::fmt;
use std::str::FromStr;

/// How MQTT gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `mqtt://`, port 1883.
    Mqtt,
    /// `mqtts://`: TLS, port 8883.
    Mqtts,
    /// `ws://`: WebSocket, port 80 and path `/mqtt`.
    Ws,
    /// `wss://`: WebSocket over TLS, port 443 and path `/mqtt`.
    Wss,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    /// Whether what is sent is encrypted.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }
}

/// A server's address. Shown as a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub scheme: Scheme,
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// Of a WebSocket: begins with `/`.
    pub path: String,
}

impl Address {
    /// Plain MQTT.
    pub fn plain(host: impl Into<String>, port: u16) -> Self {
        Self { scheme: Scheme::Mqtt, host: host.into(), port, path: String::new() }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(text).map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let all = [Scheme::Mqtt, Scheme::Mqtts, Scheme::Ws, Scheme::Wss];
        let scheme = all.into_iter().find(|scheme| scheme.name() == url.scheme());
        let scheme = scheme.ok_or("the URL begins with mqtt://, mqtts://, ws:// or wss://")?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the URL names no host")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("who connects is no part of the URL: --user, --token-file".into());
        }
        let path = match (scheme, url.path()) {
            (Scheme::Ws | Scheme::Wss, "" | "/") => "/mqtt",
            (Scheme::Mqtt | Scheme::Mqtts, "" | "/") => "",
            (Scheme::Ws | Scheme::Wss, path) => path,
            _ => return Err("only WebSockets have a path".into()),
        };
        Ok(Self {
            scheme,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(scheme.port()),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port, path } = self;
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{}://{open}{host}{close}:{port}{path}", scheme.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_how_and_where() {
        for (text, shown) in [
            ("mqtt://h", "mqtt://h:1883"),
            ("mqtts://mill.example.org:443", "mqtts://mill.example.org:443"),
            ("mqtts://[::1]", "mqtts://[::1]:8883"),
            ("ws://h:8080", "ws://h:8080/mqtt"),
            ("wss://[::1]:8080/behind/mqtt", "wss://[::1]:8080/behind/mqtt"),
            ("wss://h", "wss://h:443/mqtt"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for wrong in ["h:1883", "http://h", "mqtt://", "mqtts://h/path", "mqtts://p:x@h", "wss://u@h"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
