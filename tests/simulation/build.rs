//! Generates the module's service.

fn main() -> Result<(), outpost_build::Error> {
    outpost_build::compile(&["proto/register/v1/register.proto"])
}
