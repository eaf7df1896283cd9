//! Generates the test services.

fn main() -> Result<(), outpost_build::Error> {
    outpost_build::compile(&["proto/kinds/v1/kinds.proto"])?;
    outpost_build::compile(&["proto/store/v1/store.proto"])?;
    outpost_build::compile(&["proto/delivery/v1/delivery.proto"])?;
    outpost_build::compile(&["proto/awkward/type/v1/awkward.proto"])?;
    // Settings of tonic's and prost's hold for handles too.
    outpost_build::configure()
        .include("proto")
        .tonic(|tonic| tonic.bytes(".").use_arc_self(true).generate_default_stubs(true))
        .prost(|prost| {
            prost.type_attribute("Word", "#[derive(PartialOrd, Ord)]");
        })
        .compile(&["nopackage.proto"])
}
