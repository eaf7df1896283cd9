use std::collections::BTreeSet;

use prost_reflect::{
    prost::Message as _,
    prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
        ServiceDescriptorProto,
        field_descriptor_proto::{Label, Type},
    },
};

use super::*;
use crate::{
    id::{RaftId, Timestamp},
    placement::{
        spec::{Kind, StateClass},
        state::{Command, Declared, Outcome, PartChange, Proposal, Refused},
    },
};

fn named(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// Descriptors of `a.S`, with these methods, whose message has a field of this type.
fn descriptors(methods: &[&str], kind: Type) -> Vec<u8> {
    let field = FieldDescriptorProto {
        name: Some("f".to_owned()),
        number: Some(1),
        label: Some(Label::Optional as i32),
        r#type: Some(kind as i32),
        ..FieldDescriptorProto::default()
    };
    let message = DescriptorProto { name: Some("M".to_owned()), field: vec![field], ..DescriptorProto::default() };
    let methods = methods.iter().map(|name| MethodDescriptorProto {
        name: Some((*name).to_owned()),
        input_type: Some(".a.M".to_owned()),
        output_type: Some(".a.M".to_owned()),
        ..MethodDescriptorProto::default()
    });
    let service = ServiceDescriptorProto {
        name: Some("S".to_owned()),
        method: methods.collect(),
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("a.proto".to_owned()),
        package: Some("a".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![message],
        service: vec![service],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// A node's record, with what its module looks like.
fn record(generation: u64, version: &str, descriptors: &[u8]) -> (Node, BTreeMap<String, Interface>) {
    let (digest, interface) = Interface::pack(&BTreeMap::from([("a.S", descriptors)]));
    let declared = Declared {
        kind: Kind::Exclusive,
        state: StateClass::None,
        services: vec!["a.S".to_owned()],
        interface: Some(digest.clone()),
    };
    let record = Node {
        generation,
        marker: String::new(),
        marker_since: 0,
        raft_id: RaftId::from(generation),
        persistent: true,
        lease_ms: 1,
        labels: BTreeMap::new(),
        application: "a".to_owned(),
        version: version.to_owned(),
        version_since: 0,
        modules: BTreeMap::from([(named("m"), declared)]),
        cordoned: false,
        draining: false,
        left: false,
    };
    (record, BTreeMap::from([(digest, interface)]))
}

fn apply(state: &mut State, command: Command) -> Outcome {
    let proposal = Proposal { at: Timestamp(0), by: "test".to_owned(), asked: None, command };
    state.apply(state.index + 1, &proposal)
}

fn register(state: &mut State, name: &str, version: &str, descriptors: &[u8], compared: u64) -> Outcome {
    let generation = state.index + 1;
    let (record, brings) = record(generation, version, descriptors);
    apply(state, Command::Register { node: node(name), record, brings, compared })
}

fn leave(state: &mut State, name: &str) {
    let incarnation = state.incarnation(&node(name)).unwrap();
    apply(state, Command::Leave(incarnation)).unwrap();
}

/// A state in which these nodes have come one after another, each with its version and what its module looks like.
fn state(nodes: &[(&str, &str, &[u8])]) -> State {
    let mut state = State::default();
    for (name, version, descriptors) in nodes {
        let compared = state.index;
        register(&mut state, name, version, descriptors, compared).unwrap();
    }
    state
}

/// The nodes that are not fit, and why, if all but some call.
fn unfit(state: &State, silent: &[&str]) -> Vec<(String, String)> {
    let unfit = Versions::default().unfit(state, |node| !silent.contains(&node.as_str())).into_iter();
    unfit.map(|(node, problems)| (node.to_string(), problems[&named("m")].clone())).collect()
}

#[test]
fn what_is_the_same_or_fits_is_fit() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do", "More"], Type::String));
    assert_eq!(unfit(&state(&[("a", "1.0.0", &one), ("b", "2.0.0", &one)]), &[]), []);
    assert_eq!(unfit(&state(&[("a", "1.0.0", &one), ("b", "2.0.0", &two)]), &[]), [], "a method more does no harm");
}

#[test]
fn who_comes_with_what_does_not_fit_waits_for_those_before_to_go() {
    let (one, two) = (descriptors(&["Do", "More"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "2.0.0", &two)]);
    let found = unfit(&state, &[]);
    let [(at, problem)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(at, "b");
    for part in ["version 2.0.0", "version 1.0.0 on a", "a.M.f: its type was", "1 more"] {
        assert!(problem.contains(part), "no `{part}` in: {problem}");
    }
    assert_eq!(unfit(&state, &["a"]), [], "who calls nobody keeps nobody away");
    leave(&mut state, "a");
    assert_eq!(unfit(&state, &[]), []);
}

#[test]
fn a_node_that_starts_again_with_what_was_there_keeps_its_place_in_the_order() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "1.0.0", &one), ("c", "2.0.0", &two)]);
    let since = |state: &State, name: &str| state.nodes[&node(name)].version_since;
    for name in ["a", "b", "a"] {
        let compared = state.index;
        register(&mut state, name, "1.0.0", &one, compared).unwrap();
        assert!(matches!(&unfit(&state, &[])[..], [(at, _)] if at == "c"));
        assert!(since(&state, name) < since(&state, "c"));
    }
    // Once none of them is there, whoever comes with it comes last.
    leave(&mut state, "a");
    leave(&mut state, "b");
    let compared = state.index;
    register(&mut state, "a", "1.0.0", &one, compared).unwrap();
    assert!(matches!(&unfit(&state, &[])[..], [(at, _)] if at == "a"));
    assert!(since(&state, "a") > since(&state, "c"));
}

#[test]
fn a_way_back_fits_where_the_way_there_did() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do", "More"], Type::String));
    assert_eq!(unfit(&state(&[("a", "v1.10.0", &two), ("b", "v1.9.0", &one)]), &[]), []);
    // Without numbers, what came later is the newer one, and has lost a method.
    let found = unfit(&state(&[("a", "blue", &two), ("b", "green", &one)]), &[]);
    assert!(matches!(&found[..], [(at, problem)] if at == "b" && problem.contains("a.S/More: the method is gone")));
}

#[test]
fn a_node_is_compared_before_it_registers_with_all_that_have_not_left() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let state = state(&[("a", "1.0.0", &one)]);
    let misfit = |name: &str, version: &str, descriptors: &[u8]| {
        let (record, brings) = record(9, version, descriptors);
        Versions::default().misfit(&state, &node(name), &record, &brings)
    };
    assert_eq!(misfit("b", "1.1.0", &one), None);
    let problem = misfit("b", "2.0.0", &two).unwrap();
    assert!(problem.starts_with("m: its version 2.0.0 does not fit with version 1.0.0 on a: "), "{problem}");
    assert_eq!(misfit("a", "2.0.0", &two), None, "it takes the place of the one that it would not fit with");
}

#[test]
fn the_log_takes_no_node_that_has_not_compared_itself_with_all() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one)]);
    let seen = state.index;
    let uncompared = |name: &str, index| Err(Refused::Uncompared { node: node(name), index });
    assert_eq!(register(&mut state, "b", "2.0.0", &two, seen - 1), uncompared("b", 2));
    assert!(!state.nodes.contains_key(&node("b")) && state.interfaces.len() == 1);
    register(&mut state, "b", "2.0.0", &two, seen).unwrap();
    // As it was, it would do.
    assert_eq!(register(&mut state, "c", "1.0.0", &one, seen), uncompared("c", 4));
    let (record, _) = record(9, "1.0.0", &descriptors(&["Other"], Type::String));
    let (brings, compared) = (BTreeMap::new(), state.index);
    let command = Command::Register { node: node("c"), record, brings, compared };
    assert_eq!(apply(&mut state, command), uncompared("c", 5), "what it looks like is not in the state, nor with it");
    // The number decides which of the two is the old one.
    let seen = state.index;
    register(&mut state, "c", "3.0.0", &one, seen).unwrap();
    assert_eq!(register(&mut state, "d", "1.0.0", &one, seen), uncompared("d", 7));
}

#[test]
fn a_node_that_starts_again_with_something_else_hosts_no_replica_of_it_at_once() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "1.0.0", &one)]);
    let change = PartChange::Replicate(BTreeSet::from([node("a"), node("b")]));
    apply(&mut state, Command::Part { module: named("m"), expect: 0, change, why: String::new() }).unwrap();
    let hosts = |state: &State| state.parts[&named("m")].hosts().into_iter().map(NodeId::to_string).collect::<Vec<_>>();
    let again = |state: &mut State, name: &str, descriptors: &[u8]| {
        let compared = state.index;
        register(state, name, "1.1.0", descriptors, compared).unwrap();
    };
    again(&mut state, "b", &one);
    assert_eq!(hosts(&state), ["a", "b"]);
    let epoch = state.parts[&named("m")].epoch;
    again(&mut state, "b", &two);
    assert_eq!(hosts(&state), ["a"]);
    assert!(state.parts[&named("m")].epoch > epoch);
    again(&mut state, "a", &two);
    assert_eq!(hosts(&state), ["a"], "there is no other");
}

#[test]
fn what_no_node_has_any_more_is_forgotten() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "1.0.0", &one), ("c", "2.0.0", &two)]);
    leave(&mut state, "a");
    assert_eq!(state.interfaces.len(), 2);
    apply(&mut state, Command::Forget(node("b"))).unwrap();
    assert_eq!(state.interfaces.len(), 1);
    let compared = state.index;
    register(&mut state, "c", "1.0.0", &one, compared).unwrap();
    assert_eq!(state.interfaces.len(), 1, "it has replaced the other one");
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
}

#[test]
fn what_can_t_be_read_is_told() {
    let whole = FileDescriptorSet::decode(&*descriptors(&["Do"], Type::String)).unwrap();
    let mut lacking = whole.clone();
    lacking.file[0].dependency.push("b.proto".to_owned());
    let read =
        |set: &[u8]| Interface::pack(&BTreeMap::from([("a.S", set)])).1.services().map(|services| services.len());
    assert_eq!(read(&whole.encode_to_vec()).unwrap(), 1);
    let problem = read(&lacking.encode_to_vec()).unwrap_err().to_string();
    assert!(problem.contains("`a.S`") && problem.contains("b.proto"), "{problem}");
    assert!(matches!(read(&[]), Err(Unreadable::Missing(service)) if service == "a.S"));
    assert!(matches!(read(&[0xff]), Err(Unreadable::Damaged { .. })));
    let damaged: Interface = serde_json::from_str("\"AAAA\"").unwrap();
    assert!(matches!(damaged.services(), Err(Unreadable::Packed(_))));
    assert!(serde_json::from_str::<Interface>("\"?\"").is_err());
}
