//! The cluster as operators see it: from what a node knows to the wire's types. Pure.

use std::collections::{BTreeMap, BTreeSet};

use outpost_proto::admin::v1::{self as proto, ExplainResponse};

use crate::{
    clock,
    cluster::View,
    id::{ModuleName, NodeId, RaftId},
    membership::{Instance, Lifecycle, Member, Members},
    placement::{
        document,
        log::Leadership,
        scheduler::{self, Explanation, Unmet},
        spec::{Count, Kind},
        state::{Event, Hosting, Node, Part, SpecVersion, State},
        view::{self, Foreseen},
    },
};

/// How many events an explanation has.
const EVENTS: usize = 20;

pub(super) fn cluster(view: &View, state: &State, members: &Members, leadership: &Leadership) -> proto::Cluster {
    let (placement, spec) = state.spec();
    let now = clock::wall();
    let heard = view.heard(state);
    let facts = view::facts(state, spec, members, &heard, &view.versions, now, view.limits);
    let plan = scheduler::plan(&facts);
    let mut problems: BTreeMap<ModuleName, Vec<String>> = BTreeMap::new();
    for unmet in plan.unplaced.into_iter().chain(plan.misplaced) {
        problems.entry(unmet.module).or_default().extend(unmet.reasons);
    }
    let declared = state.declared();
    let modules: BTreeSet<&ModuleName> = declared.keys().copied().chain(state.parts.keys()).collect();
    let modules = modules.into_iter().map(|module| {
        let rules = declared.get(module).map(|declared| spec.effective(module, declared, now));
        let part = state.parts.get(module);
        let hosts = part.map(|part| hosts(module, part, members)).unwrap_or_default();
        let wanted = match rules.as_ref().map(|rules| rules.kind) {
            Some(Kind::Replicated(Count::Exactly(count))) => usize::from(count),
            _ => 0,
        };
        let count = match part.map(|part| &part.hosting) {
            None => None,
            Some(Hosting::Exclusive { .. }) => Some("exclusive"),
            Some(Hosting::Replicated { .. }) => Some("replicated"),
        };
        let kind = rules.as_ref().map_or(count.unwrap_or_default(), |rules| match rules.kind {
            Kind::Exclusive => "exclusive",
            Kind::Replicated(_) => "replicated",
        });
        proto::ClusterModule {
            name: module.to_string(),
            kind: kind.to_owned(),
            replicas: wanted as u32,
            state_class: declared.get(module).map(|declared| declared.state).unwrap_or_default().as_str().to_owned(),
            services: declared.get(module).map(|declared| declared.services.clone()).unwrap_or_default(),
            state: module_state(part, &hosts, wanted, members).to_owned(),
            epoch: part.map_or(0, |part| part.epoch.0),
            index: part.map_or(0, |part| part.version),
            hosts,
            movement: part.and_then(|part| movement(module, part, members)),
            moving_to: part.and_then(Part::moving).map(|moving| moving.to.node.to_string()).unwrap_or_default(),
            pin: rules.and_then(|rules| rules.pin).map(|pin| proto::ModulePin {
                node: pin.node.to_string(),
                reason: pin.reason,
                expires_ms: pin.expires.map_or(0, |expires| expires.0),
            }),
            problems: problems.remove(module).unwrap_or_default(),
        }
    });
    let modules = modules.collect();
    let voters = leadership.voters.iter().map(|(id, node)| voter(*id, node, leadership, members)).collect();
    let votes: BTreeSet<&NodeId> = leadership.voters.values().collect();
    let leader = leadership.leader.as_ref().map(|(_, node)| node.clone());
    // Gossip keeps those that have gone in mind for longer than the log that was told to forget them.
    let there = members.iter().filter(|(_, member)| member.alive && member.lifecycle != Lifecycle::Leaving);
    let names: BTreeSet<&NodeId> = state.nodes.keys().chain(there.map(|(name, _)| name)).collect();
    let nodes = names.into_iter().map(|name| {
        let role = match leader.as_ref() == Some(name) {
            true => "leader",
            false if votes.contains(name) => "voter",
            false => "watcher",
        };
        node(name, state.nodes.get(name), members.get(name), role)
    });
    let mut faults = Vec::new();
    if leader.is_none() {
        faults.push(
            "nobody leads the placement log: nothing can be changed until most of its voters are back".to_owned(),
        );
    }
    let alive = members.iter().filter(|(_, member)| member.alive);
    faults.extend(alive.flat_map(|(name, member)| member.trust.problems(name, now)));
    proto::Cluster {
        id: state.cluster.clone(),
        application: members.get(&view.me).map(|member| member.application.clone()).unwrap_or_default(),
        seen_by: view.me.to_string(),
        leader: leader.as_ref().map(ToString::to_string).unwrap_or_default(),
        term: leadership.term,
        index: state.index,
        placement,
        voters_set: state.voters_set,
        voters,
        nodes: nodes.collect(),
        modules,
        problems: faults,
    }
}

fn voter(raft_id: RaftId, node: &NodeId, leadership: &Leadership, members: &Members) -> proto::Voter {
    let leads = leadership.leader.as_ref().is_some_and(|(leader, _)| *leader == raft_id);
    let alive = members.get(node).is_some_and(|member| member.alive && member.raft_id == raft_id);
    let state = match (leads, alive) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "unreachable",
    };
    proto::Voter { node: node.to_string(), raft_id, state: state.to_owned() }
}

fn node(name: &NodeId, record: Option<&Node>, member: Option<&Member>, role: &str) -> proto::ClusterNode {
    let known = member.filter(|member| record.is_none_or(|record| member.generation >= record.generation));
    let state = match (record, known) {
        (Some(record), _) if record.left => "left",
        (_, Some(member)) if !member.alive => "dead",
        (_, Some(member)) => match member.lifecycle {
            Lifecycle::Joining => "joining",
            Lifecycle::Ready => "ready",
            Lifecycle::Draining => "draining",
            Lifecycle::Leaving => "leaving",
        },
        (_, None) => "dead",
    };
    let of = |get: fn(&Member) -> &String| known.map(get).cloned().unwrap_or_default();
    proto::ClusterNode {
        name: name.to_string(),
        generation: known.map(|member| member.generation).or(record.map(|record| record.generation)).unwrap_or(0),
        state: state.to_owned(),
        cordoned: record.is_some_and(|record| record.cordoned),
        drained: record.is_some_and(|record| record.draining),
        role: role.to_owned(),
        version: known
            .map(|member| member.version.clone())
            .or(record.map(|record| record.version.clone()))
            .unwrap_or_default(),
        ingress: of(|member| &member.ingress),
        tls: known.is_some_and(|member| member.ingress_tls),
        address: known.map(|member| member.address.to_string()).unwrap_or_default(),
        admin: of(|member| &member.admin),
        certificate_expires_ms: known.map_or(0, |member| member.trust.expires.0),
        gossip_keys: known.map(|member| member.trust.keys.clone()).unwrap_or_default(),
        persistent: known.map(|member| member.persistent).or(record.map(|record| record.persistent)).unwrap_or(false),
        labels: record.map(|record| record.labels.clone().into_iter().collect()).unwrap_or_default(),
        modules: match state {
            "dead" | "left" => Vec::new(),
            _ => known.map(|member| member.hosting.keys().map(ToString::to_string).collect()).unwrap_or_default(),
        },
        calls_in_flight: known.map_or(0, |member| member.load.calls_in_flight),
        connections: known.map_or(0, |member| member.load.connections),
    }
}

fn hosts(module: &ModuleName, part: &Part, members: &Members) -> Vec<proto::ModuleHost> {
    let hosts = part.hosts().into_iter().map(|node| {
        let member = members.get(node);
        let hosted = member.filter(|member| member.alive).and_then(|member| member.hosting.get(module));
        let state = match hosted.map(|hosted| hosted.state) {
            Some(Instance::Starting) => "starting",
            Some(Instance::Failed) => "failed",
            Some(Instance::Serving) => "serving",
            Some(Instance::Draining) => "draining",
            // Gossip is late; the record says that it serves.
            Some(Instance::Ready) | None if part.is_settled() && member.is_some_and(|member| member.alive) => "serving",
            Some(Instance::Ready) => "ready",
            None => "unknown",
        };
        let error = hosted.and_then(|hosted| hosted.error.clone()).unwrap_or_default();
        proto::ModuleHost { node: node.to_string(), state: state.to_owned(), error }
    });
    hosts.collect()
}

/// The move of a part that is under way, and how far it is.
fn movement(module: &ModuleName, part: &Part, members: &Members) -> Option<proto::Movement> {
    let hosted = |node: &NodeId| members.get(node).and_then(|member| member.hosting.get(module));
    let Hosting::Exclusive { owner, moving, seal, .. } = &part.hosting else { return None };
    if let Some(moving) = moving {
        let target = hosted(&moving.to.node);
        let sealed = hosted(&owner.node).is_some_and(|hosted| hosted.state == Instance::Draining);
        let phase = match (moving.prepared, target.map(|hosted| hosted.state)) {
            (true, _) if sealed => "sealed",
            (true, _) => "draining",
            (false, Some(Instance::Ready)) => "copying",
            (false, _) => "starting",
        };
        return Some(proto::Movement {
            id: moving.id,
            from: owner.node.to_string(),
            to: moving.to.node.to_string(),
            phase: phase.to_owned(),
            begun_ms: moving.at.0,
            bytes: target.map_or(0, |hosted| hosted.bytes),
            by: moving.by.clone(),
        });
    }
    let seal = seal.as_ref()?;
    Some(proto::Movement {
        id: seal.of,
        from: seal.from.node.to_string(),
        to: owner.node.to_string(),
        phase: "activating".to_owned(),
        bytes: seal.sealed.bytes,
        ..proto::Movement::default()
    })
}

fn module_state(part: Option<&Part>, hosts: &[proto::ModuleHost], wanted: usize, members: &Members) -> &'static str {
    let Some(part) = part else { return "unplaced" };
    match &part.hosting {
        Hosting::Exclusive { moving: Some(_), .. } => "moving",
        Hosting::Exclusive { owner, .. } if members.get(&owner.node).is_none_or(|member| !member.alive) => "degraded",
        Hosting::Exclusive { .. } if part.is_settled() => "serving",
        Hosting::Exclusive { .. } => "starting",
        Hosting::Replicated { hosts: none } if none.is_empty() => "unplaced",
        Hosting::Replicated { .. } => {
            let serving = hosts.iter().filter(|host| host.state == "serving").count();
            match serving {
                0 => "starting",
                serving if serving < hosts.len().max(wanted) => "degraded",
                _ => "serving",
            }
        }
    }
}

pub(super) fn explanation(
    module: &ModuleName,
    explained: Explanation,
    cluster: proto::Cluster,
    state: &State,
) -> ExplainResponse {
    let found = cluster.modules.into_iter().find(|known| known.name == module.as_str());
    let about = state.events.iter().filter(|event| event.module.as_ref() == Some(module));
    let mut events: Vec<proto::Event> = about.rev().take(EVENTS).map(event).collect();
    events.reverse();
    let verdicts = explained.nodes.into_iter().map(|verdict| proto::NodeVerdict {
        node: verdict.node.to_string(),
        host: verdict.host,
        eligible: verdict.eligible,
        reason: verdict.reason,
    });
    let module = found.map(|found| proto::ClusterModule { problems: explained.problems, ..found });
    ExplainResponse { module, rules: explained.rules, nodes: verdicts.collect(), events }
}

pub(super) fn event(event: &Event) -> proto::Event {
    proto::Event {
        index: event.index,
        at_ms: event.at.0,
        kind: event.kind.clone(),
        module: event.module.as_ref().map(ToString::to_string).unwrap_or_default(),
        node: event.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        by: event.by.clone(),
        text: event.text.clone(),
    }
}

pub(super) fn version(known: &SpecVersion) -> proto::PlacementVersion {
    proto::PlacementVersion {
        version: known.version,
        at_ms: known.at.0,
        by: known.by.clone(),
        why: known.why.clone(),
        document: document::render(&known.spec),
    }
}

pub(super) fn foreseen(foreseen: Foreseen) -> proto::PlannedChange {
    let names = |nodes: Vec<NodeId>| nodes.iter().map(ToString::to_string).collect();
    proto::PlannedChange {
        module: foreseen.module.to_string(),
        from: names(foreseen.from),
        to: names(foreseen.to),
        reason: foreseen.reason,
    }
}

pub(super) fn unmet(unmet: Unmet) -> proto::Unplaced {
    proto::Unplaced { module: unmet.module.to_string(), reasons: unmet.reasons }
}
