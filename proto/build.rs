//! Generates the Rust types of the cluster's own services. Needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/outpost/admin/v1/admin.proto",
        "proto/outpost/cluster/v1/answers.proto",
        "proto/outpost/cluster/v1/cluster.proto",
        "proto/outpost/cluster/v1/link.proto",
        "proto/outpost/v1/options.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".outpost.cluster.v1.TransferResponse")
        .bytes(".outpost.cluster.v1.CarriedCall")
        .bytes(".outpost.cluster.v1.CarriedHead")
        .bytes(".outpost.cluster.v1.CarriedAnswer")
        .bytes(".outpost.cluster.v1.CarriedField")
        .message_attribute(".outpost.admin", "#[derive(::serde::Serialize)]")
        .compile_fds(descriptors)?;
    Ok(())
}
