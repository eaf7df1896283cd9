//! The built tool against a made-up cluster: what it prints, how it waits, and what it exits with.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/tool.rs"]
mod tool;

use std::{fs, process::Stdio};

use fake::{Fake, event, host};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tool::{line_with, outpost, ran};

/// A placement document, which the fake takes for a pin of cart to node-2.
fn document(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("placement.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[tokio::test]
async fn what_operators_changed_is_printed_and_verified() {
    let fake = Fake::start().await;
    let audit = fake.run(&["audit"]).await.ok();
    assert!(audit.contains("node-2 gets nothing new (by ada, from 127.0.0.1:5 at node-1)"), "{audit}");
    let verified = fake.run(&["audit", "verify", "-o", "json"]).await.ok();
    let head = verified.split('"').find(|part| part.len() == 64).unwrap().to_owned();
    fake.run(&["audit", "verify", "--contains", &head]).await.ok();
    let missing = fake.run(&["audit", "verify", "--contains", "00ff"]).await.failed(1);
    assert!(missing.contains("00ff is not part of the chain"), "{missing}");
}

#[tokio::test]
async fn a_cluster_is_shown_in_tables_and_json() {
    let fake = Fake::start().await;
    let status = fake.run(&["status"]).await.ok();
    for line in ["leader        node-1 (term 3)", "modules       3 serving", "nodes         3 ready"] {
        assert!(status.lines().any(|it| it == line), "{line} in\n{status}");
    }
    assert!(fake.run(&["status", "-o", "json"]).await.ok().contains("\"leader\": \"node-1\""));

    let nodes = fake.run(&["nodes"]).await.ok();
    assert!(nodes.contains(" node-1  ready  leader  1.2.3    127.0.0.1:7000  2        zone=a  0\n"), "{nodes}");
    assert!(fake.run(&["nodes", "-o", "wide"]).await.ok().contains("GENERATION"));
    let modules = fake.run(&["modules"]).await.ok();
    assert!(modules.contains("catalog   replicated 1  serving  2      node-1  shop.v1.catalog   -\n"), "{modules}");
    fake.change_module("cart", |cart| cart.state_class = "ephemeral".to_owned());
    assert!(fake.run(&["modules"]).await.ok().contains(" cart      exclusive, ephemeral  serving  2 "));
    assert!(fake.run(&["why", "cart"]).await.ok().starts_with("cart is serving on node-1 (exclusive, ephemeral, "));
    let voters = fake.run(&["voters"]).await.ok();
    assert!(voters.contains(" node-2  follower  2\n"), "{voters}");

    assert_eq!(fake.run(&["where", "cart"]).await.ok(), "node-1\n");
    let why = fake.run(&["why", "cart"]).await.ok();
    assert!(why.contains("node-2  could be  another is its host") && why.contains("(registration)"), "{why}");
    let history = fake.run(&["history"]).await.ok();
    assert!(history.contains(" 4        2023-11-14T22:13:20Z  ada@desk  reason 4\n"), "{history}");
    assert_eq!(fake.run(&["history", "show", "3"]).await.ok(), "# version 3\n");
}

#[tokio::test]
async fn unknown_names_get_a_suggestion() {
    let fake = Fake::start().await;
    for (args, message) in [
        (&["where", "chekout"][..], "there is no module `chekout`; did you mean `checkout`?"),
        (&["why", "chekout"], "did you mean `checkout`?"),
        (&["move", "cart", "--to", "nod-2"], "there is no node `nod-2`; did you mean `node-2`"),
        (&["cordon", "node-9"], "the nodes are:\n  node-1"),
        (&["history", "show", "9"], "there is no version 9"),
    ] {
        let err = fake.run(args).await.failed(2);
        assert!(err.contains(message), "{args:?}: {err}");
    }
    assert_eq!(fake.asked(), Vec::<String>::new(), "nothing was asked for");
}

#[tokio::test]
async fn a_module_without_a_host_says_why() {
    let fake = Fake::start().await;
    fake.change_module("cart", |cart| {
        cart.hosts.clear();
        cart.problems = vec!["no node has zone = b".to_owned()];
    });
    let err = fake.run(&["where", "cart"]).await.failed(1);
    assert!(err.contains("no node has zone = b") && err.contains("outpost why cart"), "{err}");
}

#[tokio::test]
async fn a_plan_tells_by_its_exit_code_whether_it_changes_anything() {
    let fake = Fake::start().await;
    let (_dir, path) = document("pin");
    let plan = fake.run(&["plan", &path]).await;
    assert_eq!((plan.code, plan.err.as_str()), (Some(6), ""));
    assert!(plan.out.contains("  + module.cart.pin = \"node-2\"\n"), "{}", plan.out);
    assert!(plan.out.contains(" cart    node-1  ->  node-2  pinned\n"), "{}", plan.out);
    assert!(plan.out.ends_with("\ncheck index: 4\n"), "{}", plan.out);

    let (_dir, empty) = document("");
    assert_eq!(fake.run(&["plan", &empty]).await.ok(), "placement.toml changes nothing.\n\ncheck index: 4\n");
    let (_dir, wrong) = document("wrong");
    let err = fake.run(&["plan", &wrong]).await.failed(2);
    assert!(err.contains("INVALID_ARGUMENT: placement.toml:1: there is no rule `wrong`"), "{err}");

    let mut child =
        fake.command(&["plan", "-", "--format", "json", "-o", "json"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{}").await.unwrap();
    let plan = ran(child).await;
    assert!(plan.code == Some(6) && plan.out.contains("\"index\": 4"), "{plan:?}");
}

#[tokio::test]
async fn applying_waits_until_all_is_where_it_should_be() {
    let fake = Fake::start().await;
    let (_dir, path) = document("pin");
    let (child, mut stderr) = fake.begin(&["apply", &path, "--why", "for the disk"]);
    // In force, but not begun: that is no end, although all serve.
    while fake.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    fake.change_module("cart", |cart| {
        cart.state = "moving".to_owned();
        cart.moving_to = "node-2".to_owned();
    });
    line_with(&mut stderr, "1 of 3 modules not there yet: cart moving to node-2").await;
    fake.change_module("cart", |cart| {
        (cart.state, cart.moving_to, cart.epoch) = ("serving".to_owned(), String::new(), 3);
        cart.hosts = vec![host("node-2", "serving")];
    });
    let out = ran(child).await;
    assert_eq!(out.code, Some(0));
    assert!(out.out.ends_with("placement.toml is in force, as version 5 of the placement\n"), "{}", out.out);
    assert!(fake.asked()[0].starts_with("apply by ada@") && fake.asked()[0].ends_with(": for the disk"));
}

#[tokio::test]
async fn what_comes_out_otherwise_than_planned_is_said_and_not_waited_for() {
    let fake = Fake::start().await;
    let (_dir, path) = document("pin");
    let ran = fake.run(&["apply", &path]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("otherwise than planned: cart is on node-1, not on node-2"), "{}", ran.out);
    let (_dir, empty) = document("");
    assert_eq!(fake.run(&["apply", &empty]).await.ok(), "placement.toml is in force already\n");
}

#[tokio::test]
async fn a_change_of_what_has_changed_is_refused_with_its_own_code() {
    let fake = Fake::start().await;
    let (_dir, path) = document("pin");
    for args in [
        &["apply", &path, "--check-index", "3"][..],
        &["rollback", "--check-index", "3"],
        &["scale", "catalog", "2", "--check-index", "3"],
        &["move", "cart", "--to", "node-2", "--check-index", "16"],
    ] {
        let err = fake.run(args).await.failed(5);
        assert!(err.contains("ABORTED: ") && err.contains("nothing was done"), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn a_rollback_goes_one_version_back() {
    let fake = Fake::start().await;
    let ran = fake.run(&["rollback", "--no-wait", "--why", "too slow", "--by", "bob"]).await.ok();
    assert!(ran.ends_with("version 3 is in force, as version 5 of the placement\n"), "{ran}");
    assert_eq!(fake.asked(), ["rollback to 3 by bob: too slow"]);
}

#[tokio::test]
async fn scaling_waits_for_the_hosts() {
    let fake = Fake::start().await;
    let (child, mut stderr) = fake.begin(&["scale", "catalog", "2"]);
    line_with(&mut stderr, "catalog degraded").await;
    fake.change_module("catalog", |catalog| {
        catalog.state = "serving".to_owned();
        catalog.hosts.push(host("node-2", "serving"));
    });
    assert_eq!(ran(child).await.out, "catalog runs on 2 nodes\n");
    let err = fake.run(&["scale", "cart", "2"]).await.failed(1);
    assert_eq!(err, "error: FAILED_PRECONDITION: cart is exclusive, and has one host\n");
}

#[tokio::test]
async fn small_changes_say_what_they_did() {
    let fake = Fake::start().await;
    for (args, text) in [
        (
            &["pin", "cart", "--to", "node-2", "--reason", "disk", "--ttl", "2h"][..],
            "cart is pinned to node-2 for 2h\n",
        ),
        (&["unpin", "cart"], "cart is not pinned\n"),
        (&["cordon", "node-1"], "node-1 is cordoned: it gets nothing new, and keeps its 2 modules\n"),
        (&["uncordon", "node-1"], "node-1 is not cordoned any more\n"),
        (&["forget", "node-3"], "node-3 is forgotten\n"),
    ] {
        assert_eq!(fake.run(args).await.ok(), text);
    }
    assert_eq!(fake.asked(), ["pin cart to node-2 for 7200 s: disk"]);
    let voters = fake.run(&["voters", "set", "1"]).await;
    assert!(voters.out.contains("note: one voter: the placement log is on one disk only"), "{voters:?}");
}

#[tokio::test]
async fn events_are_followed() {
    let fake = Fake::start().await;
    let all = fake.run(&["events"]).await.ok();
    assert_eq!(all, "2023-11-14T22:13:20Z      1  placed           cart is on node-1\n");
    assert_eq!(fake.run(&["events", "--since", "1"]).await.ok(), "");

    let mut child = fake.command(&["events", "-f", "-o", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    line_with(&mut lines, "\"text\":\"cart is on node-1\"").await;
    fake.happened(event(2, "placed", "orders", "orders is on node-3"));
    line_with(&mut lines, "\"text\":\"orders is on node-3\"").await;
    drop(lines);
    assert_eq!(ran(child).await.ok(), "", "it ends with its reader");
}

#[tokio::test]
async fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let script = ran(outpost(&["completions", shell]).spawn().unwrap()).await.ok();
        assert!(script.contains("rollback"), "{shell}");
    }
}
