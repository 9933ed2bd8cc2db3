//! Holds our `.proto` files against `proto/cri-v1.json`.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Value, json};

const PACKAGE: &str = ".runtime.v1.";

fn files() -> FileDescriptorSet {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));
    FileDescriptorSet::decode(bytes.as_slice()).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(include_str!("../../../proto/cri-v1.json")).unwrap()
}

fn local(name: &str) -> String {
    name.strip_prefix(PACKAGE).unwrap_or_else(|| panic!("{name} is of another package")).to_owned()
}

fn type_name(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let scalar = match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let entry = message.nested_type.iter().find(|nested| {
        let map = nested.options.as_ref().is_some_and(|options| options.map_entry());
        map && scalar == format!("{}.{}", message.name(), nested.name())
    });
    match (entry, field.label()) {
        (Some(entry), _) => {
            let [key, value] = entry.field.as_slice() else { panic!("map entry of two fields") };
            format!("map<{},{}>", type_name(entry, key), type_name(entry, value))
        }
        (None, Label::Repeated) => format!("repeated {scalar}"),
        (None, _) => scalar,
    }
}

fn fields(message: &DescriptorProto) -> Value {
    let field = |field: &FieldDescriptorProto| {
        assert!(field.oneof_index.is_none() && field.label() != Label::Required, "{field:?}");
        let mut entry = json!({
            "number": field.number(),
            "name": field.name(),
            "type": type_name(message, field),
        });
        if field.options.as_ref().is_some_and(|options| options.deprecated()) {
            entry["deprecated"] = json!(true);
        }
        entry
    };
    message.field.iter().map(field).collect()
}

fn values(declared: &EnumDescriptorProto) -> Value {
    let value = |value: &prost_types::EnumValueDescriptorProto| {
        (value.name().to_owned(), json!(value.number()))
    };
    Value::Object(declared.value.iter().map(value).collect())
}

#[track_caller]
fn same(what: &str, ours: &BTreeMap<String, Value>, theirs: &Value) {
    let theirs = theirs.as_object().unwrap();
    let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(ours.keys().collect()), names(theirs.keys().collect()), "{what}");
    for (name, ours) in ours {
        assert_eq!(ours, &theirs[name], "{what} {name}");
    }
}

#[test]
fn every_message_and_field_is_the_cris() {
    let files = files();
    let messages = files.file.iter().flat_map(|file| &file.message_type);
    let ours: BTreeMap<_, _> = messages.map(|m| (m.name().to_owned(), fields(m))).collect();
    assert_eq!(ours.len(), 170);
    same("message", &ours, &expected()["messages"]);
}

#[test]
fn every_enum_is_the_cris() {
    let files = files();
    let mut ours = BTreeMap::new();
    for file in &files.file {
        ours.extend(file.enum_type.iter().map(|e| (e.name().to_owned(), values(e))));
        for message in &file.message_type {
            let nested = message.enum_type.iter();
            ours.extend(nested.map(|e| (format!("{}.{}", message.name(), e.name()), values(e))));
        }
    }
    same("enum", &ours, &expected()["enums"]);
}

#[test]
fn every_rpc_is_the_cris() {
    let files = files();
    let mut ours = BTreeMap::new();
    for service in files.file.iter().flat_map(|file| &file.service) {
        let rpcs = service.method.iter().map(|method| {
            assert!(!method.client_streaming(), "{method:?}");
            json!({
                "rpc": method.name(),
                "request": local(method.input_type()),
                "response": local(method.output_type()),
                "server_streaming": method.server_streaming(),
            })
        });
        ours.insert(service.name().to_owned(), rpcs.collect::<Value>());
    }
    assert_eq!(ours.values().map(|rpcs| rpcs.as_array().unwrap().len()).sum::<usize>(), 41);
    same("service", &ours, &expected()["services"]);
}

#[test]
fn every_file_is_of_the_cris_package() {
    let expected = expected();
    for file in &files().file {
        assert_eq!(file.package(), expected["package"], "{}", file.name());
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
    }
}
