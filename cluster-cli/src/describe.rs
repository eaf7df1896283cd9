//! What one node says of itself: `status --local`, `modules --local`, and who calls whom.

use std::time::Duration;

use outpost_proto::{
    admin::v1::{DescribeRequest, DescribeResponse, Node},
    describe,
};
use serde_json::json;

use crate::{
    address::Address,
    admin::Admin,
    args::{DataOutput, ModulesArgs, ModulesOutput, StatusArgs},
    connect::Target,
    error::CliError,
    output::Output,
};

pub(crate) async fn status(args: &StatusArgs, out: &mut Output) -> Result<(), CliError> {
    let described = ask(&Target::of(&args.node).await?).await?;
    match args.output {
        DataOutput::Table => out.print(&table(&described)).await,
        DataOutput::Json => {
            let mut value = json!(described.node.clone().unwrap_or_default());
            value["modules"] = json!(described.modules.len());
            value["panics"] = json!(panics(&described));
            out.print_json(&value).await
        }
    }
}

pub(crate) async fn modules(args: &ModulesArgs, out: &mut Output) -> Result<(), CliError> {
    let described = ask(&Target::of(&args.node).await?).await?;
    match args.output {
        ModulesOutput::Table => out.print(&describe::table(&described.modules, &described.cycles)).await,
        ModulesOutput::Mermaid => out.print(&describe::mermaid(&described.modules)).await,
        ModulesOutput::Json => out.print_json(&json!({"modules": described.modules, "cycles": described.cycles})).await,
    }
}

/// The address of a node's ingress, as seen from here.
pub(crate) async fn ingress(node: &Target) -> Result<Address, CliError> {
    let Node { ingress, tls, state, .. } = ask(node).await?.node.unwrap_or_default();
    if ingress.is_empty() {
        return Err(CliError::NoIngress { node: node.address.clone(), state });
    }
    match ingress.parse::<Address>() {
        Ok(address) => Ok(address.seen_from(&node.address).with_tls(tls)),
        Err(_) => Err(CliError::BadIngress { node: node.address.clone(), ingress }),
    }
}

async fn ask(node: &Target) -> Result<DescribeResponse, CliError> {
    let admin = Admin::at(node.clone()).await?;
    admin.ask("the question what the node is", admin.client().describe(DescribeRequest {})).await
}

fn panics(described: &DescribeResponse) -> u64 {
    described.modules.iter().map(|module| module.panics).sum()
}

fn table(described: &DescribeResponse) -> String {
    let node = described.node.clone().unwrap_or_default();
    let ingress = match (node.ingress.as_str(), node.tls) {
        ("", _) => "none yet".to_owned(),
        (address, true) => format!("{address}, TLS"),
        (address, false) => format!("{address}, no TLS"),
    };
    let rows = [
        ("application", format!("{} {}", node.application, node.version)),
        ("state", node.state),
        ("ingress", ingress),
        ("uptime", humantime::format_duration(Duration::from_secs(node.uptime_seconds)).to_string()),
        ("pid", node.process_id.to_string()),
        ("connections", node.connections.to_string()),
        ("calls in flight", node.calls_in_flight.to_string()),
        ("modules", described.modules.len().to_string()),
        ("panics", panics(described).to_string()),
    ];
    rows.iter().map(|(name, value)| format!("{name:16} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::Module;

    use super::*;

    #[test]
    fn a_status_is_one_fact_a_line() {
        let node = Node {
            application: "shop".to_owned(),
            version: "1.2.3".to_owned(),
            ingress: "127.0.0.1:7000".to_owned(),
            uptime_seconds: 3 * 60 * 60 + 7,
            ..Node::default()
        };
        let module = |panics| Module { panics, ..Module::default() };
        let described = DescribeResponse { node: Some(node), modules: vec![module(1), module(2)], cycles: vec![] };
        let text = table(&described);
        for line in [
            "application      shop 1.2.3",
            "ingress          127.0.0.1:7000, no TLS",
            "uptime           3h 7s",
            "modules          2",
            "panics           3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
