//! The three forms in which a shim says where it listens.
//!
//! Oldest first: the bare address (Task API v2 over ttrpc), a JSON object with
//! version, address and protocol, and the protobuf `BootstrapResult`.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Longest answer to `start` that is read, in bytes.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// Which Task API a shim serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// `containerd.task.v2.Task`.
    V2,
    /// `containerd.task.v3.Task`.
    V3,
}

impl ApiVersion {
    /// Full name of the Task service.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Self::V2 => "containerd.task.v2.Task",
            Self::V3 => "containerd.task.v3.Task",
        }
    }
}

/// Where a shim listens, and what it speaks there: all that is needed to find it again.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Version of the Task API.
    pub version: ApiVersion,
    /// `unix://` and an absolute path.
    pub address: String,
}

#[derive(Deserialize)]
struct Json {
    version: i32,
    address: String,
    protocol: String,
}

impl Bootstrap {
    /// Reads what a shim printed on its standard output.
    pub fn parse(answer: &[u8]) -> Result<Self, Error> {
        let text = answer.trim_ascii();
        let shown = || Error::Bootstrap(String::from_utf8_lossy(text).chars().take(256).collect());
        if text.is_empty() {
            return Err(shown());
        }
        if text[0] == b'{' {
            let json: Json = serde_json::from_slice(text).map_err(|_| shown())?;
            return Self::checked(json.version, json.address, &json.protocol);
        }
        if text.starts_with(b"unix://") || text[0] == b'/' {
            let address = String::from_utf8(text.to_vec()).map_err(|_| shown())?;
            return Self::checked(2, address, "ttrpc");
        }
        // Not the trimmed text: a length or tag byte may look like white space.
        let result = BootstrapResult::parse_from_bytes(answer).map_err(|_| shown())?;
        if result.address.is_empty() {
            return Err(shown());
        }
        Self::checked(result.version, result.address, &result.protocol)
    }

    fn checked(version: i32, address: String, protocol: &str) -> Result<Self, Error> {
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        if !(protocol.is_empty() || protocol.eq_ignore_ascii_case("ttrpc"))
            || !path.starts_with('/')
        {
            return Err(Error::Protocol { protocol: protocol.to_owned(), address });
        }
        let address = format!("unix://{path}");
        let version = if version >= 3 { ApiVersion::V3 } else { ApiVersion::V2 };
        Ok(Self { version, address })
    }
}

/// What a shim of containerd 2.3 and later reads on its standard input.
pub(crate) fn params(id: &str, namespace: &str, events: &str, debug: bool) -> Vec<u8> {
    let mut params = BootstrapParams::new();
    params.instance_id = id.to_owned();
    params.namespace = namespace.to_owned();
    params.containerd_ttrpc_address = events.to_owned();
    if debug {
        params.log_level = containerd_shim_protos::bootstrap_api::LogLevel::LOG_LEVEL_DEBUG.into();
    }
    params.write_to_bytes().expect("every field is set in memory, without required ones")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: &[u8], version: ApiVersion, address: &str) {
        let expected = Bootstrap { version, address: address.to_owned() };
        assert_eq!(Bootstrap::parse(answer).unwrap(), expected);
    }

    #[test]
    fn all_three_forms_are_understood() {
        check(b"unix:///run/s/1\n", ApiVersion::V2, "unix:///run/s/1");
        let json = br#"{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}"#;
        check(json, ApiVersion::V3, "unix:///run/s/1");
        let json = br#" {"version":2,"address":"unix:///a","protocol":"ttrpc","more":1}"#;
        check(json, ApiVersion::V2, "unix:///a");

        let mut result = BootstrapResult::new();
        result.version = 3;
        result.address = "unix:///run/s/2".into();
        result.protocol = "ttrpc".into();
        check(&result.write_to_bytes().unwrap(), ApiVersion::V3, "unix:///run/s/2");
    }

    #[test]
    fn grpc_and_vsock_are_refused_by_name() {
        let json = br#"{"version":3,"address":"unix:///a","protocol":"grpc"}"#;
        let Err(Error::Protocol { protocol, .. }) = Bootstrap::parse(json) else { panic!() };
        assert_eq!(protocol, "grpc");
        let json = br#"{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}"#;
        assert!(matches!(Bootstrap::parse(json), Err(Error::Protocol { .. })));
    }

    #[test]
    fn noise_is_not_an_address() {
        for noise in [&b""[..], b"  \n", b"panic: oops", b"{", b"{}", &[0xff; 40]] {
            assert!(matches!(Bootstrap::parse(noise), Err(Error::Bootstrap(_))), "{noise:?}");
        }
    }
}
