//! Write one Rust program out of gRPC modules, and run it as a monolith.
//!
//! ```text
//!                        ┌──────────────────────── node ───────────────────────┐
//! any gRPC client ═════▶ │ ingress ─▶ table ─┬─▶ cart ────handle───▶ pricing   │
//! browser (gRPC-Web) ══▶ │                   ├─▶ checkout ─handle──▶ payment   │  a handle call is
//!                        │ channel ─────────▶└─▶ ...                           │  a call of the trait's method
//! outpost (operator) ──▶ │ admin                                               │
//!                        └─────────────────────────────────────────────────────┘
//! ```
//!
//! A **module** is a name and a factory that builds tonic services; any tonic server is one. A module gets **handles**
//! of the services that it calls as parameters of its factory: typed clients that call the service's trait directly
//! when it is in the same process. Everything else can use the node's in-process [`Channel`], or connect from outside.
//!
//! - [`App`] is where to begin: it makes a program out of modules, with a command line of its own.
//! - [`Module`], [`Context`], [`Config`]: what a module is and gets.
//! - [`Handle`], [`Streaming`], [`Channel`]: how calls are made.
//! - [`Node`]: a running program, for tests and for programs with a `main` of their own.

mod admin;
mod app;
mod call;
mod cli;
mod clock;
mod cluster;
#[doc(hidden)]
pub mod codegen;
pub mod config;
mod descriptors;
mod disk;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod handoff;
mod health;
mod http1;
mod id;
mod ingress;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
mod membership;
mod module;
mod net;
mod node;
mod placement;
mod reflection;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod status;
mod telemetry;
mod together;
mod trust;

pub use app::App;
pub use call::{Caller, Channel, Handle, Streaming, remaining};
pub use cluster::Failure;
pub use config::{Secret, Sources};
pub use id::{BadModuleName, BadNodeId, ModuleName, NodeId};
pub use module::{
    Config, Context, Factory, Json, Module, Parameter, ProgramError, ServiceSet, Services, Snapshot, SnapshotError,
    SnapshotReader, SnapshotWriter, State, fence, services,
};
pub use node::{NoService, Node, Stopped};
pub use status::StartError;
pub use trust::{Client, Token, TrustError};

/// An error of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The pages whose examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/state.md")]
#[doc = include_str!("../../docs/security.md")]
struct Pages;
