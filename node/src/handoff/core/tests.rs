use super::*;
use crate::{
    id::{NodeId, Timestamp},
    placement::{
        spec::Kind,
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
    /// What each node did, in words.
    done: Vec<String>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { state: State::default(), now: Tick::ZERO, cores: BTreeMap::new(), done: Vec::new() };
        for name in ["a", "b"] {
            let declared = Declared { kind: Kind::Exclusive, stateful: false, services: Vec::new() };
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
                modules: BTreeMap::from([(cart(), declared)]),
                cordoned: false,
                left: false,
            };
            world.log(LogCommand::Register { node: node(name), record });
            world.cores.insert(node(name), Core::new(incarnation(name)));
            world.on(name, Event::Lease { held: true });
        }
        world
    }

    fn log(&mut self, command: LogCommand) {
        let proposal = Proposal { at: Timestamp(0), by: "test".to_owned(), command };
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
                        Command::Start { module, id } => commands.extend(self.on(name, Event::Started { module, id })),
                        Command::Propose { module, expect, change, why } => {
                            let command = LogCommand::Part { module: module.clone(), expect, change, why };
                            let proposal = Proposal { at: Timestamp(0), by: name.to_owned(), command };
                            let _ = self.state.apply(self.state.index + 1, &proposal);
                            commands.extend(self.on(name, Event::Asked { module }));
                        }
                        Command::Open { .. } | Command::Seal { .. } | Command::Retire { .. } => {}
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
        let mut world = Self::new();
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
        Command::Seal { .. } => "seal".to_owned(),
        Command::Retire { .. } => "retire".to_owned(),
        Command::Propose { change, .. } => change.to_string(),
    }
}

fn started(commands: &[Command]) -> (ModuleName, InstanceId) {
    let [Command::Start { module, id }] = commands else { panic!("it starts, and that is all: {commands:?}") };
    (module.clone(), *id)
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
            "a: seal",
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
    assert_eq!(commands, ["seal", "hand over"]);
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
    assert_eq!((change, why.as_str()), (&PartChange::AbortMove, "it did not start: no disk"));

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
    let commands = world.on("b", Event::Started { module, id });
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
    let commands: Vec<String> = world.on("a", Event::Lease { held: false }).iter().map(words).collect();
    assert_eq!(commands, ["seal"]);
    let commands: Vec<String> = world.on("a", Event::Lease { held: true }).iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}

#[test]
fn a_replicated_part_needs_no_lease_and_keeps_its_instance_over_epochs() {
    let mut world = World::new();
    world.change(PartChange::Replicate([node("a")].into()));
    world.settle();
    world.done.clear();
    assert!(world.on("a", Event::Lease { held: false }).is_empty());
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
    let commands: Vec<String> = world.on("a", Event::Started { module, id }).iter().map(words).collect();
    assert_eq!(commands, ["activated"]);
    world.change(PartChange::Activated);
    let commands: Vec<String> = world.look("a").iter().map(words).collect();
    assert_eq!(commands, ["open 1"]);
}
