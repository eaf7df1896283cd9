//! From what people type to what there is: services and methods of a server, modules and nodes of a cluster.

use outpost_proto::admin::v1::{Cluster, ClusterModule, ClusterNode};

/// A name that nothing has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadName {
    #[error("{server} has no service `{name}`{}{}", suggestion(.near), list("its services are", .services))]
    UnknownService { server: String, name: String, near: Vec<String>, services: Vec<String> },
    #[error("`{name}` may be any of {}; write it in full", quoted(.of, ", "))]
    AmbiguousService { name: String, of: Vec<String> },
    #[error("service `{service}` has no method `{name}`{}{}", suggestion(.near), list("its methods are", .methods))]
    UnknownMethod { service: String, name: String, near: Vec<String>, methods: Vec<String> },
    #[error("there is no {what} `{name}`{}{}", suggestion(.near), list(&format!("the {what}s are"), .names))]
    NotInCluster { what: &'static str, name: String, near: Vec<String>, names: Vec<String> },
}

/// The module of this name.
pub(crate) fn module<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a ClusterModule, BadName> {
    let found = cluster.modules.iter().find(|module| module.name == name);
    found.ok_or_else(|| not_in_cluster("module", name, cluster.modules.iter().map(|module| &module.name)))
}

/// The node of this name.
pub(crate) fn node<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a ClusterNode, BadName> {
    let found = cluster.nodes.iter().find(|node| node.name == name);
    found.ok_or_else(|| not_in_cluster("node", name, cluster.nodes.iter().map(|node| &node.name)))
}

fn not_in_cluster<'a>(what: &'static str, name: &str, names: impl Iterator<Item = &'a String>) -> BadName {
    let names: Vec<String> = names.cloned().collect();
    BadName::NotInCluster { what, name: name.to_owned(), near: near(name, &names), names }
}

/// A service, and a method if one was named. Reads `shop.v1.Cart/Add`, `/shop.v1.Cart/Add`, `shop.v1.Cart.Add`, and
/// the same without the package.
pub(crate) fn resolve(server: &str, text: &str, services: &[String]) -> Result<(String, Option<String>), BadName> {
    let text = text.trim_matches('/');
    if let Some((service, method)) = text.split_once('/') {
        return Ok((service_named(server, service, services)?, Some(method.to_owned())));
    }
    let as_service = service_named(server, text, services);
    if let Err(BadName::UnknownService { .. }) = as_service
        && let Some((service, method)) = text.rsplit_once('.')
        && let Ok(service) = service_named(server, service, services)
    {
        return Ok((service, Some(method.to_owned())));
    }
    Ok((as_service?, None))
}

fn service_named(server: &str, name: &str, services: &[String]) -> Result<String, BadName> {
    if services.iter().any(|service| service == name) {
        return Ok(name.to_owned());
    }
    let named = services.iter().filter(|service| service.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')));
    let named: Vec<String> = named.cloned().collect();
    match named.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(BadName::UnknownService {
            server: server.to_owned(),
            name: name.to_owned(),
            near: near(name, services),
            services: services.to_vec(),
        }),
        _ => Err(BadName::AmbiguousService { name: name.to_owned(), of: named }),
    }
}

/// The candidates that `name` may be a slip of, the likeliest first, and at most three.
pub(crate) fn near(name: &str, candidates: &[String]) -> Vec<String> {
    const ALIKE: f64 = 0.8;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_lowercase();
    // Packages are alike anyway, so only the last part tells.
    let score = |candidate: &String| {
        let (name, candidate) = (last(name), last(candidate));
        // Of short names, one slip is already much: "Gte" for "Get".
        let one_slip = name.len() > 2 && strsim::osa_distance(&name, &candidate) == 1;
        strsim::jaro_winkler(&name, &candidate).max(if one_slip { 0.9 } else { 0.0 })
    };
    let mut found: Vec<(f64, &String)> =
        candidates.iter().map(|candidate| (score(candidate), candidate)).filter(|(score, _)| *score > ALIKE).collect();
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    found.into_iter().take(3).map(|(_, candidate)| candidate.clone()).collect()
}

fn suggestion(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", quoted(near, " or ")) }
}

fn list(title: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("\n{title}:\n  {}", names.join("\n  ")) }
}

fn quoted(names: &[String], between: &str) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Vec<String> {
        ["shop.v1.Cart", "shop.v1.Catalog", "grpc.a.v1.Reflection", "grpc.a.v2.Reflection"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_method_is_named_in_many_ways() {
        for text in ["shop.v1.Cart/Add", "/shop.v1.Cart/Add", "shop.v1.Cart.Add", "Cart/Add", "Cart.Add", "v1.Cart/Add"]
        {
            let resolved = resolve("here", text, &services());
            assert_eq!(resolved, Ok(("shop.v1.Cart".to_owned(), Some("Add".to_owned()))), "{text}");
        }
        assert_eq!(resolve("here", "Cart", &services()), Ok(("shop.v1.Cart".to_owned(), None)));
    }

    #[test]
    fn a_short_name_must_leave_no_doubt() {
        let error = resolve("here", "Reflection/Info", &services()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`Reflection` may be any of `grpc.a.v1.Reflection`, `grpc.a.v2.Reflection`; write it in full"
        );
        assert!(resolve("here", "art/Add", &services()).is_err(), "only whole parts of a name count");
    }

    #[test]
    fn a_cluster_knows_its_names() {
        let node = |name: &str| ClusterNode { name: name.to_owned(), ..ClusterNode::default() };
        let cluster = Cluster { nodes: vec![node("node-1"), node("node-2")], ..Cluster::default() };
        assert_eq!(super::node(&cluster, "node-2").unwrap().name, "node-2");
        let error = super::node(&cluster, "nod-2").unwrap_err().to_string();
        assert!(error.starts_with("there is no node `nod-2`; did you mean `node-2`"), "{error}");
        assert!(error.ends_with("the nodes are:\n  node-1\n  node-2"), "{error}");
        assert_eq!(module(&cluster, "cart").unwrap_err().to_string(), "there is no module `cart`");
    }

    #[test]
    fn a_slip_gets_a_suggestion_and_nonsense_does_not() {
        assert_eq!(near("shop.v1.Catalogue", &services()), ["shop.v1.Catalog"]);
        assert_eq!(near("catlog", &services()), ["shop.v1.Catalog"]);
        assert_eq!(near("Gte", &["List".to_owned(), "Get".to_owned()]), ["Get"]);
        assert_eq!(near("Zebra", &services()), Vec::<String>::new());
        let error = resolve("127.0.0.1:1", "Catlog/Get", &services()).unwrap_err().to_string();
        assert!(error.starts_with("127.0.0.1:1 has no service `Catlog`; did you mean `shop.v1.Catalog`?\n"), "{error}");
        assert!(error.contains("\n  shop.v1.Cart\n"), "{error}");
    }
}
