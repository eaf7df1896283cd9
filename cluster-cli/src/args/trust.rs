//! `ca`, `keyring`, `token` and `context`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{DataOutput, NodeArgs};
use crate::address::{Address, node_address};

pub(super) const CA_EXAMPLES: &str = "\
Examples:
  outpost ca init                                       an authority, and a key for gossip, in ./trust
  outpost ca issue node-1 node-2 node-3 --cluster shop  trust/node-1.pem and trust/node-1.key, and so on
  outpost ca issue --operator alice --cluster shop      for the tool: see `outpost context`
  outpost ca issue node-1 --cluster shop --days 1       a new certificate for the same key: the node takes it up
  outpost ca revoke node-3                              into the list trust/revocations.pem, to be refused by all nodes
  outpost ca revoke old/node-3.pem -o json              the same, by the file of the certificate
  outpost ca revoke --days 90                           the list anew, for longer; an empty one, where there is none

A node is told of its files by trust.certificate, trust.key, trust.authorities (ca.pem), trust.gossip_keys (gossip.keys)
and trust.revocations (revocations.pem). Keep ca.key where no node is: who has it can be any node.";

pub(super) const KEYRING_EXAMPLES: &str = "\
Examples:
  outpost keyring list                    which keys each node has
  outpost keyring generate                a new key: the same goes into the file of every node

To change the key of a running cluster, change the file that `trust.gossip_keys` names on every node, in three steps; each
is done once `outpost keyring list` shows it for all nodes: add one new key at the end; put it first; remove the old one.";

pub(super) const TOKEN_EXAMPLES: &str = "\
Examples:
  outpost token generate                                     a token, and the line for `admin.operators`
  outpost token generate --out ci.token                      the token to a file that only you can read
  outpost token generate --out ci.token --for 90d            one that is good for so long
  outpost token generate -o json | jq -r .token_sha256
  outpost status --token-file ci.token                       shows it, for one command
  outpost context set prod --node 10.0.0.5:7001 --authorities ca.pem --cluster shop --token-file ci.token

A node has only the hash of a token, in the file that admin.operators names. The token itself is printed once, and nowhere
to be found again: keep it where your secrets are.";

pub(super) const CONTEXT_EXAMPLES: &str = "\
Examples:
  outpost context set prod --node 10.0.0.5:7001 --certificate alice.pem --key alice.key --authorities ca.pem
  outpost context set stage --kubernetes statefulset/shop --namespace shop --certificate alice.pem --key alice.key \
      --authorities ca.pem
  outpost context set ci --node 10.0.0.5:7001 --authorities ca.pem --cluster shop --token-file ci.token
  outpost context use prod
  outpost context list
  outpost status --context prod";

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Makes an authority, and a key for gossip.
    Init(CaInitArgs),
    /// Makes certificates for nodes or an operator.
    Issue(CaIssueArgs),
    /// Revokes certificates: puts them into the list that nodes look at (`trust.revocations`).
    ///
    /// What was in the list stays in it. All certificates that were made for the same key go together.
    Revoke(CaRevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CaInitArgs {
    /// The folder to make it in.
    #[arg(long, value_name = "FOLDER", default_value = "trust")]
    pub(crate) dir: PathBuf,
    /// The trust domain: the first part of every name that it gives.
    #[arg(long, value_name = "NAME", default_value = "outpost.local")]
    pub(crate) domain: String,
    /// How long it is good for.
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CaIssueArgs {
    /// The nodes' names, as `node.name` sets them.
    #[arg(value_name = "NODE", required_unless_present = "operator")]
    pub(crate) nodes: Vec<String>,
    /// A certificate for an operator of this name.
    #[arg(long, value_name = "NAME", conflicts_with = "nodes")]
    pub(crate) operator: Option<String>,
    /// The cluster's name: `cluster.name`, or the application's name where that is not set.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: String,
    /// The folder of the authority.
    #[arg(long, value_name = "FOLDER", default_value = "trust")]
    pub(crate) dir: PathBuf,
    /// How long they are good for.
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CaRevokeArgs {
    /// The nodes or operators that certificates were issued for, or files of certificates; none renews the list.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) names: Vec<String>,
    /// The folder of the authority.
    #[arg(long, value_name = "FOLDER", default_value = "trust")]
    pub(crate) dir: PathBuf,
    /// When the list should be renewed: nodes tell when it was not, and go on with it.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyringVerb {
    /// Prints a new key.
    Generate,
    /// Lists the keys that each node has: the first seals, all of them open.
    List(KeyringListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KeyringListArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Makes a token, and prints it and its hash.
    Generate(TokenGenerateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenGenerateArgs {
    /// Writes the token to this file, which must be new, and prints only the hash.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// How long it is to be good, from now on; else until its hash is taken out.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) good_for: Option<Duration>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: DataOutput,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextVerb {
    /// Lists the contexts; the current one has a star.
    List {
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: DataOutput,
    },
    /// Makes or replaces a context.
    Set(Box<ContextSetArgs>),
    /// Makes a context the current one; `none` is none.
    Use {
        /// Its name.
        name: String,
    },
    /// Removes a context. The files that it names stay.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ContextSetArgs {
    /// Its name.
    pub(crate) name: String,
    /// The admin API (`admin.listen`) of a node.
    #[arg(long, value_name = "ADDRESS", value_parser = node_address, required_unless_present = "kubernetes")]
    pub(crate) node: Option<Address>,
    /// Where nodes are in Kubernetes: what `kubectl port-forward` takes, such as statefulset/shop.
    #[arg(long, value_name = "TARGET", conflicts_with = "node")]
    pub(crate) kubernetes: Option<String>,
    /// Its namespace, if that is not the one of kubectl's context.
    #[arg(long, value_name = "NAMESPACE", requires = "kubernetes", conflicts_with = "node")]
    pub(crate) namespace: Option<String>,
    /// The context of kubectl, if that is not the current one.
    #[arg(long, value_name = "NAME", requires = "kubernetes", conflicts_with = "node")]
    pub(crate) kube_context: Option<String>,
    /// The operator's certificate, in PEM.
    #[arg(long, value_name = "FILE", requires_all = ["key", "authorities"])]
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(crate) key: Option<PathBuf>,
    /// The certificates of those who may sign the nodes' certificates.
    #[arg(long, value_name = "FILE")]
    pub(crate) authorities: Option<PathBuf>,
    /// Where no certificate is shown: the cluster's name (`cluster.name`), which its nodes' certificates have to have.
    #[arg(long, value_name = "NAME", requires = "authorities", conflicts_with = "certificate")]
    pub(crate) cluster: Option<String>,
    /// A file with the operator's token. It is read when it is needed.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}
