//! The wire contract of an Outpost cluster.
//!
//! ```text
//! node ──serves──▶ outpost.admin.v1.Admin ◀──calls── outpost (the operator's tool)
//! node ──serves──▶ outpost.cluster.v1.*   ◀──calls── another node
//! an application's .proto files ──import──▶ outpost/v1/options.proto
//! ```
//!
//! Everything that two versions of a node, or a node and a tool, say to each other is defined here,
//! and nothing else: the next release must understand this one while a rollout is half done.

pub mod audit;
pub mod compat;
pub mod describe;
mod hex;
pub mod identity;
pub mod keyring;
pub mod keys;
pub mod mutual;
pub mod options;
pub mod revocation;
pub mod token;

/// `outpost.admin.v1`: what an operator's tool asks a node.
pub mod admin {
    /// Version 1.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        reason = "generated from the commented .proto file"
    )]
    pub mod v1 {
        tonic::include_proto!("outpost.admin.v1");
    }
}

/// `outpost.cluster.v1`: what nodes say to each other.
pub mod cluster {
    /// Version 1.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        clippy::enum_variant_names,
        reason = "generated from the commented .proto file"
    )]
    pub mod v1 {
        tonic::include_proto!("outpost.cluster.v1");
    }
}

/// The text of `outpost/v1/options.proto`, which an application's `.proto` files may import.
pub const OPTIONS: &str = include_str!("../proto/outpost/v1/options.proto");

/// `outpost.v1`: what an application's `.proto` files say to the framework.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated from the commented .proto file"
)]
pub mod v1 {
    tonic::include_proto!("outpost.v1");
}
