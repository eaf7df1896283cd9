//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    address::{Address, node_address},
    metadata::Header,
};

const AFTER_HELP: &str = "\
Examples:
  outpost status                                          what runs here
  outpost modules -o mermaid                              a picture of who calls whom
  outpost call                                            every method that can be called
  outpost call shop.v1.Catalog/Get '{\"product_id\": \"mug\"}'

Exit codes: 0 done; 1 the answer was an error; 2 wrong arguments or JSON; 4 the server can't be reached;
130 ended by Ctrl-C.";

/// Looks into running Outpost applications, and calls them.
#[derive(Debug, Parser)]
#[command(name = "outpost", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Shows what a node is, and what it is doing.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Lists a node's modules, their services and the modules that they call.
    #[command(after_help = MODULES_EXAMPLES)]
    Modules(ModulesArgs),
    /// Calls a method of any gRPC server that has server reflection.
    ///
    /// Without a method it lists the methods, and with only a service also the messages that they take. The server is
    /// the node's ingress, unless there is an --address.
    #[command(after_help = CALL_EXAMPLES)]
    Call(Box<CallArgs>),
}

const STATUS_EXAMPLES: &str = "\
Examples:
  outpost status
  outpost status --node 127.0.0.1:7401
  outpost status -o json | jq .calls_in_flight";

const MODULES_EXAMPLES: &str = "\
Examples:
  outpost modules
  outpost modules -o json | jq -r '.modules[] | select(.panics > 0).name'
  outpost modules -o mermaid > modules.mmd";

const CALL_EXAMPLES: &str = "\
Examples:
  outpost call                                         every method
  outpost call Catalog                                 the methods of one service, and what they take
  outpost call shop.v1.Catalog/Get '{\"product_id\": \"mug\"}'
  outpost call Orders/Watch '{\"order_id\": \"ORDER-1\"}' --timeout 10s -o json
  outpost call Reviews/Upload -d @reviews.json         a stream of messages: one after the other
  outpost call Support/Chat -d -                       sends each message as it is typed; Ctrl-D ends
  outpost call Checkout/PlaceOrder -d @order.json -H 'authorization: Bearer TOKEN'
  outpost call --address https://grpc.example.com:443  any other server, by TLS

Exit codes: 0 the call succeeded; 1 the answer was an error; 2 wrong arguments or JSON; 4 the server can't be reached;
130 ended by Ctrl-C.";

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node's admin API (its `admin.listen`).
    #[arg(long, env = "OUTPOST_NODE", value_name = "ADDRESS", default_value = "127.0.0.1:7001")]
    #[arg(value_parser = node_address)]
    pub(crate) node: Address,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: StatusOutput,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum StatusOutput {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ModulesArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: ModulesOutput,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum ModulesOutput {
    #[default]
    Table,
    Json,
    /// A flow chart for mermaid.js.org.
    Mermaid,
}

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
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
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
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CallOutput {
    /// Indented JSON.
    #[default]
    Pretty,
    /// JSON, one line an answer.
    Json,
}

/// Bounded, because gRPC can't say more on the wire than eight digits.
fn timeout(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let wanted = humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms, 10s or 1m"))?;
    if wanted < Duration::from_millis(1) || wanted > LONGEST {
        return Err("must be from 1ms to 365d".to_owned());
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_timeout_has_a_unit_and_a_bound() {
        assert_eq!(timeout("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["10", "0s", "1us", "1000y", ""] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_is_given_once() {
        assert!(Cli::try_parse_from(["outpost", "call", "a/B", "{}", "-d", "{}"]).is_err());
        assert!(Cli::try_parse_from(["outpost", "call", "a/B", "-d", "-"]).is_ok());
    }
}
