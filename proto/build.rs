//! Compiles the `.proto` files in pure Rust: no `protoc` is needed to build.

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let files = ["fs.proto", "control.proto", "data.proto", "store.proto"];
    let descriptors = protox::compile(files, ["proto"]).expect("the .proto files compile");
    tonic_prost_build::configure()
        .bytes(".")
        // Seldom asked for, and part of an enumeration whose other parts are moved often.
        .boxed(".cairn.fs.v1.ClusterStatus.work")
        .boxed(".cairn.fs.v1.ClusterStatus.compaction")
        .compile_fds(descriptors)
        .expect("code is generated from the descriptors");
}
