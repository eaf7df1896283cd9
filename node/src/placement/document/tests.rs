use proptest::prelude::*;

use super::*;
use crate::{
    id::{Incarnation, ModuleName, NodeId, Timestamp},
    placement::{
        scheduler::{Facts, Limits, NodeFacts, Standing},
        spec::{Count, Kind, KindName, Pin, Rules, StateClass},
        state::Declared,
    },
};

fn module(name: &str) -> ModuleName {
    ModuleName::parse(name).unwrap()
}

fn read(text: &str) -> Document {
    parse(text, Format::Toml, "placement.toml").unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn told(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

fn faults_of(text: &str, format: Format) -> Vec<String> {
    let name = if format == Format::Toml { "placement.toml" } else { "placement.json" };
    told(&parse(text, format, name).expect_err("it has faults"))
}

const EVERYTHING: &str = r#"
[default]
kind = "replicated"
replicas = 2
[module.checkout]
kind = "exclusive"
require = { zone = "a" }
with = ["cart"]
apart = ["payment"]
pin = { node = "node-2", reason = "local GPU", expires = "2026-12-01T00:00:00Z" }
[module.cart]
replicas = "every"
spread = "zone"
"#;

const EVERYTHING_AS_JSON: &str = r#"{
  "default": { "kind": "replicated", "replicas": 2 },
  "module": {
    "checkout": {
      "kind": "exclusive", "require": { "zone": "a" }, "with": ["cart"], "apart": [ "payment" ],
      "pin": { "node": "node-2", "reason": "local GPU", "expires": "2026-12-01T00:00:00Z" }
    },
    "cart": { "replicas": "every", "spread": "zone" }
  }
}"#;

fn everything() -> Spec {
    let pin = Pin {
        node: NodeId::parse("node-2").unwrap(),
        reason: "local GPU".into(),
        expires: Some(Timestamp(1_796_083_200_000)),
    };
    let checkout = Rules {
        kind: Some(KindName::Exclusive),
        require: Some([("zone".into(), "a".into())].into()),
        with: Some([module("cart")].into()),
        apart: Some([module("payment")].into()),
        pin: Some(pin),
        ..Rules::default()
    };
    let cart = Rules { replicas: Some(Count::Every), spread: Some("zone".into()), ..Rules::default() };
    Spec {
        default: Rules { kind: Some(KindName::Replicated), replicas: Some(Count::Exactly(2)), ..Rules::default() },
        modules: [(module("checkout"), checkout), (module("cart"), cart)].into(),
    }
}

#[test]
fn toml_and_json_say_the_same() {
    assert_eq!(read(EVERYTHING).spec, everything());
    let json = parse(EVERYTHING_AS_JSON, Format::Json, "placement.json").unwrap();
    assert_eq!(json.spec, everything());
    assert_eq!(json.line("module.checkout.pin"), 6);
    assert_eq!(json.line("module.cart.replicas"), 8);
    assert_eq!(read("").spec, Spec::default());
}

#[test]
fn the_time_of_a_pin_needs_no_quotes_in_toml() {
    let document = read("[module.cart]\npin = { node = \"a\", reason = \"r\", expires = 2026-12-01T00:00:00Z }");
    let pin = document.spec.modules[&module("cart")].pin.clone().unwrap();
    assert_eq!(pin.expires, Some(Timestamp(1_796_083_200_000)));
}

#[test]
fn all_faults_are_told_at_once_with_their_lines() {
    let text = r#"
[default]
kind = "sharded"
pin = { node = "a", reason = "r" }
[modul.cart]
[module.Cart]
[module.pricing]
kind = "exclusive"
replicas = 0
replica = 3
require = { zone = 1 }
with = "cart"
apart = ["Payment"]
spread = ""
[module.stock]
kind = "replcated"
replicas = "2"
pin = { nod = "a", expires = "tomorrow" }
"#;
    assert_eq!(
        faults_of(text, Format::Toml),
        [
            "placement.toml:3: default.kind: `sharded` is reserved for a later version; use \"exclusive\" or \"replicated\"",
            "placement.toml:4: default.pin: a default can't bind modules to a node; pin each by its name",
            "placement.toml:5: modul: unknown key; did you mean `module`?",
            "placement.toml:6: module.Cart: `Cart` can't name a module: use 1 to 63 lower-case letters, digits and \
             dashes, beginning with a letter and not ending with a dash",
            "placement.toml:9: module.pricing.replicas: 0 is not a count; use a number from 1 to 1000, or \"every\" for \
             each node",
            "placement.toml:10: module.pricing.replica: unknown key; did you mean `replicas`?",
            "placement.toml:11: module.pricing.require.zone: a number where text belongs; write it in quotes",
            "placement.toml:12: module.pricing.with: text where a list of modules belongs; write [\"cart\"]",
            "placement.toml:13: module.pricing.apart: `Payment` can't name a module: use 1 to 63 lower-case letters, \
             digits and dashes, beginning with a letter and not ending with a dash",
            "placement.toml:14: module.pricing.spread: an empty text; write something, or delete it",
            "placement.toml:16: module.stock.kind: unknown kind `replcated`; did you mean \"replicated\"?",
            "placement.toml:17: module.stock.replicas: \"2\" is not a count; use a number from 1 to 1000, or \"every\" \
             for each node",
            "placement.toml:18: module.stock.pin.expires: `tomorrow` is not a time in UTC; write it as \
             2026-12-01T00:00:00Z",
            "placement.toml:18: module.stock.pin.nod: unknown key; did you mean `node`?",
            "placement.toml:18: module.stock.pin: `node` is missing; name the node that the module is bound to",
            "placement.toml:18: module.stock.pin: `reason` is missing; tell those who come later why it is bound",
        ]
    );
}

#[test]
fn an_exclusive_module_has_no_count() {
    assert_eq!(
        faults_of("[module.cart]\nreplicas = 2\nkind = \"exclusive\"", Format::Toml),
        [
            "placement.toml:2: module.cart.replicas: an exclusive module has one host; delete `replicas`, or let `kind` be \
          \"replicated\""
        ]
    );
}

#[test]
fn what_is_not_toml_or_json_is_told_with_its_line() {
    let faults = faults_of("[default]\nkind = \n[module.cart\n", Format::Toml);
    assert!(faults[0].starts_with("placement.toml:2: "), "{faults:?}");
    assert!(faults[1].starts_with("placement.toml:3: "), "{faults:?}");
    let faults = faults_of("{\n \"default\": {\n  kind: 1 } }", Format::Json);
    assert!(faults[0].starts_with("placement.json:3: not JSON at column 3: "), "{faults:?}");
    assert!(faults_of("", Format::Json)[0].starts_with("placement.json:1: "));
    assert_eq!(faults_of("[]", Format::Json), ["placement.json:1: a list where a table belongs"]);
}

#[test]
fn json_with_a_key_twice_is_refused_at_the_second_one() {
    let text = "{\"module\": {\n\"cart\": {},\n\"cart\": {\"replicas\": 1e3, \"kind\": null}\n}}";
    assert_eq!(
        faults_of(text, Format::Json),
        ["placement.json:3: module.cart: it is there twice; delete one of the two"]
    );
    let text = "{\"module\": {\n\"cart\": {\"replicas\": 1e3,\n\"kind\": null}\n}}";
    assert_eq!(
        faults_of(text, Format::Json),
        [
            "placement.json:2: module.cart.replicas: a number with a fraction is not a count; use a number from 1 to \
             1000, or \"every\" for each node",
            "placement.json:3: module.cart.kind: null where text belongs; write it in quotes",
        ]
    );
}

#[test]
fn size_has_a_bound() {
    let long = format!("# {}", "x".repeat(LARGEST));
    assert_eq!(
        faults_of(&long, Format::Toml),
        ["placement.toml: 262146 bytes are too many; a placement has 262144 at the most"]
    );
    let many: String = (0..=MOST_MODULES).map(|n| format!("[module.m{n}]\n")).collect();
    assert_eq!(
        faults_of(&many, Format::Toml),
        ["placement.toml:1: module: 10001 modules are too many; 10000 are the most"]
    );
    let enough: String = (0..MOST_MODULES).map(|n| format!("[module.m{n}]\n")).collect();
    assert_eq!(read(&enough).spec.modules.len(), MOST_MODULES);
}

#[test]
fn faults_are_no_longer_than_people_read() {
    let long = "x".repeat(10_000);
    let text =
        format!("[module.cart]\nkind = \"{}\"\nreplicas = \"{long}\"\n{long} = 1\n[module.{long}]", &long[..1000]);
    let faults = faults_of(&text, Format::Toml);
    assert_eq!(faults.len(), 4);
    assert!(faults.iter().all(|fault| fault.len() < 400), "{faults:?}");
    let many: String = (0..1000).map(|n| format!("x{n} = 1\n")).collect();
    let faults = faults_of(&many, Format::Toml);
    assert_eq!(faults.len(), 101);
    assert_eq!(faults[100], "placement.toml: there are more faults; these are the first 100");
    let many: String = (0..MOST_MODULES).map(|n| format!("[module.m{n}]\n")).collect();
    assert_eq!(Cluster::new().check(&many).len(), 101);
}

#[test]
fn what_is_nested_deeply_is_refused() {
    let inline = |key: &str, depth: usize| format!("x = {}1{}", format!("{{{key} = ").repeat(depth), "}".repeat(depth));
    for text in [
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
        format!("{}a = 1", "\"a\".".repeat(60_000)),
        format!("[{}'a']", "'a' . ".repeat(40_000)),
        inline("a", 50_000),
        inline(&format!("{}a", "\"a\".".repeat(75)), 75),
        inline(&format!("{}a", "a.".repeat(75)), 75),
        format!("x = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
    ] {
        assert!(parse(&text, Format::Toml, "placement.toml").is_err());
    }
    for text in ["[".repeat(100_000), "{\"a\":".repeat(50_000)] {
        assert!(parse(&text, Format::Json, "placement.json").is_err());
    }
}

#[test]
fn a_spec_is_rendered_in_one_way() {
    let text = r#"[default]
kind = "replicated"
replicas = 2

[module.cart]
replicas = "every"
spread = "zone"

[module.checkout]
kind = "exclusive"
require = { zone = "a" }
with = ["cart"]
apart = ["payment"]
pin = { node = "node-2", reason = "local GPU", expires = "2026-12-01T00:00:00Z" }
"#;
    assert_eq!(render(&everything()), text);
    assert_eq!(render(&Spec::default()), "");
}

#[test]
fn a_difference_is_told_rule_by_rule() {
    let old =
        read("[default]\nspread = \"zone\"\n[module.cart]\nkind = \"exclusive\"\n[module.stock]\nwith = [\"cart\"]");
    let new = read("[module.cart]\nkind = \"replicated\"\nreplicas = 3\n[module.stock]\nwith = [\"cart\"]");
    assert_eq!(
        diff(&old.spec, &new.spec),
        ["- default.spread = zone", "~ module.cart.kind: exclusive -> replicated", "+ module.cart.replicas = 3",]
    );
    assert!(diff(&new.spec, &new.spec).is_empty());
}

/// A cluster of three nodes: node-1 and node-2 in zone a, node-3 in zone b and without the module `gpu`.
struct Cluster {
    nodes: BTreeMap<NodeId, NodeFacts>,
    declared: BTreeMap<ModuleName, Declared>,
}

impl Cluster {
    fn new() -> Self {
        let modules = ["cart", "checkout", "gpu", "ledger", "payment"];
        let node = |name: &str, zone: &str, modules: &[&str]| {
            let facts = NodeFacts {
                generation: 1,
                labels: [("zone".to_owned(), zone.to_owned())].into(),
                cordoned: false,
                standing: Standing::Ready,
                modules: modules.iter().map(|name| module(name)).collect(),
                serves: std::collections::BTreeSet::new(),
                failed: std::collections::BTreeSet::new(),
                unfit: std::collections::BTreeMap::new(),
                newest: true,
            };
            (NodeId::parse(name).unwrap(), facts)
        };
        let nodes = [
            node("node-1", "a", &modules),
            node("node-2", "a", &modules),
            node("node-3", "b", &["cart", "checkout", "ledger", "payment"]),
        ];
        let declared = modules.iter().map(|name| {
            let state = if *name == "ledger" { StateClass::Fixed } else { StateClass::None };
            let declared = Declared { kind: Kind::Exclusive, state, services: Vec::new(), interface: None };
            (module(name), declared)
        });
        Self { nodes: nodes.into(), declared: declared.collect() }
    }

    fn check(&self, text: &str) -> Vec<String> {
        let facts = Facts {
            spec: &Spec::default(),
            now: Timestamp(1_796_083_200_000),
            nodes: self.nodes.clone(),
            declared: self.declared.clone(),
            parts: &BTreeMap::new(),
            ended: std::collections::BTreeSet::<Incarnation>::new(),
            applied_by_all: 0,
            limits: Limits { max_rebalancing: 1, max_moves: 32 },
        };
        told(&check(&read(text), &facts))
    }

    fn standing(mut self, node: &str, standing: Standing) -> Self {
        self.nodes.get_mut(&NodeId::parse(node).unwrap()).unwrap().standing = standing;
        self
    }
}

#[test]
fn a_document_that_fits_has_no_faults() {
    let text = r#"
[default]
require = { zone = "a" }
[module.cart]
kind = "replicated"
replicas = 2
[module.checkout]
with = ["cart"]
apart = ["payment"]
pin = { node = "node-2", reason = "near its disk", expires = "2026-12-02T00:00:00Z" }
[module.payment]
require = {}
"#;
    assert_eq!(Cluster::new().check(text), [""; 0]);
    assert_eq!(
        Cluster::new().check("[module.cart]\nwith = [\"checkout\"]\n[module.checkout]\nwith = [\"cart\"]"),
        [""; 0]
    );
}

#[test]
fn names_that_are_not_there_are_refused_with_those_that_are_meant() {
    let text = r#"
[module.carts]
[module.cart]
with = ["chekout"]
apart = ["x"]
require = { zone = "c", rack = "1" }
pin = { node = "nod-2", reason = "r" }
[module.payment]
kind = "replicated"
spread = "zoen"
"#;
    assert_eq!(
        Cluster::new().check(text),
        [
            "placement.toml:2: module.carts: no program in the cluster has a module `carts`; did you mean `cart`?",
            "placement.toml:4: module.cart.with: no program in the cluster has a module `chekout`; did you mean `checkout`?",
            "placement.toml:5: module.cart.apart: no program in the cluster has a module `x`; there are cart, checkout, \
             gpu, ledger, payment",
            "placement.toml:6: module.cart.require: no node has a label `rack`; there are zone",
            "placement.toml:6: module.cart.require: no node has zone = \"c\"; there are a, b",
            "placement.toml:7: module.cart.pin: there is no node `nod-2`; did you mean `node-2`?",
            "placement.toml:10: module.payment.spread: no node has a label `zoen`; did you mean `zone`?",
        ]
    );
}

#[test]
fn a_module_that_declares_state_is_not_replicated() {
    let text = "[module.ledger]\nkind = \"replicated\"";
    let fault = "placement.toml:2: module.ledger.kind: the module declares state, which a second host would not see; let \
                 `kind` be \"exclusive\"";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[default]\nkind = \"replicated\"";
    let fault = "placement.toml:2: default.kind: module ledger: it declares state, which a second host would not see; \
                 write `kind = \"exclusive\"` in [module.ledger]";
    assert_eq!(Cluster::new().check(text), [fault]);
    assert_eq!(
        Cluster::new().check("[default]\nkind = \"replicated\"\n[module.ledger]\nkind = \"exclusive\""),
        [""; 0]
    );
}

#[test]
fn a_count_of_what_is_exclusive_is_refused() {
    let text = "[module.cart]\nreplicas = 2";
    let fault = "placement.toml:2: module.cart.replicas: the module is exclusive (its registration says so), with one \
                 host; add `kind = \"replicated\"`, or delete `replicas`";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[module.cart]\nspread = \"zone\"";
    let fault = "placement.toml:2: module.cart.spread: the module is exclusive: there is one host, and nothing to spread; \
                 delete `spread`";
    assert_eq!(Cluster::new().check(text), [fault]);
}

#[test]
fn contradictions_are_refused() {
    let text = r#"
[module.cart]
with = ["payment", "cart"]
apart = ["payment", "cart"]
[module.checkout]
kind = "replicated"
pin = { node = "node-1", reason = "r" }
[module.gpu]
require = { zone = "a" }
pin = { node = "node-3", reason = "r", expires = "2026-12-01T00:00:00Z" }
"#;
    assert_eq!(
        Cluster::new().check(text),
        [
            "placement.toml:3: module.cart.with: it names the module itself; delete it there",
            "placement.toml:4: module.cart.apart: it names the module itself; delete it there",
            "placement.toml:4: module.cart.apart: `with` and `apart` both name `payment`; delete it in one of the two",
            "placement.toml:7: module.checkout.pin: it binds the module to the one node node-1, and the module is \
             replicated on every node; let `kind` be \"exclusive\", or choose its hosts with `require`",
            "placement.toml:10: module.gpu.pin: it expired at 2026-12-01T00:00:00Z; delete it, or let it expire later",
            "placement.toml:10: module.gpu.pin: the program of node `node-3` has no module `gpu`; pin it to another",
        ]
    );
}

#[test]
fn pins_that_break_rules_are_refused() {
    let text = r#"
[module.cart]
require = { zone = "a" }
pin = { node = "node-3", reason = "r" }
[module.checkout]
with = ["payment"]
pin = { node = "node-1", reason = "r" }
[module.payment]
apart = ["ledger"]
pin = { node = "node-2", reason = "r" }
[module.ledger]
pin = { node = "node-2", reason = "r" }
"#;
    assert_eq!(
        Cluster::new().check(text),
        [
            "placement.toml:4: module.cart.pin: node `node-3` is not what `require` asks for: its label zone is b, not a; \
             change one of the two",
            "placement.toml:7: module.checkout.pin: it must share its node with payment, which is pinned to node-2; pin \
             both to one node, or change `with`",
            "placement.toml:10: module.payment.pin: it must not share its node with ledger, which is pinned to node-2 as \
             well; pin one of them elsewhere",
        ]
    );
}

#[test]
fn more_hosts_than_there_can_be_are_refused_with_the_reason() {
    let text = "[module.cart]\nkind = \"replicated\"\nreplicas = 3\nrequire = { zone = \"a\" }";
    let fault = "placement.toml:3: module.cart.replicas: 3 hosts are asked for, and 2 nodes can host it (node-3: its label \
                 zone is b, not a); ask for 2 at the most, or add nodes";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[default]\nkind = \"replicated\"\nreplicas = 4\n[module.ledger]\nkind = \"exclusive\"";
    let fault = "placement.toml:3: default.replicas: module cart: 4 hosts are asked for, and 3 nodes can host it (there are \
                 no other nodes); ask for 3 at the most, or add nodes (and 3 other modules)";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[module.cart]\nkind = \"replicated\"\nreplicas = 3";
    let fault = "placement.toml:3: module.cart.replicas: 3 hosts are asked for, and 2 nodes can host it (node-2: it does \
                 not answer); ask for 2 at the most, or add nodes";
    assert_eq!(Cluster::new().standing("node-2", Standing::Silent).check(text), [fault]);
    assert_eq!(Cluster::new().check("[module.cart]\nkind = \"replicated\"\nreplicas = \"every\""), [""; 0]);
}

#[test]
fn what_no_node_can_host_is_refused() {
    let text = "[module.gpu]\nrequire = { zone = \"b\" }";
    let fault = "placement.toml:2: module.gpu.require: no node can host it: node-1: its label zone is a, not b, node-2: \
                 its label zone is a, not b, node-3: its program has no such module; change `require`, or the labels of \
                 a node";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[module.cart]\nrequire = { zone = \"b\" }\nwith = [\"gpu\"]";
    let fault = "placement.toml:3: module.cart.with: no node can host both it and gpu: it can be on node-3, and gpu on \
                 node-1, node-2; change `require` or `pin` of one of them";
    assert_eq!(Cluster::new().check(text), [fault]);
    let text = "[module.cart]\nkind = \"replicated\"\nreplicas = 2\nwith = [\"payment\"]";
    let fault = "placement.toml:4: module.cart.with: each of its 2 hosts must have payment as well, which has 1; ask for \
                 more of payment, or for fewer hosts";
    assert_eq!(Cluster::new().check(text), [fault]);
}

#[test]
fn faults_of_a_spec_without_a_text_have_no_line() {
    let document = Document::of("the placement", read("[module.carts]").spec);
    let cluster = Cluster::new();
    let facts = Facts {
        spec: &Spec::default(),
        now: Timestamp(0),
        nodes: cluster.nodes.clone(),
        declared: cluster.declared.clone(),
        parts: &BTreeMap::new(),
        ended: std::collections::BTreeSet::new(),
        applied_by_all: 0,
        limits: Limits { max_rebalancing: 1, max_moves: 32 },
    };
    let fault = "the placement: module.carts: no program in the cluster has a module `carts`; did you mean `cart`?";
    assert_eq!(told(&check(&document, &facts)), [fault]);
}

prop_compose! {
    fn any_module()(name in "[a-z][a-z0-9-]{0,6}[a-z0-9]") -> ModuleName {
        module(&name)
    }
}

fn text() -> impl Strategy<Value = String> {
    r#"[ -~äß"'\\=.#]{0,8}[!-~ä]"#.prop_map(|text| text)
}

prop_compose! {
    fn pin()(node in "[a-z0-9]{1,5}", reason in text(), expires in proptest::option::of(0_u64..253_402_300_799_999)) -> Pin {
        Pin { node: NodeId::parse(&node).unwrap(), reason, expires: expires.map(Timestamp) }
    }
}

prop_compose! {
    fn rules()(
        kind in proptest::option::of(prop_oneof![Just(KindName::Exclusive), Just(KindName::Replicated)]),
        replicas in proptest::option::of(prop_oneof![Just(Count::Every), (1_u16..=1000).prop_map(Count::Exactly)]),
        require in proptest::option::of(proptest::collection::btree_map(text(), text(), 0..3)),
        spread in proptest::option::of(text()),
        with in proptest::option::of(proptest::collection::btree_set(any_module(), 0..3)),
        apart in proptest::option::of(proptest::collection::btree_set(any_module(), 0..3)),
        pin in proptest::option::of(pin()),
    ) -> Rules {
        let replicas = replicas.filter(|_| kind != Some(KindName::Exclusive));
        Rules { kind, replicas, require, spread, with, apart, pin }
    }
}

prop_compose! {
    fn spec()(default in rules(), modules in proptest::collection::btree_map(any_module(), rules(), 0..4)) -> Spec {
        Spec { default: Rules { pin: None, ..default }, modules }
    }
}

proptest! {
    #[test]
    fn a_rendered_spec_reads_back_as_the_same(spec in spec()) {
        let text = render(&spec);
        let again = parse(&text, Format::Toml, "placement.toml");
        prop_assert_eq!(again.map(|document| document.spec), Ok(spec), "{}", text);
    }

    #[test]
    fn two_specs_differ_where_their_texts_do(old in spec(), new in spec()) {
        prop_assert!(diff(&old, &old).is_empty());
        let sections = |spec: &Spec| spec.modules.keys().cloned().collect::<Vec<_>>();
        if sections(&old) == sections(&new) {
            prop_assert_eq!(diff(&old, &new).is_empty(), render(&old) == render(&new));
        }
    }

    #[test]
    fn no_text_is_too_much(text in ".{0,200}") {
        _ = parse(&text, Format::Toml, "placement.toml");
        _ = parse(&text, Format::Json, "placement.json");
    }

    #[test]
    fn no_broken_document_is_too_much(at in 0_usize..1000, byte in "[\\[\\]{}\"'=.,:\\\\\n0a]", delete in 0_usize..5) {
        for (text, format) in [(EVERYTHING, Format::Toml), (EVERYTHING_AS_JSON, Format::Json)] {
            let at = at % text.len();
            let end = (at + delete).min(text.len());
            let broken = format!("{}{byte}{}", &text[..at], &text[end..]);
            if let Err(faults) = parse(&broken, format, "placement") {
                prop_assert!(faults.iter().all(|fault| fault.line > 0 && fault.line <= broken.lines().count() + 1));
            }
        }
    }
}
