//! Compiles `proto/` in pure Rust: no `protoc` on the machine.

use std::error::Error;
use std::path::Path;

use prost::Message as _;

const CRI: &str = "runtime/v1/runtime.proto";
const SHIM: &str = "berth/shim/v1/shim.proto";
const NRI: &str = "nri/v1alpha1/nri.proto";

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
        .server_mod_attribute(".", r#"#[cfg(feature = "server")]"#)
        .emit_rerun_if_changed(false)
        .compile_fds(cri)?;

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
