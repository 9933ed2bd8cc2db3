//! Compiles `proto/` in pure Rust: no `protoc` on the machine.

use std::collections::HashSet;
use std::error::Error;
use std::path::Path;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{FieldDescriptorProto, FileDescriptorSet};

const CRI: &str = "runtime/v1/runtime.proto";
const SHIM: &str = "berth/shim/v1/shim.proto";
const NRI: &str = "nri/v1alpha1/nri.proto";

/// RPCs whose answers are one list, which is served with its items encoded already.
const LISTS: [&str; 4] =
    ["ListPodSandbox", "ListContainers", "ListPodSandboxStats", "ListContainerStats"];
/// What they answer with instead; `Encoded` in the code.
const ENCODED: &str = ".encoded.Items";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    // The descriptions and the table beside them are for tests, and make no code.
    for sources in ["runtime", "berth", "nri"] {
        println!("cargo::rerun-if-changed={}", root.join(sources).display());
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);

    let cri = protox::compile([CRI], [&root])?;
    std::fs::write(out.join("cri.fds"), cri.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        // Its derived form would print passwords; `redacted` has the one we use.
        .skip_debug([".runtime.v1.AuthConfig"])
        .client_mod_attribute(".", r#"#[cfg(feature = "client")]"#)
        .build_server(false)
        .emit_rerun_if_changed(false)
        .compile_fds(cri.clone())?;
    let served = out.join("served");
    std::fs::create_dir_all(&served)?;
    tonic_prost_build::configure()
        .out_dir(served)
        .build_client(false)
        .extern_path(".runtime.v1", "crate::v1")
        .extern_path(ENCODED, "crate::Encoded")
        .emit_rerun_if_changed(false)
        .compile_fds(served_with_encoded_lists(cri)?)?;

    // Served over ttrpc, so only the messages are generated.
    for messages in [SHIM, NRI] {
        tonic_prost_build::configure()
            .btree_map(".")
            .build_client(false)
            .build_server(false)
            .emit_rerun_if_changed(false)
            .compile_fds(protox::compile([messages], [&root])?)?;
    }
    Ok(())
}

/// The services as they are served. Items take the place of a whole answer, so that it must
/// have nothing else.
fn served_with_encoded_lists(
    mut cri: FileDescriptorSet,
) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let messages = cri.file.iter().flat_map(|file| &file.message_type);
    let is_list = |field: &FieldDescriptorProto| {
        (field.number(), field.label(), field.r#type()) == (1, Label::Repeated, Type::Message)
    };
    let lists: HashSet<String> = messages
        .filter(|message| matches!(message.field.as_slice(), [items] if is_list(items)))
        .map(|message| format!(".runtime.v1.{}", message.name()))
        .collect();
    let services = cri.file.iter_mut().flat_map(|file| &mut file.service);
    for method in services.flat_map(|service| &mut service.method) {
        if LISTS.contains(&method.name()) {
            if !lists.contains(method.output_type()) {
                return Err(format!("{} is not one list", method.output_type()).into());
            }
            method.output_type = Some(ENCODED.to_owned());
        }
    }
    Ok(cri)
}
