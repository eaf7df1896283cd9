//! `modules`.

use outpost_proto::admin::v1::ClusterModule;
use serde_json::json;

use crate::{
    admin::Admin,
    args::{ModulesArgs, ModulesOutput},
    describe,
    error::CliError,
    output::Output,
    text::{dash, table, time},
};

pub(crate) async fn run(args: &ModulesArgs, out: &mut Output) -> Result<(), CliError> {
    // Who calls whom is the same on every node: they are copies of one program.
    if args.local || args.output == ModulesOutput::Mermaid {
        return describe::modules(args, out).await;
    }
    let cluster = Admin::connect(&args.node).await?.cluster().await?;
    match args.output {
        ModulesOutput::Json => out.print_json(&json!(cluster.modules)).await,
        _ => out.print_told(&text(&cluster.modules)).await,
    }
}

fn text(modules: &[ClusterModule]) -> String {
    let rows = modules.iter().map(|module| {
        [
            module.name.clone(),
            kind(module),
            state(module),
            module.epoch.to_string(),
            hosts(module),
            dash(&module.services.join("\n")),
            dash(&remarks(module).join("\n")),
        ]
    });
    table(["MODULE", "KIND", "STATE", "EPOCH", "HOSTS", "SERVICES", "PROBLEMS"], rows)
}

/// `exclusive, ephemeral`, `replicated 3`
pub(super) fn kind(module: &ClusterModule) -> String {
    let count = match (module.kind.as_str(), module.replicas) {
        ("replicated", 0) => " every".to_owned(),
        ("replicated", count) => format!(" {count}"),
        _ => String::new(),
    };
    let class = match module.state_class.as_str() {
        "" | "none" => String::new(),
        class => format!(", {class}"),
    };
    format!("{}{count}{class}", module.kind)
}

pub(super) fn state(module: &ClusterModule) -> String {
    match module.moving_to.as_str() {
        "" => module.state.clone(),
        to => format!("{} to {to}", module.state),
    }
}

/// A host that serves needs no word; the others have one.
fn hosts(module: &ClusterModule) -> String {
    let hosts = module.hosts.iter().map(|host| match host.state.as_str() {
        "serving" => host.node.clone(),
        state => format!("{} ({state})", host.node),
    });
    dash(&hosts.collect::<Vec<String>>().join(", "))
}

fn remarks(module: &ClusterModule) -> Vec<String> {
    let mut remarks = module.problems.clone();
    let failed = module.hosts.iter().filter(|host| !host.error.is_empty());
    remarks.extend(failed.map(|host| format!("{}: {}", host.node, host.error)));
    remarks.extend(pin(module));
    remarks
}

/// `pinned to node-2 until 2026-01-01T00:00:00Z: bisecting`
pub(super) fn pin(module: &ClusterModule) -> Option<String> {
    let pin = module.pin.as_ref()?;
    let until = if pin.expires_ms == 0 { String::new() } else { format!(" until {}", time(pin.expires_ms)) };
    let reason = if pin.reason.is_empty() { String::new() } else { format!(": {}", pin.reason) };
    Some(format!("pinned to {}{until}{reason}", pin.node))
}

#[cfg(test)]
mod tests {
    use outpost_proto::admin::v1::{ModuleHost, ModulePin};

    use super::*;

    #[test]
    fn a_module_tells_where_it_is_and_what_is_wrong() {
        let host = |node: &str, state: &str, error: &str| ModuleHost {
            node: node.to_owned(),
            state: state.to_owned(),
            error: error.to_owned(),
        };
        let cart = ClusterModule {
            name: "cart".to_owned(),
            kind: "replicated".to_owned(),
            replicas: 2,
            state: "degraded".to_owned(),
            epoch: 7,
            hosts: vec![host("node-1", "serving", ""), host("node-2", "failed", "no database")],
            services: vec!["shop.v1.Cart".to_owned()],
            ..ClusterModule::default()
        };
        assert_eq!(
            text(std::slice::from_ref(&cart)).lines().nth(1),
            Some(" cart    replicated 2  degraded  7      node-1, node-2 (failed)  shop.v1.Cart  node-2: no database")
        );
        let pin = ModulePin { node: "node-2".to_owned(), reason: "disk".to_owned(), expires_ms: 1_700_000_000_000 };
        let pinned = ClusterModule { pin: Some(pin), moving_to: "node-2".to_owned(), ..cart };
        assert_eq!(super::pin(&pinned).unwrap(), "pinned to node-2 until 2023-11-14T22:13:20Z: disk");
        assert_eq!(state(&pinned), "degraded to node-2");
    }

    #[test]
    fn a_kind_tells_what_becomes_of_the_state() {
        for (class, shown) in [
            ("none", "exclusive"),
            ("ephemeral", "exclusive, ephemeral"),
            ("fixed", "exclusive, fixed"),
            ("a later release's", "exclusive, a later release's"),
        ] {
            let (kind, state_class) = ("exclusive".to_owned(), class.to_owned());
            assert_eq!(super::kind(&ClusterModule { kind, state_class, ..ClusterModule::default() }), shown);
        }
    }
}
