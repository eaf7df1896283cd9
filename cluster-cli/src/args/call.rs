//! `call`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{NodeArgs, duration};
use crate::{address::Address, metadata::Header};

pub(super) const EXAMPLES: &str = "\
Examples:
  outpost call                                         every method
  outpost call Catalog                                 the methods of one service, and what they take
  outpost call shop.v1.Catalog/Get '{\"product_id\": \"mug\"}'
  outpost call Orders/Watch '{\"order_id\": \"ORDER-1\"}' --timeout 10s -o json
  outpost call Reviews/Upload -d @reviews.json         a stream of messages: one after the other
  outpost call Support/Chat -d -                       sends each message as it is typed; Ctrl-D ends
  outpost call Checkout/PlaceOrder -d @order.json -H 'authorization: Bearer TOKEN'
  outpost call --address https://grpc.example.com:443  any other server, by TLS";

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The method, such as shop.v1.Catalog/Get. The package may be left out if that leaves no doubt.
    #[arg(value_name = "SERVICE/METHOD")]
    pub(crate) method: Option<String>,
    /// The message, such as '{"product_id": "mug"}'; several, one after the other, for a method that takes a stream.
    #[arg(value_name = "JSON", conflicts_with = "data")]
    pub(crate) json: Option<String>,
    /// The same as JSON; or @FILE to read it from a file, or - to read it from stdin.
    #[arg(short, long, value_name = "JSON")]
    pub(crate) data: Option<String>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Calls this server, and asks no node.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<Address>,
    /// Ends the call after so long, such as 500ms or 1m; the server is told. Without it, the call takes what it takes.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Metadata to send, such as 'authorization: Bearer TOKEN'; may be repeated. The value of a key that ends in -bin
    /// is base64.
    #[arg(short = 'H', long = "header", value_name = "KEY: VALUE")]
    pub(crate) headers: Vec<Header>,
    /// How to print answers.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: CallOutput,
    /// Prints fields that have their default value too.
    #[arg(long)]
    pub(crate) emit_defaults: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TlsArgs {
    /// Calls by TLS, as for an address that begins with https://. A node's ingress is known to speak TLS or not.
    #[arg(long)]
    pub(crate) tls: bool,
    /// Trusts the certificates in this PEM file, and not those that the system trusts. Implies --tls.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The name that the server's certificate must have, if it is not the address's. Implies --tls.
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_name: Option<String>,
    /// Shows the certificate in this PEM file, to a server that asks for one. Implies --tls.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Whether one of them asks for TLS.
    pub(crate) fn is_set(&self) -> bool {
        self.tls || self.tls_ca.is_some() || self.tls_name.is_some() || self.tls_certificate.is_some()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CallOutput {
    /// Indented JSON.
    #[default]
    Pretty,
    /// JSON, one line an answer.
    Json,
}
