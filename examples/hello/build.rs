//! In place of `tonic_prost_build::compile_protos`; needs no `protoc`.

fn main() -> Result<(), outpost_build::Error> {
    outpost_build::compile(&["proto/hello.proto"])
}
