//! Generates the test service.

fn main() -> Result<(), outpost_build::Error> {
    outpost_build::compile(&["proto/kinds/v1/kinds.proto"])
}
