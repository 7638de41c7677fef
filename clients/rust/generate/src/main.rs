//! Writes the stubs of a descriptor set: `imagetasks-stubs <descriptor set> <directory>`.
//!
//! Needs no protoc. The messages of google.rpc are those of tonic-types.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, protoset, directory] = arguments.as_slice() else {
        return Err("imagetasks-stubs <descriptor set> <directory>".into());
    };
    let set = FileDescriptorSet::decode(fs::read(protoset)?.as_slice())?;
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .out_dir(directory)
        .compile_fds(set)?;
    Ok(())
}
