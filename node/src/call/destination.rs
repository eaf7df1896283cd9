//! Where calls of a module go, as this node knows. Pure: the placement, and what nodes say of themselves, to a decision.

use crate::{
    id::{Epoch, Incarnation, ModuleName, NodeId},
    membership::{Instance, Lifecycle, Member, Members},
    placement::state::{Hosting, Part},
};

/// Where calls go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To the instance in this process.
    Here,
    /// To an instance in this process that has yet to start.
    Starting,
    Elsewhere {
        epoch: Epoch,
        replicated: bool,
        /// Never empty. Those that are near come first.
        hosts: Vec<NodeId>,
        /// How many of them are near: calls go to the others where none of these can be reached.
        near: usize,
        /// The instance in this process takes its share.
        and_here: bool,
    },
    /// Nowhere, for this reason.
    Nowhere(String),
}

/// Which hosts of a replicated module this node would rather call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Preference {
    /// Itself, where it is one.
    pub(crate) local: bool,
    /// Those that have the same value under a label as this node: the label, and the value.
    pub(crate) zone: Option<(String, String)>,
}

impl Preference {
    fn is_near(&self, member: &Member) -> bool {
        self.zone.as_ref().is_some_and(|(label, value)| member.labels.get(label) == Some(value))
    }
}

/// What this node has of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Nothing,
    Starting,
    /// It serves, or its gate is closed for the while of a move.
    Instance,
    /// It is this node's, but the node may not serve it now.
    Held,
    /// It did not start.
    Failed,
}

/// Decides for one module. A hint, which is what another node answered, counts where it is newer than the placement.
pub(crate) fn destination(
    module: &ModuleName,
    part: Option<&Part>,
    own: Own,
    me: &Incarnation,
    members: &Members,
    hint: Option<&(Epoch, NodeId)>,
    prefer: &Preference,
) -> Destination {
    let Some(part) = part else { return Destination::Nowhere("it is not placed yet".to_owned()) };
    let mine = matches!(&part.hosting, Hosting::Exclusive { owner, .. } if owner == me) && own == Own::Instance;
    if let Some((epoch, node)) = hint
        && *epoch > part.epoch
        && !mine
        && matches!(part.hosting, Hosting::Exclusive { .. })
    {
        return match *node == me.node {
            true => Destination::Nowhere("it is about to move here".to_owned()),
            false => on_one(*epoch, node.clone()),
        };
    }
    match &part.hosting {
        Hosting::Exclusive { owner, .. } if owner == me => match own {
            Own::Instance => Destination::Here,
            Own::Held => Destination::Nowhere("its node has lost touch with the cluster".to_owned()),
            Own::Failed => Destination::Nowhere("it did not start on its node".to_owned()),
            Own::Nothing | Own::Starting => Destination::Starting,
        },
        Hosting::Exclusive { owner, .. } => match members.get(&owner.node) {
            Some(member) if member.generation == owner.generation => on_one(part.epoch, owner.node.clone()),
            _ if owner.node == me.node => {
                Destination::Nowhere(format!("node `{}` served it before its restart", owner.node))
            }
            Some(_) => Destination::Nowhere(format!("node `{}`, which serves it, has just restarted", owner.node)),
            None => Destination::Nowhere(format!("node `{}`, which serves it, is not known here", owner.node)),
        },
        Hosting::Replicated { hosts } => {
            let here = own == Own::Instance;
            if here && prefer.local {
                return Destination::Here;
            }
            let others = |good: &dyn Fn(&Member) -> bool| -> Vec<NodeId> {
                let others = hosts.iter().filter(|host| **host != me.node);
                others.filter(|host| members.get(*host).is_some_and(good)).cloned().collect()
            };
            let serves = |member: &Member| {
                is_there(member) && member.hosting.get(module).is_some_and(|hosted| hosted.state == Instance::Serving)
            };
            let mut serving = others(&serves);
            if serving.is_empty() && !here {
                if hosts.contains(&me.node) && own != Own::Failed {
                    return Destination::Starting;
                }
                // What a node says of itself arrives a moment late; and where no gossip arrives at all, a node that seems
                // dead may well answer.
                serving = others(&is_there);
                if serving.is_empty() {
                    serving = others(&|member| member.lifecycle != Lifecycle::Leaving);
                }
            }
            match (serving.is_empty(), here) {
                (true, true) => Destination::Here,
                (true, false) => Destination::Nowhere("none of its hosts is up".to_owned()),
                (false, _) => {
                    let is_near = |host: &NodeId| members.get(host).is_some_and(|member| prefer.is_near(member));
                    let (mut hosts, others): (Vec<_>, Vec<_>) = serving.into_iter().partition(is_near);
                    let near = hosts.len();
                    hosts.extend(others);
                    // Where nobody is near, everybody is as good; but the instance here is nearer than others.
                    let near = match prefer.zone {
                        Some(_) if near > 0 || here => near,
                        _ => hosts.len(),
                    };
                    Destination::Elsewhere { epoch: part.epoch, replicated: true, hosts, near, and_here: here }
                }
            }
        }
    }
}

fn on_one(epoch: Epoch, host: NodeId) -> Destination {
    Destination::Elsewhere { epoch, replicated: false, hosts: vec![host], near: 1, and_here: false }
}

fn is_there(member: &Member) -> bool {
    member.alive && matches!(member.lifecycle, Lifecycle::Joining | Lifecycle::Ready)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::membership::Hosted;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn cart() -> ModuleName {
        ModuleName::parse("cart").unwrap()
    }

    fn me() -> Incarnation {
        Incarnation { node: node("a"), generation: 1 }
    }

    fn members(others: &[(&str, bool, Option<Instance>)]) -> Members {
        let member = |(name, alive, instance): &(&str, bool, Option<Instance>)| {
            let hosted = |state| (cart(), Hosted { epoch: Epoch(1), state, error: None, bytes: 0 });
            let hosting = instance.iter().map(|state| hosted(*state)).collect();
            let address = "127.0.0.1:1".parse().unwrap();
            let member = Member { alive: *alive, lifecycle: Lifecycle::Ready, hosting, ..Member::new(1, address) };
            (node(name), member)
        };
        others.iter().map(member).collect()
    }

    fn owned_by(name: &str) -> Part {
        let owner = Incarnation { node: node(name), generation: 1 };
        let hosting = Hosting::Exclusive { owner, active: true, moving: None, seal: None };
        Part { version: 1, epoch: Epoch(3), fence: Epoch(0), hosting, chosen: false }
    }

    fn replicated(names: &[&str]) -> Part {
        let hosts: BTreeSet<NodeId> = names.iter().map(|name| node(name)).collect();
        Part { version: 1, epoch: Epoch(3), fence: Epoch(0), hosting: Hosting::Replicated { hosts }, chosen: false }
    }

    fn go(part: &Part, own: Own, members: &Members, hint: Option<(u64, &str)>) -> Destination {
        let hint = hint.map(|(epoch, name)| (Epoch(epoch), node(name)));
        let prefer = Preference { local: true, zone: Some(("zone".to_owned(), "x".to_owned())) };
        destination(&cart(), Some(part), own, &me(), members, hint.as_ref(), &prefer)
    }

    fn to(epoch: u64, replicated: bool, hosts: &[&str]) -> Destination {
        let hosts: Vec<NodeId> = hosts.iter().map(|name| node(name)).collect();
        Destination::Elsewhere { epoch: Epoch(epoch), replicated, near: hosts.len(), hosts, and_here: false }
    }

    #[test]
    fn an_owner_is_called_even_if_gossip_calls_it_dead() {
        let seen = members(&[("b", false, None)]);
        assert_eq!(go(&owned_by("b"), Own::Nothing, &seen, None), to(3, false, &["b"]));
        assert!(matches!(go(&owned_by("c"), Own::Nothing, &seen, None), Destination::Nowhere(_)));
    }

    #[test]
    fn a_hint_counts_where_it_is_newer_and_the_module_is_not_here() {
        let seen = members(&[("b", true, None), ("c", true, None)]);
        assert_eq!(go(&owned_by("b"), Own::Nothing, &seen, Some((4, "c"))), to(4, false, &["c"]));
        assert_eq!(go(&owned_by("b"), Own::Nothing, &seen, Some((3, "c"))), to(3, false, &["b"]));
        assert_eq!(go(&owned_by("a"), Own::Instance, &seen, Some((9, "c"))), Destination::Here);
        assert!(matches!(go(&owned_by("b"), Own::Nothing, &seen, Some((4, "a"))), Destination::Nowhere(_)));
    }

    #[test]
    fn replicas_that_serve_come_first_then_those_that_may() {
        let part = replicated(&["b", "c"]);
        let hosts = |seen: &Members| match go(&part, Own::Nothing, seen, None) {
            Destination::Elsewhere { hosts, .. } => hosts,
            other => panic!("{other:?}"),
        };
        let serving = Some(Instance::Serving);
        assert_eq!(hosts(&members(&[("b", true, serving), ("c", true, Some(Instance::Starting))])), [node("b")]);
        assert_eq!(hosts(&members(&[("b", false, serving), ("c", true, None)])), [node("c")]);
        assert_eq!(hosts(&members(&[("b", false, serving), ("c", false, serving)])), [node("b"), node("c")]);
    }

    #[test]
    fn replicas_of_the_same_zone_come_first_and_the_others_after_them() {
        let serving = Some(Instance::Serving);
        let part = replicated(&["b", "c", "d"]);
        let mut seen = members(&[("b", true, serving), ("c", true, serving), ("d", true, serving)]);
        let hosts = |seen: &Members| match go(&part, Own::Nothing, seen, None) {
            Destination::Elsewhere { hosts, near, .. } => (hosts, near),
            other => panic!("{other:?}"),
        };
        assert_eq!(hosts(&seen), (["b", "c", "d"].map(node).to_vec(), 3), "nobody says where it is");
        let mut put = |name: &str, zone: &str| {
            let member = seen.get_mut(&node(name)).unwrap();
            member.labels = [("zone".to_owned(), zone.to_owned())].into();
        };
        put("c", "x");
        put("d", "y");
        assert_eq!(hosts(&seen), (["c", "b", "d"].map(node).to_vec(), 1));
        seen.get_mut(&node("c")).unwrap().hosting.clear();
        assert_eq!(hosts(&seen), (["b", "d"].map(node).to_vec(), 2), "what is near does not serve");
        // The instance here is near, where it takes its share.
        let part = replicated(&["a", "b", "d"]);
        let prefer = Preference { local: false, zone: Some(("zone".to_owned(), "x".to_owned())) };
        let chosen = destination(&cart(), Some(&part), Own::Instance, &me(), &seen, None, &prefer);
        let hosts = ["b", "d"].map(node).to_vec();
        let expected = Destination::Elsewhere { epoch: Epoch(3), replicated: true, hosts, near: 0, and_here: true };
        assert_eq!(chosen, expected);
    }

    #[test]
    fn an_instance_here_is_preferred_and_one_that_failed_is_no_reason_to_wait() {
        let (part, seen) = (replicated(&["a", "b"]), members(&[("b", true, Some(Instance::Serving))]));
        assert_eq!(go(&part, Own::Instance, &seen, None), Destination::Here);
        assert_eq!(go(&part, Own::Starting, &members(&[]), None), Destination::Starting);
        assert_eq!(go(&part, Own::Failed, &seen, None), to(3, true, &["b"]));
        assert!(matches!(go(&owned_by("a"), Own::Failed, &seen, None), Destination::Nowhere(_)));
        assert!(matches!(go(&owned_by("a"), Own::Held, &seen, None), Destination::Nowhere(_)));
    }
}
