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
    id::RaftId,
    placement::{
        spec::{Kind, StateClass},
        state::Declared,
    },
};

type Descriptors = BTreeMap<String, Vec<u8>>;

fn named(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// Descriptors of `a.S`, with these methods, whose message has a field of this type.
fn descriptors(methods: &[&str], kind: Type) -> Descriptors {
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
    BTreeMap::from([("a.S".to_owned(), FileDescriptorSet { file: vec![file] }.encode_to_vec())])
}

/// A state in which these nodes have come one after another, each with its version and what its module looks like.
fn state(nodes: &[(&str, &str, &Descriptors)]) -> State {
    let mut state = State::default();
    for (index, (name, version, descriptors)) in nodes.iter().enumerate() {
        let declared = Declared {
            kind: Kind::Exclusive,
            state: StateClass::None,
            services: vec!["a.S".to_owned()],
            interface: Some(interface(descriptors)),
        };
        let generation = u64::try_from(index).unwrap() + 1;
        let record = Node {
            generation,
            marker: String::new(),
            marker_since: 0,
            raft_id: RaftId::from(generation),
            persistent: true,
            lease_ms: 1,
            labels: BTreeMap::new(),
            application: "a".to_owned(),
            version: (*version).to_owned(),
            modules: BTreeMap::from([(named("m"), declared)]),
            cordoned: false,
            draining: false,
            left: false,
        };
        state.nodes.insert(node(name), record);
    }
    state
}

/// The nodes that are not fit, and why, once all is known.
fn unfit(state: &State, all: &[&Descriptors]) -> Vec<(String, String)> {
    let versions = Versions::default();
    for descriptors in all {
        versions.learn(&interface(descriptors), descriptors).unwrap();
    }
    let unfit = versions.unfit(state, &BTreeSet::new()).into_iter();
    unfit.map(|(node, problems)| (node.to_string(), problems[&named("m")].clone())).collect()
}

#[test]
fn while_all_are_the_same_nothing_is_asked_for() {
    let one = descriptors(&["Do"], Type::String);
    let state = state(&[("a", "1.0.0", &one), ("b", "2.0.0", &one)]);
    let versions = Versions::default();
    assert_eq!(versions.wanted(&state), []);
    assert_eq!(versions.unfit(&state, &BTreeSet::new()), Unfit::new());
}

#[test]
fn what_differs_is_asked_for_and_forgotten_with_the_last_node() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do", "More"], Type::String));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "2.0.0", &two), ("c", "2.0.0", &two)]);
    let versions = Versions::default();
    let wanted = versions.wanted(&state);
    assert_eq!(wanted.len(), 2);
    let second = wanted.iter().find(|wanted| wanted.interface == interface(&two)).unwrap();
    assert_eq!((&second.services, &second.nodes), (&vec!["a.S".to_owned()], &BTreeSet::from([node("b"), node("c")])));
    assert!(matches!(versions.learn(&interface(&one), &two), Err(Unusable::Others)));
    for known in [&one, &two] {
        versions.learn(&interface(known), known).unwrap();
    }
    assert_eq!(versions.wanted(&state), []);
    assert_eq!(versions.unfit(&state, &BTreeSet::new()), Unfit::new(), "a method more does no harm");
    state.nodes.get_mut(&node("a")).unwrap().left = true;
    assert_eq!(versions.wanted(&state), []);
    assert_eq!(versions.known().services.len(), 1);
}

#[test]
fn who_comes_with_what_does_not_fit_waits_for_those_before_to_go() {
    let (one, two) = (descriptors(&["Do", "More"], Type::String), descriptors(&["Do"], Type::Bytes));
    let mut state = state(&[("a", "1.0.0", &one), ("b", "2.0.0", &two)]);
    let found = unfit(&state, &[&one, &two]);
    let [(at, problem)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(at, "b");
    for part in ["version 2.0.0", "version 1.0.0 on a", "a.M.f: its type was", "1 more"] {
        assert!(problem.contains(part), "no `{part}` in: {problem}");
    }
    let gone = BTreeSet::from([Incarnation { node: node("a"), generation: 1 }]);
    let versions = Versions::default();
    for known in [&one, &two] {
        versions.learn(&interface(known), known).unwrap();
    }
    assert_eq!(versions.unfit(&state, &gone), Unfit::new(), "a node whose lease has ended calls nobody");
    state.nodes.get_mut(&node("a")).unwrap().left = true;
    assert_eq!(unfit(&state, &[&one, &two]), []);
}

#[test]
fn a_way_back_fits_where_the_way_there_did() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do", "More"], Type::String));
    assert_eq!(unfit(&state(&[("a", "v1.10.0", &two), ("b", "v1.9.0", &one)]), &[&one, &two]), []);
    // Without numbers, what came later is the newer one, and has lost a method.
    let found = unfit(&state(&[("a", "blue", &two), ("b", "green", &one)]), &[&one, &two]);
    assert!(matches!(&found[..], [(at, problem)] if at == "b" && problem.contains("a.S/More: the method is gone")));
}

#[test]
fn a_node_that_was_not_asked_yet_is_not_fit_and_one_that_can_t_be_asked_keeps_nobody_away() {
    let (one, two) = (descriptors(&["Do"], Type::String), descriptors(&["Do"], Type::Bytes));
    let state = state(&[("a", "1.0.0", &one), ("b", "2.0.0", &two)]);
    let found = unfit(&state, &[&one]);
    assert!(matches!(&found[..], [(at, problem)] if at == "b" && problem.contains("not asked yet")), "{found:?}");
    assert_eq!(unfit(&state, &[&two]), []);
}

#[test]
fn damaged_descriptors_are_refused() {
    let versions = Versions::default();
    for damaged in [BTreeMap::from([("a.S".to_owned(), vec![0xff])]), BTreeMap::from([("a.S".to_owned(), Vec::new())])]
    {
        let error = versions.learn(&interface(&damaged), &damaged).unwrap_err();
        assert!(matches!(error, Unusable::Damaged(_)), "{error}");
    }
}
