//! The built tool against a made-up cluster: how it begins, follows and gives up moves, and drains nodes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/tool.rs"]
mod tool;

use fake::{Fake, begin_move, end_move, event, host};
use outpost_proto::admin::v1::Event;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tool::{line_with, ran, send};

const MIB: u64 = 1024 * 1024;

impl Fake {
    /// Somebody else begins to move cart to node-2, as move 101.
    fn others_move_cart(&self) {
        self.change(|cluster| begin_move(cluster, "cart", "node-2", "bob@desk"));
        let begun = event(101, "move-begun", "cart", "cart moves from node-1 to node-2");
        self.happened(Event { node: "node-2".to_owned(), ..begun });
    }

    /// Move 101 of cart to node-2 is decided, with 64 MiB of state.
    fn hand_cart_over(&self) {
        self.happened(event(
            1601,
            "moved",
            "cart",
            "cart is node-2's from now on, at epoch 3, with 64.0 MiB of state; calls wait for 12.3ms so far",
        ));
        self.change_module("cart", |cart| {
            (cart.state, cart.moving_to, cart.epoch) = ("starting".to_owned(), String::new(), 3);
            cart.hosts = vec![host("node-2", "starting")];
            let movement = cart.movement.as_mut().unwrap();
            (movement.phase, movement.bytes) = ("activating".to_owned(), 64 * MIB);
            (movement.begun_ms, movement.by) = (0, String::new());
        });
    }

    fn cart_serves_on_node_2(&self) {
        self.happened(event(1635, "activated", "cart", "node-2 serves cart"));
        self.change_module("cart", |cart| {
            end_move(cart);
            cart.epoch = 3;
            cart.hosts = vec![host("node-2", "serving")];
        });
    }

    fn cart_stays(&self) {
        self.happened(event(102, "move-aborted", "cart", "cart stays on node-1: not to node-2: no database"));
        self.change_module("cart", end_move);
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn a_move_shows_its_phases_and_its_end() {
    let fake = Fake::start().await;
    let (child, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2", "--wait", "--by", "bob"]);
    line_with(&mut stderr, " ms  begun, as move 101").await;
    line_with(&mut stderr, "  starting on node-2").await;
    fake.phase("cart", "copying", 123 * MIB / 10);
    line_with(&mut stderr, "  copying 12.3 MiB").await;
    fake.phase("cart", "draining", 60 * MIB);
    line_with(&mut stderr, "  draining on node-1").await;
    fake.phase("cart", "sealed", 64 * MIB);
    line_with(&mut stderr, "  sealed: callers wait; 64.0 MiB of state").await;
    fake.hand_cart_over();
    line_with(&mut stderr, "  activating on node-2 (epoch 3)").await;
    fake.cart_serves_on_node_2();
    let out = ran(child).await;
    assert_eq!(out.code, Some(0), "{out:?}");
    assert!(out.out.starts_with("cart moved from node-1 to node-2 in "), "{out:?}");
    let end = ", 64.0 MiB of state, callers waited 12.3ms for the handover (epoch 3)\n";
    assert!(out.out.ends_with(end), "{out:?}");
    assert_eq!(fake.asked(), ["move cart to node-2 by bob, lose_state false"]);

    let again = fake.run(&["move", "cart", "--to", "node-2"]).await.ok();
    assert_eq!(again, "cart is on node-2 already (epoch 3)\n");
    let begun = fake.run(&["move", "checkout", "--to", "node-2", "--no-wait", "-o", "json"]).await.ok();
    let begun = parsed(&begun);
    assert_eq!((&begun["outcome"], &begun["changed"]), (&json!("under-way"), &json!(true)), "{begun}");
}

#[tokio::test]
async fn a_move_without_state_ends_when_the_target_serves() {
    let fake = Fake::start().await;
    let (child, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2"]);
    line_with(&mut stderr, "  starting on node-2").await;
    fake.happened(event(102, "moved", "cart", "cart is node-2's from now on, at epoch 3"));
    fake.change_module("cart", |cart| {
        end_move(cart);
        (cart.state, cart.epoch) = ("starting".to_owned(), 3);
        cart.hosts = vec![host("node-2", "ready")];
    });
    line_with(&mut stderr, "  activating on node-2 (epoch 3)").await;
    fake.cart_serves_on_node_2();
    let out = ran(child).await;
    assert!(out.code == Some(0) && !out.out.contains("of state") && !out.out.contains("waited"), "{out:?}");
}

#[tokio::test]
async fn the_same_command_follows_the_move_again() {
    let fake = Fake::start().await;
    let (mut first, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2"]);
    line_with(&mut stderr, "  starting on node-2").await;
    send("-INT", &first).await;
    let error = line_with(&mut stderr, "error: ").await;
    assert_eq!(
        error,
        "error: not waited for the move of cart to node-2; it goes on: `outpost move cart --id 101` follows it again, \
         and `outpost move cart --abort` gives it up"
    );
    assert_eq!(first.wait().await.unwrap().code(), Some(130));

    fake.happened(event(101, "move-begun", "cart", "cart moves from node-1 to node-2"));
    fake.phase("cart", "copying", MIB);
    let (child, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2", "-o", "json"]);
    line_with(&mut stderr, "  move 101 is under way since 2023-11-14T22:13:20Z (by ada@").await;
    line_with(&mut stderr, "  copying 1.0 MiB").await;
    fake.hand_cart_over();
    line_with(&mut stderr, "  activating on node-2 (epoch 3)").await;
    fake.cart_serves_on_node_2();
    let out = ran(child).await;
    let moved = parsed(&out.out);
    for (key, value) in [
        ("changed", json!(false)),
        ("outcome", json!("moved")),
        ("id", json!(101)),
        ("from", json!("node-1")),
        ("to", json!("node-2")),
        ("epoch", json!(3)),
        // Of a move that this command did not begin, the events tell.
        ("elapsed_ms", json!(1534)),
        ("bytes", json!(64 * MIB)),
        ("waited", json!("12.3ms")),
    ] {
        assert_eq!(moved[key], value, "{key} in {moved}");
    }
    assert_eq!(fake.asked().len(), 1, "it was begun once");
}

#[tokio::test]
async fn what_is_under_way_is_followed_without_knowing_where_it_goes() {
    let fake = Fake::start().await;
    let none = fake.run(&["move", "cart", "--wait"]).await.failed(1);
    assert!(none.contains("no move of cart is under way: it is on node-1 (epoch 2); begin one with"), "{none}");
    fake.others_move_cart();
    let (child, mut stderr) = fake.begin(&["move", "cart", "--wait"]);
    line_with(&mut stderr, "  move 101 is under way since 2023-11-14T22:13:20Z (by bob@desk)").await;
    fake.hand_cart_over();
    fake.cart_serves_on_node_2();
    let out = ran(child).await.out;
    assert!(out.starts_with("cart moved from node-1 to node-2 in 1534 ms, 64.0 MiB of state, "), "{out}");
}

#[tokio::test]
async fn one_id_is_followed_and_no_other() {
    let fake = Fake::start().await;
    let unknown = fake.run(&["move", "cart", "--id", "90"]).await.failed(1);
    assert!(unknown.contains("no move 90 of cart is under way, and no event is kept that tells of one"), "{unknown}");
    fake.others_move_cart();
    let other = fake.run(&["move", "cart", "--id", "90"]).await.failed(1);
    assert!(other.contains("move 90 of cart is not under way, but another one: 101 from node-1 to node-2"), "{other}");
    assert!(other.contains("`outpost move cart --wait` follows that"), "{other}");
    let here = parsed(&fake.run(&["move", "cart", "--id", "101", "--no-wait", "-o", "json"]).await.ok());
    assert_eq!((&here["outcome"], &here["index"]), (&json!("under-way"), &json!(101)), "{here}");
    // It ends while nobody looks; the events tell how.
    fake.hand_cart_over();
    fake.cart_serves_on_node_2();
    let ended = fake.run(&["move", "cart", "--id", "101"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("cart moved to node-2 in 1534 ms, 64.0 MiB of state"), "{ended:?}");
}

#[tokio::test]
async fn a_move_that_ends_otherwise_says_why() {
    let fake = Fake::start().await;
    let (mut child, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2"]);
    line_with(&mut stderr, "  starting on node-2").await;
    fake.cart_stays();
    let error = line_with(&mut stderr, "error: ").await;
    assert_eq!(
        error,
        "error: cart was not moved to node-2: the move was given up: cart stays on node-1: not to node-2: no database"
    );
    assert_eq!(child.wait().await.unwrap().code(), Some(1));

    let (child, mut stderr) = fake.begin(&["move", "checkout", "--to", "node-2", "-o", "json"]);
    line_with(&mut stderr, "  starting on node-2").await;
    let taken = event(104, "assigned", "checkout", "checkout is for node-3 to serve: node-1 serves no more");
    fake.happened(taken);
    fake.change_module("checkout", |checkout| {
        end_move(checkout);
        checkout.epoch = 3;
        checkout.hosts = vec![host("node-3", "starting")];
    });
    line_with(&mut stderr, "error: checkout was not moved to node-2: the module was taken over: ").await;
    let out = ran(child).await;
    assert_eq!(out.code, Some(1));
    let told = parsed(&out.out);
    assert_eq!(told["outcome"], "taken-over", "{told}");
    assert_eq!(told["reason"], "checkout is for node-3 to serve: node-1 serves no more", "{told}");
}

#[tokio::test]
async fn a_move_to_elsewhere_is_in_the_way() {
    let fake = Fake::start().await;
    fake.others_move_cart();
    let error = fake.run(&["move", "cart", "--to", "node-3"]).await.failed(1);
    for text in [
        "FAILED_PRECONDITION: it is on its way to node-2 already",
        "move 101 from node-1 to node-2, since 2023-11-14T22:13:20Z (by bob@desk): starting on node-2",
        "`outpost move cart --wait` follows it, and `outpost move cart --abort` gives it up",
    ] {
        assert!(error.contains(text), "{text} in {error}");
    }
}

#[tokio::test]
async fn a_wait_outlives_the_connection() {
    let fake = Fake::start().await;
    let (child, mut stderr) = fake.begin(&["move", "cart", "--to", "node-2"]);
    line_with(&mut stderr, "  starting on node-2").await;
    fake.hang_up();
    fake.cart_serves_on_node_2();
    let ran = ran(child).await;
    // No event of the handover was kept; but it is there.
    assert!(ran.code == Some(0) && ran.out.ends_with("(epoch 3)\n"), "{ran:?}");
}

#[tokio::test]
async fn a_wait_has_a_limit_and_the_change_goes_on() {
    let fake = Fake::start().await;
    let err = fake.run(&["move", "cart", "--to", "node-2", "--timeout", "200ms"]).await.failed(3);
    assert!(err.contains("error: the move of cart to node-2 did not end within 200ms: "), "{err}");
    assert!(err.contains("; it goes on: `outpost move cart --id 101` follows it again"), "{err}");
}

#[tokio::test]
async fn a_move_is_given_up() {
    let fake = Fake::start().await;
    let none = fake.run(&["move", "cart", "--abort"]).await.failed(1);
    assert!(none.contains("no move of it is under way\n  `outpost moves` lists what is under way"), "{none}");
    fake.others_move_cart();
    let other = fake.run(&["move", "cart", "--abort", "--id", "90"]).await.failed(1);
    assert!(other.contains("the move that is under way is 101"), "{other}");
    let args = ["move", "cart", "--abort", "--id", "101", "--by", "ada", "--why", "too slow"];
    assert_eq!(fake.run(&args).await.ok(), "cart stays on node-1: its move 101 to node-2 is given up\n");
    assert_eq!(fake.asked(), ["abort cart by ada: too slow"]);

    fake.change(|cluster| begin_move(cluster, "cart", "node-2", "bob"));
    let json = parsed(&fake.run(&["move", "cart", "--abort", "-o", "json"]).await.ok());
    assert_eq!((&json["outcome"], &json["move"]["to"]), (&json!("aborted"), &json!("node-2")), "{json}");

    fake.change(|cluster| begin_move(cluster, "cart", "node-2", "bob"));
    fake.hand_cart_over();
    let late = fake.run(&["move", "cart", "--abort"]).await.failed(1);
    assert!(late.contains("can't be given up any more: node-2 is the owner since epoch 3"), "{late}");
    assert!(late.contains("`outpost move cart --to node-1`"), "{late}");
}

#[tokio::test]
async fn moves_lists_what_is_under_way() {
    let fake = Fake::start().await;
    assert_eq!(fake.run(&["moves"]).await.ok(), "no move is under way\n");
    assert_eq!(fake.run(&["moves", "-o", "json"]).await.ok(), "[]\n");
    let mut child = fake.command(&["moves", "--watch", "-o", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    line_with(&mut lines, "[]").await;
    fake.others_move_cart();
    line_with(&mut lines, "\"phase\":\"starting\"").await;
    fake.phase("cart", "copying", 123 * MIB / 10);
    let line = line_with(&mut lines, "\"phase\":\"copying\"").await;
    assert!(line.contains("\"module\":\"cart\"") && line.contains("\"id\":101"), "{line}");
    let table = fake.run(&["moves"]).await.ok();
    let row = " cart    101  node-1  node-2  copying  2023-11-14T22:13:20Z  12.3 MiB  bob@desk";
    assert_eq!(table.lines().nth(1), Some(row), "{table}");
    let why = fake.run(&["why", "cart"]).await.ok();
    assert!(
        why.contains("\nmove:\n  101 from node-1 to node-2, since ") && why.contains(": copying 12.3 MiB\n"),
        "{why}"
    );
    fake.change_module("cart", end_move);
    line_with(&mut lines, "[]").await;
    drop(lines);
    assert_eq!(ran(child).await.ok(), "", "it ends with its reader");
}

#[tokio::test]
async fn a_drain_waits_until_nothing_that_can_leave_is_there() {
    let fake = Fake::start().await;
    fake.change_module("checkout", |it| it.state_class = "fixed".to_owned());
    let (child, mut stderr) = fake.begin(&["drain", "node-1", "--wait", "--why", "a new disk", "--by", "bob"]);
    let line = line_with(&mut stderr, "still there: ").await;
    assert!(line.ends_with("cart (serving), catalog (serving), its vote"), "{line}");
    let status = fake.run(&["status"]).await.ok();
    assert!(status.contains(" node-1  ready, drained  leader "), "{status}");
    assert!(fake.run(&["nodes"]).await.ok().contains(" node-1  ready, drained  leader "));

    fake.change(|cluster| {
        begin_move(cluster, "cart", "node-2", "node-1");
        cluster.voters.remove(0);
        let catalog = cluster.modules.iter_mut().find(|module| module.name == "catalog").unwrap();
        catalog.hosts = vec![host("node-3", "serving")];
    });
    line_with(&mut stderr, "still there: cart (starting to node-2)").await;
    fake.hand_cart_over();
    line_with(&mut stderr, "still there: cart (activating to node-2)").await;
    fake.change(|cluster| cluster.nodes[0].modules = vec!["checkout".to_owned()]);
    fake.cart_serves_on_node_2();
    let out = ran(child).await;
    assert_eq!(out.code, Some(0), "{out:?}");
    assert_eq!(
        out.out,
        "node-1 is drained, but for what can't leave it\n  checkout stays: its state can't travel; without it, it goes \
         by `outpost move checkout --to NODE --lose-state`\n"
    );
    assert_eq!(fake.asked(), ["drain node-1 by bob: a new disk"]);

    let json = parsed(&fake.run(&["drain", "node-1", "-o", "json"]).await.out);
    assert_eq!((&json["changed"], &json["done"]), (&json!(false), &json!(true)), "{json}");
    assert_eq!((&json["left"][0]["module"], &json["left"][0]["fixed"]), (&json!("checkout"), &json!(true)), "{json}");
    let ended = fake.run(&["uncordon", "node-1"]).await.ok();
    assert_eq!(ended, "node-1 is not drained any more, and may get modules again\n");
    assert!(fake.run(&["nodes"]).await.ok().contains(" node-1  ready  leader "));
}

#[tokio::test]
async fn a_drain_that_is_late_says_what_is_left_and_why() {
    let fake = Fake::start().await;
    fake.change_module("cart", |cart| {
        cart.problems = vec!["it is on node-1, but it is draining".to_owned(), "node-2: it is cordoned".to_owned()];
    });
    fake.change_module("checkout", |it| it.state_class = "fixed".to_owned());
    let late = fake.run(&["drain", "node-1", "--deadline", "200ms", "-o", "json"]).await;
    assert_eq!(late.code, Some(3), "{late:?}");
    for text in [
        "error: the drain of node-1 did not end within 200ms: on node-1 there is still\n",
        "\n  cart (serving): it is on node-1, but it is draining; node-2: it is cordoned\n",
        "\n  checkout (serving): its state can't travel; ",
        "\n  its vote: it is one of 3 voters (leader)\n",
        "\nit goes on: `outpost drain node-1` waits again, and `outpost uncordon node-1` ends it\n",
    ] {
        assert!(late.err.contains(text), "{text} in {}", late.err);
    }
    let told = parsed(&late.out);
    assert_eq!((&told["done"], &told["votes"]), (&json!(false), &json!(true)), "{told}");
    assert_eq!(told["left"][0]["module"], "cart", "{told}");
}

#[tokio::test]
async fn a_drain_goes_on_without_the_tool_and_ends_by_uncordon() {
    let fake = Fake::start().await;
    let begun = fake.run(&["drain", "node-1", "--no-wait"]).await.ok();
    assert_eq!(begun, "node-1 is to give away 3 modules and its vote\n");
    let (mut child, mut stderr) = fake.begin(&["drain", "node-1"]);
    line_with(&mut stderr, "  node-1 is drained already, and what is left is waited for").await;
    line_with(&mut stderr, "still there: ").await;
    send("-INT", &child).await;
    line_with(&mut stderr, "error: not waited for the drain of node-1; it goes on: `outpost drain node-1` waits").await;
    assert_eq!(child.wait().await.unwrap().code(), Some(130));

    let (child, mut stderr) = fake.begin(&["drain", "node-1"]);
    line_with(&mut stderr, "still there: ").await;
    assert!(fake.run(&["uncordon", "node-1"]).await.ok().starts_with("node-1 is not drained any more"));
    line_with(&mut stderr, "error: node-1 was not drained: it is not drained any more: somebody has uncordoned").await;
    assert_eq!(ran(child).await.code, Some(1));
    let unknown = fake.run(&["drain", "node-9"]).await.failed(2);
    assert!(unknown.contains("there is no node `node-9`"), "{unknown}");
}

#[tokio::test]
async fn the_phases_of_a_move_are_events_with_their_causes() {
    let fake = Fake::start().await;
    let mut child = fake.command(&["events", "-f", "--since", "100"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (index, kind, text) in [
        (101, "move-begun", "cart moves from node-1 to node-2: the sale"),
        (102, "move-prepared", "cart is ready on node-2"),
        (103, "moved", "cart is node-2's from now on, at epoch 3, with 1.0 MiB of state; calls wait for 2ms so far"),
        (104, "activated", "node-2 serves cart"),
        (105, "move-aborted", "cart stays on node-2: not to node-3: the module failed to start there lately"),
        (106, "assigned", "cart is for node-3 to serve: node-2 serves no more"),
    ] {
        let by = if kind == "move-begun" { "ada@desk" } else { "node-2" }.to_owned();
        let event = Event { by: by.clone(), ..event(index, kind, "cart", text) };
        fake.happened(event);
        let line = line_with(&mut lines, text).await;
        assert_eq!(line, format!("2023-11-14T22:13:20Z {index:>6}  {kind:15}  {text} (by {by})"));
    }
    drop(lines);
    assert_eq!(ran(child).await.ok(), "");
}
