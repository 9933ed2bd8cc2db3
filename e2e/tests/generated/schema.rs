//! The CRI's messages, as `proto/cri-v1.json` describes them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One RPC.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) request: String,
}

/// What a field holds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Text,
    Bytes,
    Bool,
    /// A number of so many bits.
    Number(u32),
    Enum(Vec<i64>),
    Message(String),
    Map(Box<Kind>),
}

/// One field of a message.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: String,
    pub(crate) repeated: bool,
    pub(crate) kind: Kind,
}

/// All messages and RPCs.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) rpcs: Vec<Rpc>,
    messages: BTreeMap<String, Vec<Field>>,
}

impl Schema {
    pub(crate) fn read() -> Result<Self> {
        let json: Value = serde_json::from_str(include_str!("../../../proto/cri-v1.json"))?;
        let mut rpcs = Vec::new();
        for (service, all) in json["services"].as_object().context("no services")? {
            for rpc in all.as_array().context("no rpcs")? {
                let text = |key: &str| rpc[key].as_str().map(str::to_owned);
                rpcs.push(Rpc {
                    service: service.clone(),
                    name: text("rpc").context("no name")?,
                    request: text("request").context("no request")?,
                });
            }
        }
        let mut messages = BTreeMap::new();
        for (name, fields) in json["messages"].as_object().context("no messages")? {
            let fields = fields.as_array().context("no fields")?.iter();
            let fields = fields.map(|field| read_field(&json, field)).collect::<Result<_>>()?;
            messages.insert(name.clone(), fields);
        }
        Ok(Self { rpcs, messages })
    }

    pub(crate) fn fields(&self, message: &str) -> &[Field] {
        self.messages.get(message).map_or(&[], Vec::as_slice)
    }
}

fn read_field(json: &Value, field: &Value) -> Result<Field> {
    let written = field["type"].as_str().context("no type")?;
    let single = written.trim_start_matches("repeated ");
    Ok(Field {
        number: u32::try_from(field["number"].as_u64().context("no number")?)?,
        name: field["name"].as_str().context("no name")?.to_owned(),
        repeated: single != written,
        kind: kind(json, single)?,
    })
}

fn kind(json: &Value, written: &str) -> Result<Kind> {
    if let Some(value) = written.strip_prefix("map<string,") {
        return Ok(Kind::Map(Box::new(kind(json, value.trim_end_matches('>'))?)));
    }
    Ok(match written {
        "string" => Kind::Text,
        "bytes" => Kind::Bytes,
        "bool" => Kind::Bool,
        "int32" | "uint32" => Kind::Number(32),
        "int64" | "uint64" | "double" => Kind::Number(64),
        other => match json["enums"].get(other).and_then(Value::as_object) {
            Some(values) => Kind::Enum(values.values().filter_map(Value::as_i64).collect()),
            None => {
                anyhow::ensure!(json["messages"].get(other).is_some(), "no type {other:?}");
                Kind::Message(other.to_owned())
            }
        },
    })
}
