use super::*;
use crate::{
    id::{NodeId, Timestamp},
    placement::{
        spec::{Kind, StateClass},
        state::{Command as LogCommand, Declared, Node, Proposal},
    },
};

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn incarnation(name: &str) -> Incarnation {
    Incarnation { node: node(name), generation: 1 }
}

fn cart() -> ModuleName {
    ModuleName::parse("cart").unwrap()
}

/// Two nodes that look at one placement, with the driver's part played by the test.
struct World {
    state: State,
    now: Tick,
    cores: BTreeMap<NodeId, Core>,
    /// The target, and its instance, of each move.
    fills: BTreeMap<u64, (NodeId, InstanceId)>,
    /// The module has something to do before it serves.
    hooks: bool,
    /// What each node did, in words.
    done: Vec<String>,
}

impl World {
    fn new() -> Self {
        Self::of(StateClass::None)
    }

    fn of(class: StateClass) -> Self {
        let mut world = Self {
            state: State::default(),
            now: Tick::ZERO,
            cores: BTreeMap::new(),
            fills: BTreeMap::new(),
            hooks: false,
            done: Vec::new(),
        };
        for name in ["a", "b"] {
            let declared = Declared { kind: Kind::Exclusive, state: class, services: Vec::new(), interface: None };
            let record = Node {
                generation: 1,
                marker: name.to_owned(),
                marker_since: 0,
                raft_id: u64::from(name.as_bytes()[0]),
                persistent: true,
                lease_ms: 0,
                labels: BTreeMap::new(),
                application: "shop".to_owned(),
                version: "1".to_owned(),
                version_since: 0,
                modules: BTreeMap::from([(cart(), declared)]),
                cordoned: false,
                draining: false,
                left: false,
            };
            world.log(LogCommand::Register { node: node(name), record, brings: BTreeMap::new(), compared: 0 });
            world.cores.insert(node(name), Core::new(incarnation(name), BTreeMap::from([(cart(), class)]), SEALED_FOR));
            world.on(name, Event::Lease { term: Some(1) });
        }
        world
    }

    fn log(&mut self, command: LogCommand) {
        let proposal = Proposal { at: Timestamp(0), by: "test".to_owned(), asked: None, command };
        self.state.apply(self.state.index + 1, &proposal).unwrap();
    }

    fn change(&mut self, change: PartChange) {
        let expect = self.state.parts.get(&cart()).map_or(0, |part| part.version);
        self.log(LogCommand::Part { module: cart(), expect, change, why: String::new() });
    }

    /// What a node does upon an event.
    fn on(&mut self, name: &str, event: Event) -> Vec<Command> {
        let commands = self.cores.get_mut(&node(name)).unwrap().on_event(self.now, event, &self.state);
        self.done.extend(commands.iter().map(|command| format!("{name}: {}", words(command))));
        commands
    }

    fn look(&mut self, name: &str) -> Vec<Command> {
        self.on(name, Event::Look)
    }

    /// Does all that nodes ask for, until nobody asks for anything.
    fn settle(&mut self) {
        for _ in 0..50 {
            let mut quiet = true;
            for name in ["a", "b"] {
                let mut commands = self.look(name);
                while let Some(command) = commands.pop() {
                    quiet = false;
                    match command {
                        Command::Start { module, id } => {
                            let hooks = self.hooks;
                            commands.extend(self.on(name, Event::Started { module, id, hooks }))
                        }
                        Command::Propose { module, expect, change, why } => {
                            let command = LogCommand::Part { module: module.clone(), expect, change, why };
                            let proposal = Proposal { at: Timestamp(0), by: name.to_owned(), asked: None, command };
                            let _ = self.state.apply(self.state.index + 1, &proposal);
                            commands.extend(self.on(name, Event::Asked { module }));
                        }
                        Command::Fill { module, id, of, ready, .. } => {
                            assert_eq!(ready, !self.hooks);
                            commands.extend(self.on(name, Event::Copied { module: module.clone(), id }));
                            self.fills.insert(of, (node(name), id));
                        }
                        Command::Seal { module, id, of, .. } => {
                            commands.extend(self.on(name, Event::Closed { module: module.clone(), id }));
                            commands.extend(self.on(name, Event::Drained { module: module.clone(), id }));
                            let (target, filled) = self.fills[&of].clone();
                            let event = Event::Filled { module: module.clone(), id: filled, digest: digest(of).digest };
                            assert!(self.on(target.as_str(), event).is_empty());
                            commands.extend(
                                self.on(
                                    name,
                                    Event::Installed { module, id, of, sealed: digest(of), ready: !self.hooks },
                                ),
                            );
                        }
                        Command::Activate { module, id, .. } => {
                            commands.extend(self.on(name, Event::Activated { module, id }));
                        }
                        Command::Open { .. } | Command::Close { .. } | Command::Retire { .. } => {}
                    }
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the nodes do not settle: {:#?}", self.done);
    }

    fn stage(&self, name: &str) -> Option<Stage> {
        self.cores[&node(name)].hosting().get(&cart()).map(|hosted| hosted.state)
    }

    fn owned_by_a() -> Self {
        Self::owned_by_a_of(StateClass::None)
    }

    fn owned_by_a_of(class: StateClass) -> Self {
        let mut world = Self::of(class);
        world.change(PartChange::Assign(incarnation("a")));
        world.settle();
        assert_eq!((world.stage("a"), world.stage("b")), (Some(Stage::Serving), None));
        world.done.clear();
        world
    }
}

fn words(command: &Command) -> String {
    match command {
        Command::Start { .. } => "start".to_owned(),
        Command::Open { epoch, .. } => format!("open {epoch}"),
        Command::Fill { from, .. } => format!("fill from {}", from.node),
        Command::Activate { epoch, restore, .. } => {
            format!("activate {epoch}{}", if *restore { ", restore" } else { "" })
        }
        Command::Close { .. } => "close".to_owned(),
        Command::Seal { .. } => "seal".to_owned(),
        Command::Retire { .. } => "retire".to_owned(),
        Command::Propose { change, .. } => change.to_string(),
    }
}

fn started(commands: &[Command]) -> (ModuleName, InstanceId) {
    let [Command::Start { module, id }] = commands else { panic!("it starts, and that is all: {commands:?}") };
    (module.clone(), *id)
}

/// The state that a part was sealed with, for the move `of`.
const SEALED_FOR: Duration = Duration::from_secs(5);

fn digest(of: u64) -> Sealed {
    Sealed { digest: format!("state of move {of}"), bytes: of }
}

fn to_b() -> PartChange {
    PartChange::BeginMove { to: incarnation("b"), chosen: true }
}

#[test]
fn a_move_makes_before_it_breaks() {
    let mut world = World::owned_by_a();
    world.change(to_b());
    world.settle();
    assert_eq!(
        world.done,
        [
            "b: start",
            "b: prepared",
            // Only now does the source stop to admit, and only until the record is the target's.
            "a: close",
            "a: hand over",
            "a: retire",
            "b: open 2",
            "b: activated",
        ]
    );
    assert_eq!((world.stage("a"), world.stage("b")), (None, Some(Stage::Serving)));
}

#[test]
fn a_move_that_is_given_up_opens_the_source_again() {
    let mut world = World::owned_by_a();
    world.change(to_b());
    world.change(PartChange::Prepared);
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["close", "hand over"]);
    world.change(PartChange::AbortMove);
    let commands: Vec<String> = world.on("a", Event::Asked { module: cart() }).iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}

#[test]
fn a_source_stays_sealed_until_the_record_says_what_became_of_the_move() {
    let mut world = World::owned_by_a();
    world.change(to_b());
    world.change(PartChange::Prepared);
    world.look("a");
    // However long it takes, it does not open by itself; and it asks again only when it was answered.
    for _ in 0..100 {
        world.now += Duration::from_secs(1);
        assert!(world.look("a").is_empty());
        let commands: Vec<String> = world.on("a", Event::Asked { module: cart() }).iter().map(words).collect();
        assert_eq!(commands, ["hand over"]);
    }
}

#[test]
fn a_target_that_fails_ends_the_move() {
    let mut world = World::owned_by_a();
    world.change(to_b());
    let (module, id) = started(&world.look("b"));
    let commands = world.on("b", Event::Failed { module, id, error: "no disk".to_owned() });
    let [Command::Propose { change, why, .. }] = &*commands else { panic!("{commands:?}") };
    assert_eq!((change, why.as_str()), (&PartChange::AbortMove, "it can't be on b: no disk"));

    // The leader hears of it for a while, so that it does not plan the same again at once ...
    world.change(PartChange::AbortMove);
    world.on("b", Event::Asked { module: cart() });
    assert_eq!(world.stage("b"), Some(Stage::Failed));
    // ... but an operator may have mended it.
    world.change(to_b());
    let commands: Vec<String> = world.look("b").iter().map(words).collect();
    assert_eq!(commands, ["retire", "start"]);
}

#[test]
fn an_instance_that_starts_after_it_was_let_go_is_ended() {
    let mut world = World::owned_by_a();
    world.change(to_b());
    let (module, id) = started(&world.look("b"));
    world.change(PartChange::AbortMove);
    assert_eq!(world.look("b").iter().map(words).collect::<Vec<_>>(), ["retire"]);
    let commands = world.on("b", Event::Started { module, id, hooks: false });
    assert!(matches!(&*commands, [Command::Retire { id: ended, .. }] if *ended == id), "{commands:?}");
}

#[test]
fn a_part_that_comes_back_at_a_higher_epoch_gets_a_new_instance() {
    let mut world = World::owned_by_a();
    // While the node did not look, the part was away and came back.
    world.change(PartChange::Assign(incarnation("b")));
    world.change(PartChange::Assign(incarnation("a")));
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["retire", "start"]);
}

#[test]
fn without_a_lease_nobody_enters_an_exclusive_part() {
    let mut world = World::owned_by_a();
    let commands: Vec<String> = world.on("a", Event::Lease { term: None }).iter().map(words).collect();
    assert_eq!(commands, ["close"]);
    let commands: Vec<String> = world.on("a", Event::Lease { term: Some(2) }).iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}

#[test]
fn a_replicated_part_needs_no_lease_and_keeps_its_instance_over_epochs() {
    let mut world = World::new();
    world.change(PartChange::Replicate([node("a")].into()));
    world.settle();
    world.done.clear();
    assert!(world.on("a", Event::Lease { term: None }).is_empty());
    world.change(PartChange::Replicate([node("a"), node("b")].into()));
    world.settle();
    assert_eq!(world.done, ["a: open 2", "b: start", "b: open 2"]);
}

#[test]
fn a_factory_that_failed_is_tried_again_with_longer_and_longer_pauses() {
    let mut world = World::new();
    world.change(PartChange::Assign(incarnation("a")));
    let (module, mut id) = started(&world.look("a"));
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let failed = Event::Failed { module: module.clone(), id, error: "no disk".to_owned() };
        assert!(world.on("a", failed).is_empty());
        let began = world.now;
        id = loop {
            world.now += Duration::from_millis(500);
            if let [Command::Start { id, .. }] = &*world.look("a") {
                break *id;
            }
        };
        pauses.push((world.now - began).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    // The part may have been given away meanwhile: the record must say that it serves before it does.
    let commands: Vec<String> = world.on("a", Event::Started { module, id, hooks: false }).iter().map(words).collect();
    assert_eq!(commands, ["activated"]);
    world.change(PartChange::Activated);
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}

#[test]
fn a_state_is_copied_sealed_and_handed_over_and_kept_until_the_target_serves() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    world.settle();
    let words = [
        "b: start",
        "b: fill from a",
        "b: prepared",
        "a: seal",
        "a: hand over",
        "b: open 2",
        "b: activated",
        "a: retire",
    ];
    assert_eq!(world.done, words);
    assert_eq!((world.stage("a"), world.stage("b")), (None, Some(Stage::Serving)));
}

#[test]
fn a_target_with_something_to_do_first_serves_when_the_record_says_that_it_is_done() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.hooks = true;
    world.change(to_b());
    world.settle();
    // Nobody serves until the record says so: before, the part may be given back.
    let words = [
        "b: start",
        "b: fill from a",
        "b: prepared",
        "a: seal",
        "a: hand over",
        "b: activate 2",
        "b: activated",
        "b: open 2",
        "a: retire",
    ];
    assert_eq!(world.done, words);
}

#[test]
fn an_owner_that_was_active_at_once_and_dies_has_died_like_any_other() {
    let (mut world, of) = sealed();
    world.change(PartChange::Handover { sealed: Some(digest(of)), ready: true, waited_us: 0 });
    assert!(world.look("a").is_empty(), "it keeps the state until b has said that it serves");
    assert_eq!(world.look("b").iter().map(words).collect::<Vec<_>>(), ["open 2", "activated"]);
    world.change(PartChange::Assign(incarnation("a")));
    // What b has done meanwhile is not in it.
    assert_eq!(world.look("a").iter().map(words).collect::<Vec<_>>(), ["retire", "start"]);
}

/// A world in which a has sealed its state, and b has it.
fn sealed() -> (World, u64) {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    let of = world.state.parts[&cart()].moving().unwrap().id;
    let (module, id) = started(&world.look("b"));
    world.on("b", Event::Started { module: module.clone(), id, hooks: false });
    world.on("b", Event::Copied { module: module.clone(), id });
    world.change(PartChange::Prepared);
    let commands = world.look("a");
    let [Command::Seal { id: source, .. }] = &*commands else { panic!("{commands:?}") };
    let source = *source;
    world.on("a", Event::Closed { module: module.clone(), id: source });
    assert!(world.on("a", Event::Drained { module: module.clone(), id: source }).is_empty(), "b has no state yet");
    world.on("b", Event::Filled { module: module.clone(), id, digest: digest(of).digest });
    let commands = world.on("a", Event::Installed { module, id: source, of, sealed: digest(of), ready: false });
    assert!(matches!(&*commands, [Command::Propose { change: PartChange::Handover { .. }, .. }]), "{commands:?}");
    world.done.clear();
    (world, of)
}

/// A world in which a has handed over to b, which has something to do before it opens.
fn handed_over() -> (World, u64) {
    let (mut world, of) = sealed();
    world.change(PartChange::Handover { sealed: Some(digest(of)), ready: false, waited_us: 0 });
    assert!(world.look("a").is_empty(), "it keeps the state");
    (world, of)
}

#[test]
fn a_source_gets_back_what_its_target_did_not_live_to_serve() {
    let (mut world, _) = handed_over();
    world.change(PartChange::Assign(incarnation("a")));
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    // With the instance that it has: nothing is lost.
    assert_eq!(commands, ["activated"]);
    world.change(PartChange::Activated);
    assert_eq!(world.look("a").iter().map(words).collect::<Vec<_>>(), ["open 3"]);
}

#[test]
fn a_source_that_hears_late_of_a_hand_over_has_what_comes_back_with_or_without_a_lease() {
    for term in [Some(1), None] {
        let mut late = World::owned_by_a_of(StateClass::Ephemeral);
        late.change(to_b());
        late.change(PartChange::Prepared);
        let commands = late.look("a");
        let [Command::Seal { module, id, .. }] = &*commands else { panic!("{commands:?}") };
        late.on("a", Event::Drained { module: module.clone(), id: *id });
        let of = late.state.parts[&cart()].moving().unwrap().id;
        late.on("a", Event::Installed { module: module.clone(), id: *id, of, sealed: digest(of), ready: false });
        late.change(PartChange::Handover { sealed: Some(digest(of)), ready: false, waited_us: 0 });
        late.change(PartChange::Assign(incarnation("a")));
        let commands = late.on("a", Event::Lease { term });
        assert!(!commands.iter().any(|command| matches!(command, Command::Retire { .. })), "{commands:?}");
        late.on("a", Event::Lease { term: Some(2) });
        late.on("a", Event::Asked { module: cart() });
        late.change(PartChange::Activated);
        assert_eq!(late.look("a").iter().map(words).collect::<Vec<_>>(), ["open 3"]);
    }
}

#[test]
fn a_target_without_the_state_that_the_record_names_does_not_serve() {
    let (mut world, _) = handed_over();
    world.change(PartChange::Assign(incarnation("b")));
    // The seal went with the assignment to somebody who had not sealed it: what b has is of no use any more.
    let commands: Vec<String> = world.look("b").iter().map(words).collect();
    assert_eq!(commands, ["retire", "start"]);
}

#[test]
fn a_target_that_was_filled_for_another_move_begins_anew() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    let of = world.state.parts[&cart()].moving().unwrap().id;
    let (module, id) = started(&world.look("b"));
    world.on("b", Event::Started { module: module.clone(), id, hooks: false });
    world.on("b", Event::Copied { module: module.clone(), id });
    world.on("b", Event::Filled { module, id, digest: digest(of).digest });
    world.change(PartChange::AbortMove);
    world.change(to_b());
    let commands: Vec<String> = world.look("b").iter().map(words).collect();
    assert_eq!(commands, ["retire", "start"]);
}

#[test]
fn a_source_whose_target_does_not_take_the_state_asks_to_stay_and_opens_when_the_record_says_so() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    world.change(PartChange::Prepared);
    let commands = world.look("a");
    let [Command::Seal { module, id, of, .. }] = &*commands else { panic!("{commands:?}") };
    world.on("a", Event::Closed { module: module.clone(), id: *id });
    world.on("a", Event::Drained { module: module.clone(), id: *id });
    world.now += SEALED_FOR - Duration::from_millis(1);
    assert!(world.look("a").is_empty());
    world.now += Duration::from_millis(1);
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["abort the move"]);
    // The target says now that it has the state; but the move may be given up already, and only one of both is decided.
    assert!(
        world
            .on("a", Event::Installed { module: module.clone(), id: *id, of: *of, sealed: digest(*of), ready: false })
            .is_empty()
    );
    world.change(PartChange::AbortMove);
    let commands: Vec<String> = world.on("a", Event::Asked { module: cart() }).iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}

#[test]
fn a_source_seals_anew_for_a_move_that_comes_right_after_one_that_was_given_up() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    world.change(PartChange::Prepared);
    world.look("a");
    world.change(PartChange::AbortMove);
    world.change(to_b());
    world.change(PartChange::Prepared);
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["open 1", "seal"]);
}

#[test]
fn a_copy_is_of_no_use_to_a_take_over() {
    let mut world = World::owned_by_a_of(StateClass::Ephemeral);
    world.change(to_b());
    let (module, id) = started(&world.look("b"));
    world.on("b", Event::Started { module: module.clone(), id, hooks: false });
    world.on("b", Event::Copied { module, id });
    world.change(PartChange::Assign(incarnation("b")));
    let commands: Vec<String> = world.look("b").iter().map(words).collect();
    assert_eq!(commands, ["retire", "start"]);
}

#[test]
fn a_checkpoint_is_read_where_nobody_has_handed_over_a_state() {
    let mut world = World::of(StateClass::Checkpointed);
    world.change(PartChange::Assign(incarnation("a")));
    world.settle();
    assert_eq!(world.done, ["a: start", "a: activate 1, restore", "a: open 1", "a: activated"]);
    world.done.clear();
    world.change(to_b());
    world.settle();
    assert!(!world.done.iter().any(|done| done.contains("restore")), "{:?}", world.done);
}

#[test]
fn a_lease_of_another_term_opens_gates_anew() {
    let mut world = World::owned_by_a();
    let commands: Vec<String> = world.on("a", Event::Lease { term: Some(2) }).iter().map(words).collect();
    assert_eq!(commands, ["close", "open 1"]);
    assert!(world.on("a", Event::Lease { term: Some(2) }).is_empty());
}

#[test]
fn an_activation_that_fails_is_a_failure_to_start() {
    let mut world = World::new();
    world.change(PartChange::Assign(incarnation("a")));
    let (module, id) = started(&world.look("a"));
    let commands = world.on("a", Event::Started { module: module.clone(), id, hooks: true });
    assert_eq!(commands.iter().map(words).collect::<Vec<_>>(), ["activate 1"]);
    let failed = Event::Failed { module, id, error: "the database does not answer".to_owned() };
    assert_eq!(world.on("a", failed).iter().map(words).collect::<Vec<_>>(), ["retire"]);
    assert_eq!(world.stage("a"), Some(Stage::Failed));
}
