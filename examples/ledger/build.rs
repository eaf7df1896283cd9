//! Generates messages, servers and handles. Needs no `protoc`.

fn main() -> Result<(), outpost_build::Error> {
    outpost_build::compile(&["proto/ledger.proto"])
}
