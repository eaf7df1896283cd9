//! What becomes of calls to a module with state when it moves, when nodes of the move end, stop, or can't hear each other.
//!
//! Clients at every node write down each call. Whatever happens: what was acknowledged is there (but for what the class of
//! the state says of crashes), nothing is there twice, nothing that was said not to have run, there is one owner at a time,
//! and registers are linearizable. `faults.sh` runs the longer ones, which are ignored here, and prints their figures.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "the helpers are tests too, and say how long things took")]

use std::{net::IpAddr, time::Duration};

use outpost_proto::admin::v1::{AbortMoveRequest, Cluster, MoveRequest};
use outpost_tests::{
    database::Database,
    history::{Callers, Figures, History, Losses, Outcome},
    network::{self, Network},
    processes::{Fleet, START, module, owner},
    store::v1::{AppendRequest, FillRequest, FollowRequest, ListRequest, ListResponse, store_client::StoreClient},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, transport::Channel};

const PROGRAM: &str = env!("CARGO_BIN_EXE_store");
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const ELECTION: Duration = Duration::from_secs(10);
/// The tests are as long as it is. By default it is 8 s.
const LEASE: Duration = Duration::from_secs(2);
const SHORT_LEASE: &str = "cluster.lease=2s";
/// How much longer than a lease it may take until others serve what a lost node hosted.
const TAKE_OVER: Duration = Duration::from_secs(6);
/// Of a call: longer than anything that calls wait for.
const LIMIT: Duration = Duration::from_secs(15);
/// Modules go where the tests have them go.
const STAY: &str = "cluster.max_rebalancing=0";

/// What becomes of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It travels.
    Whole,
    /// It travels, most of it before callers have to wait.
    PreCopied,
    /// It is written now and then.
    Checkpointed,
    /// All that is acknowledged is in a database.
    Durable,
}

impl Class {
    /// In a crash of the owner.
    fn losses(self) -> Losses {
        match self {
            Self::Whole | Self::PreCopied => Losses::WholeEpochs,
            Self::Checkpointed => Losses::EndsOfEpochs,
            Self::Durable => Losses::None,
        }
    }
}

/// Three nodes that serve a store.
#[derive(Debug)]
struct Scene {
    fleet: Fleet,
    class: Class,
    database: Option<Database>,
}

impl Scene {
    async fn start(class: Class, settings: &[&str]) -> Self {
        Self::of(Fleet::of(PROGRAM, 3, &[settings, &[STAY]].concat()), class, [127, 0, 0, 1].into()).await
    }

    /// The nodes of the fleet run, with their database at this address.
    async fn of(mut fleet: Fleet, class: Class, here: IpAddr) -> Self {
        let mut database = None;
        let told = match class {
            Class::Whole => "whole".to_owned(),
            Class::PreCopied => "precopied".to_owned(),
            Class::Checkpointed => "checkpointed".to_owned(),
            Class::Durable => database.insert(Database::at(here).await).address().to_string(),
        };
        let checkpoints = format!("checkpoints.url=file://{}/checkpoints", fleet.folder().display());
        for index in 0..fleet.nodes().len() {
            let node = fleet.node_mut(index);
            node.wrapper.extend(["env".to_owned(), format!("STORE={told}")]);
            node.settings.push(checkpoints.clone());
        }
        fleet.start_all().await;
        Self { fleet, class, database }
    }

    fn client(&self, at: usize) -> StoreClient<Channel> {
        StoreClient::new(self.fleet.node(at).channel()).max_decoding_message_size(usize::MAX)
    }

    /// Its state is as large as this, beside what clients do.
    async fn fill(&self, bytes: u64) {
        self.client(0).fill(FillRequest { bytes }).await.unwrap();
    }

    /// Two clients at each node.
    fn callers(&self) -> Callers {
        self.callers_of("")
    }

    /// The same, with entries and registers of their own.
    fn callers_of(&self, name: &str) -> Callers {
        let mut callers = Callers::new(name, LIMIT);
        for node in self.fleet.nodes() {
            for which in ["a", "b"] {
                callers.add(&format!("{} {which}", node.name), node.channel());
            }
        }
        callers
    }

    async fn list(&self, at: usize) -> ListResponse {
        timeout(LIMIT, self.client(at).list(ListRequest {})).await.unwrap().unwrap().into_inner()
    }

    /// The leader, and two others: the first of them has the store.
    async fn roles(&self) -> Roles {
        let view = self.fleet.settled(0, 3, START).await;
        let leader = self.fleet.index(&view.leader);
        let (source, target) = ((leader + 1) % 3, (leader + 2) % 3);
        if owner(&view, "store") != Some(&self.fleet.node(source).name) {
            self.fleet.move_module(leader, "store", source).await;
        }
        Roles { leader, source, target }
    }

    /// Waits until a node sees the store served by a node that this holds for, and no move under way.
    async fn home(&self, at: usize, limit: Duration, by: impl Fn(&str) -> bool) -> (usize, Cluster) {
        let settled = |view: &Cluster| {
            let owner = owner(view, "store").filter(|owner| by(owner));
            owner.is_some() && module(view, "store").is_some_and(|module| module.movement.is_none())
        };
        let view = self.fleet.until(at, "the store to be served, and no move", limit, settled).await;
        (self.fleet.index(owner(&view, "store").unwrap()), view)
    }

    /// What holds whatever has happened.
    async fn check(&self, history: &History, losses: Losses) -> Figures {
        let list = self.list(0).await;
        let figures = history.kept(&list, losses).unwrap_or_else(|wrong| panic!("{wrong}"));
        history.one_owner_at_a_time().unwrap_or_else(|wrong| panic!("{wrong}"));
        if losses == Losses::None {
            let registers = history.registers_are_right().unwrap_or_else(|wrong| panic!("{wrong}"));
            println!("{:?}: {registers} registers are linearizable", self.class);
        }
        println!("{:?}: {figures}; {:?}", self.class, history.reasons());
        self.fleet.one_leader_a_term();
        figures
    }
}

#[derive(Debug, Clone, Copy)]
struct Roles {
    leader: usize,
    source: usize,
    target: usize,
}

// Moves

#[tokio::test]
async fn moves_back_and_forth_cost_no_call() {
    for class in [Class::PreCopied, Class::Checkpointed] {
        back_and_forth(class, 10).await;
    }
}

async fn back_and_forth(class: Class, moves: usize) {
    let scene = Scene::start(class, &[]).await;
    scene.fill(MIB).await;
    let Roles { leader, source, target } = scene.roles().await;
    let callers = scene.callers();
    callers.more(100, LIMIT).await;
    let mut moved = Vec::new();
    for round in 0..moves {
        moved.push(Instant::now());
        scene.fleet.move_module(leader, "store", [target, source][round % 2]).await;
        callers.more(20, LIMIT).await;
    }
    let history = callers.finish().await;
    println!("{class:?}: {moves} moves: {}", history.stalls(&moved, SECOND / 2));
    assert_eq!(history.failures(), [""; 0]);
    scene.check(&history, Losses::None).await;
}

// Nodes that end amid a move

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Target,
    Leader,
}

const VICTIMS: [Victim; 3] = [Victim::Source, Victim::Target, Victim::Leader];

#[tokio::test]
async fn whoever_dies_amid_a_move_a_durable_state_loses_nothing() {
    let scene = Scene::start(Class::Durable, &[SHORT_LEASE]).await;
    deaths_amid_moves(scene, LEASE, &VICTIMS, &[30, 120]).await;
}

#[tokio::test]
async fn whoever_dies_amid_a_move_a_state_that_travels_is_there_as_a_whole_or_not_at_all() {
    let scene = Scene::start(Class::PreCopied, &[SHORT_LEASE]).await;
    deaths_amid_moves(scene, LEASE, &VICTIMS, &[60]).await;
}

/// So many milliseconds after each move has begun.
async fn deaths_amid_moves(mut scene: Scene, lease: Duration, victims: &[Victim], delays: &[u64]) {
    let callers = scene.callers();
    let (mut died, mut again, mut moved, mut losses) = (Vec::new(), Vec::new(), 0, Losses::None);
    for (victim, delay) in victims.iter().flat_map(|victim| delays.iter().map(move |delay| (*victim, *delay))) {
        let Roles { leader, source, target } = scene.roles().await;
        scene.fill(8 * MIB).await;
        callers.more(50, LIMIT).await;
        let dies = match victim {
            Victim::Source => source,
            Victim::Target => target,
            Victim::Leader => leader,
        };
        scene.fleet.begin_move(leader, "store", target).await.unwrap();
        sleep(Duration::from_millis(delay)).await;
        scene.fleet.kill(dies).await;
        let killed = Instant::now();
        died.push(killed);
        let at = if dies == leader { source } else { leader };
        let name = scene.fleet.node(dies).name.clone();
        let (home, _) = scene.home(at, lease + TAKE_OVER + ELECTION, |owner| owner != name).await;
        callers.more(50, LIMIT).await;
        again.push(killed.elapsed());
        moved += usize::from(home == target);
        println!("{victim:?} {delay} ms after the move began: with {home}, served after {:?}", killed.elapsed());
        if victim == Victim::Source {
            losses = scene.class.losses();
        }
        scene.fleet.start(dies);
        scene.fleet.settled(at, 3, START).await;
    }
    let history = callers.finish().await;
    println!("{moved} of {} moves came to their end; {}", died.len(), history.stalls(&died, SECOND));
    scene.check(&history, losses).await;
    let limit = lease + TAKE_OVER + ELECTION;
    assert!(again.iter().all(|after| *after < limit), "{again:?}");
}

// Operators who want different things

#[tokio::test]
async fn of_an_abort_and_a_hand_over_and_of_two_moves_one_wins() {
    let scene = Scene::start(Class::Whole, &[]).await;
    let Roles { leader, source, target } = scene.roles().await;
    scene.fill(8 * MIB).await;
    let callers = scene.callers();
    let (mut aborted, mut ended) = (0, 0);
    for delay in [0, 10, 25, 50, 100, 200, 400, 1000] {
        let begun = scene.fleet.begin_move(leader, "store", target).await.unwrap();
        sleep(Duration::from_millis(delay)).await;
        let abort = AbortMoveRequest { module: "store".into(), move_id: begun.index, ..AbortMoveRequest::default() };
        let given_up = scene.fleet.admin(source).abort_move(abort).await;
        let (home, _) = scene.home(leader, START, |_| true).await;
        match given_up {
            Ok(_) => {
                assert_eq!(home, source, "{delay} ms: it was given up");
                aborted += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                assert_eq!(home, target, "{delay} ms: it could not be given up: {status:?}");
                ended += 1;
                scene.fleet.move_module(leader, "store", source).await;
            }
        }
    }
    println!("{aborted} moves were given up, {ended} were not");
    assert!(aborted > 0 && ended > 0);

    for round in 0..6 {
        let (home, view) = scene.home(leader, START, |_| true).await;
        let index = module(&view, "store").unwrap().index;
        let others: Vec<usize> = (0..3).filter(|other| *other != home).collect();
        let ask = |to: usize| {
            let mut admin = scene.fleet.admin(to);
            let node = scene.fleet.node(to).name.clone();
            let request =
                MoveRequest { module: "store".into(), node, check_index: Some(index), ..MoveRequest::default() };
            async move { admin.r#move(request).await }
        };
        let told = tokio::join!(ask(others[0]), ask(others[1]));
        let wins = match told {
            (Ok(_), Err(status)) => (others[0], status),
            (Err(status), Ok(_)) => (others[1], status),
            both => panic!("round {round}: one of two is accepted, not {both:?}"),
        };
        assert!(matches!(wins.1.code(), Code::FailedPrecondition | Code::Aborted), "{:?}", wins.1);
        let name = scene.fleet.node(wins.0).name.clone();
        scene.home(leader, START, |owner| owner == name).await;
    }
    let history = callers.finish().await;
    assert_eq!(history.failures(), [""; 0]);
    scene.check(&history, Losses::None).await;
}

// Calls that are long

#[tokio::test]
async fn a_call_that_is_too_long_says_so_and_a_stream_goes_on_without_a_gap() {
    let scene = Scene::start(Class::PreCopied, &["cluster.seal_timeout=500ms", "cluster.stream_grace=200ms"]).await;
    scene.fill(MIB).await;
    let Roles { leader, source, target } = scene.roles().await;
    let callers = scene.callers();
    let mut followers = JoinSet::new();
    let (told, until) = tokio::sync::watch::channel(u64::MAX);
    for at in 0..3 {
        followers.spawn(follow(scene.client(at), until.clone()));
    }
    for round in 0..4 {
        let mut long = JoinSet::new();
        for at in 0..3 {
            let mut client = scene.client(at);
            let request = AppendRequest { id: format!("long {round} {at}"), take_ms: 20_000 };
            long.spawn(async move { client.append(request).await });
        }
        let end = Instant::now() + LIMIT;
        while scene.list(leader).await.ids.iter().filter(|id| id.starts_with(&format!("long {round}"))).count() < 3 {
            assert!(Instant::now() < end, "the calls did not begin");
        }
        let began = Instant::now();
        scene.fleet.move_module(leader, "store", [target, source][round % 2]).await;
        assert!(began.elapsed() < Duration::from_secs(10), "it waited {:?} for calls", began.elapsed());
        while let Some(ended) = timeout(LIMIT, long.join_next()).await.unwrap() {
            let status = ended.unwrap().unwrap_err();
            let told = |key: &str| status.metadata().get(key).unwrap().to_str().unwrap().to_owned();
            assert_eq!(
                (told("outpost-outcome"), told("outpost-reason")),
                ("unknown".into(), "moved".into()),
                "{status:?}"
            );
        }
    }
    let history = callers.finish().await;
    assert_eq!(history.failures(), [""; 0]);
    scene.check(&history, Losses::None).await;
    let list = scene.list(0).await;
    assert_eq!(list.ids.iter().filter(|id| id.starts_with("long")).count(), 12, "they had run");
    told.send(list.ids.len() as u64).unwrap();
    while let Some(ended) = timeout(LIMIT, followers.join_next()).await.unwrap() {
        let (followed, resumed) = ended.unwrap();
        assert_eq!(followed, list.ids);
        assert!(resumed >= 4, "the stream was not cut: {resumed}");
    }
}

/// Follows the list up to an entry that is told, over all the ends of its stream, and gives it, and how many ends.
async fn follow(
    mut client: StoreClient<Channel>,
    mut until: tokio::sync::watch::Receiver<u64>,
) -> (Vec<String>, usize) {
    let (mut followed, mut resumed) = (Vec::new(), 0);
    while (followed.len() as u64) < *until.borrow_and_update() {
        let after = followed.len() as u64;
        let mut entries = client.follow(FollowRequest { after }).await.unwrap().into_inner();
        loop {
            let entry = tokio::select! {
                entry = entries.message() => entry,
                _ = until.changed() => break,
            };
            match entry {
                Ok(Some(entry)) => {
                    followed.push(entry.id);
                    assert_eq!(entry.number, followed.len() as u64, "a gap");
                    if entry.number >= *until.borrow() {
                        return (followed, resumed);
                    }
                }
                Ok(None) => panic!("the stream has an end of its own"),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    assert!(status.metadata().contains_key("outpost-outcome"), "{status:?}");
                    resumed += 1;
                    break;
                }
            }
        }
    }
    (followed, resumed)
}

// Owners that end

#[tokio::test]
async fn an_owner_that_dies_loses_what_came_after_the_last_checkpoint() {
    let scene = Scene::start(Class::Checkpointed, &[SHORT_LEASE]).await;
    deaths(scene, LEASE, 3).await;
}

async fn deaths(mut scene: Scene, lease: Duration, kills: usize) {
    scene.fill(MIB).await;
    let (mut again, mut all) = (Vec::new(), Vec::new());
    for round in 0..kills {
        let Roles { leader, source, target } = scene.roles().await;
        // It may be the leader as well, at times: then one has to be elected before.
        let (dies, limit) = if round % 3 == 2 { (leader, lease + ELECTION) } else { (source, lease + TAKE_OVER) };
        if dies == leader {
            scene.fleet.move_module(source, "store", leader).await;
        }
        let callers = scene.callers_of(&format!("round {round}, "));
        callers.more(200, LIMIT).await;
        // What is in no checkpoint is a little of it, as it is checkpointed all the time.
        sleep(SECOND).await;
        let name = scene.fleet.node(dies).name.clone();
        scene.fleet.kill(dies).await;
        let killed = Instant::now();
        scene.home(target, limit, |owner| owner != name).await;
        callers.more(100, LIMIT).await;
        scene.fleet.start(dies);
        scene.fleet.settled(target, 3, START).await;
        let history = callers.finish().await;
        let after = history.served_again(killed).expect("somebody serves");
        assert!(after < limit, "served after {after:?}");
        println!("the owner died{}: served again after {after:?}", if dies == leader { ", and led" } else { "" });
        again.push(after);
        let list = scene.list(target).await;
        for lost in history.lost(&list).iter().filter(|_| scene.class == Class::Checkpointed) {
            // Every 200 ms, and it takes as long as the machine takes.
            assert!(lost.ended + SECOND * 2 > killed, "it was lost, of before: {}", history.tell(lost));
        }
        println!("{}", history.stalls(&[killed], SECOND));
        all.push(scene.check(&history, scene.class.losses()).await);
    }
    again.sort_unstable();
    println!(
        "{:?}: {kills} deaths: served again after p50 {:?}, at most {:?}",
        scene.class,
        again[kills / 2],
        again.last()
    );
}

// Owners that pause

#[tokio::test]
async fn an_owner_that_wakes_too_late_acknowledges_nothing() {
    frozen(&[SHORT_LEASE], LEASE).await;
}

async fn frozen(settings: &[&str], lease: Duration) {
    let scene = Scene::start(Class::Durable, settings).await;
    let Roles { leader, source, .. } = scene.roles().await;
    let name = scene.fleet.node(source).name.clone();
    let mut callers = scene.callers();
    for number in 0..20 {
        callers.add(&format!("{name} direct {number}"), scene.fleet.node(source).channel());
    }
    callers.more(500, LIMIT).await;
    let (_, before) = scene.home(leader, START, |_| true).await;
    scene.fleet.freeze(source);
    sleep(lease / 4).await;
    scene.fleet.thaw(source);
    callers.more(500, LIMIT).await;
    let (home, view) = scene.home(leader, START, |_| true).await;
    let epoch = |view: &Cluster| module(view, "store").unwrap().epoch;
    assert_eq!((home, epoch(&view)), (source, epoch(&before)), "a short pause costs no ownership");

    // They are inside when it freezes, and end when it wakes.
    let mut inside = JoinSet::new();
    for at in 0..3 {
        let mut client = scene.client(at);
        let request = AppendRequest { id: format!("inside {at}"), take_ms: 1500 };
        inside.spawn(async move { client.append(request).await });
    }
    let end = Instant::now() + LIMIT;
    while scene.list(leader).await.ids.iter().filter(|id| id.starts_with("inside")).count() < 3 {
        assert!(Instant::now() < end, "the calls did not begin");
    }
    scene.fleet.freeze(source);
    let froze = Instant::now();
    let (_, after) = scene.home(leader, lease + TAKE_OVER + ELECTION, |owner| owner != name).await;
    println!("taken over after {:?}", froze.elapsed());
    assert!(froze.elapsed() >= lease * 5 / 8, "before the lease could end");
    callers.more(200, LIMIT).await;
    scene.fleet.thaw(source);
    let woke = Instant::now();
    scene.fleet.settled(leader, 3, START).await;
    callers.more(500, LIMIT).await;
    let history = callers.finish().await;
    while let Some(ended) = timeout(LIMIT, inside.join_next()).await.unwrap() {
        let status = ended.unwrap().unwrap_err();
        println!("a call that was inside: {status}");
        assert_eq!(status.metadata().get("outpost-outcome").unwrap(), "unknown", "{status:?}");
    }
    let late = history
        .calls()
        .iter()
        .filter(|call| call.ended > woke && call.served().is_some_and(|served| served.epoch < epoch(&after)));
    let late: Vec<String> = late.map(|call| history.tell(call)).collect();
    assert_eq!(late, [""; 0], "acknowledged by an owner that was replaced");
    let bitten = history.calls().iter().filter(|call| {
        call.ended > woke && matches!(&call.outcome, Outcome::Unknown(why) if why.starts_with("lease-lost") || why.starts_with("fenced"))
    });
    println!("{} calls were not acknowledged, as the lease was lost", bitten.count() + 3);
    println!("writes that the database refused: {:?}", scene.database.as_ref().map(Database::refused));
    println!("served after {:?}; {}", history.served_again(froze), history.stalls(&[froze], SECOND));
    scene.check(&history, Losses::None).await;
}

// The same at length: `faults.sh` runs these

mod long {
    use outpost_tests::tally::Tally;

    use super::*;

    /// By default.
    const LEASE: Duration = Duration::from_secs(8);
    /// As many as `MOVES` says, or a thousand; with a thousand calls for each.
    fn moves() -> usize {
        std::env::var("MOVES").map_or(1_000, |moves| moves.parse().expect("MOVES is a number"))
    }

    const CALLS_PER_MOVE: u64 = 1_000;
    /// Until memory is what it will be: what is remembered of events and of the log has its bound then.
    const WARM_UP: usize = 300;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "takes many minutes"]
    async fn a_thousand_moves_under_a_million_calls_lose_none() {
        let scene = Scene::start(Class::PreCopied, &[]).await;
        scene.fill(MIB).await;
        let Roles { leader, source, target } = scene.roles().await;
        let channels = (0..24).map(|number| scene.fleet.node(number % 3).channel()).collect();
        let tally = Tally::start(channels, LIMIT);
        let memory = || -> Vec<u64> { scene.fleet.nodes().iter().map(|node| node.memory() >> 10).collect() };
        let (moves, mut spans, mut before) = (WARM_UP + moves(), Vec::new(), Vec::new());
        for round in 0..moves {
            if round == WARM_UP {
                before = memory();
            }
            let began = Instant::now();
            scene.fleet.move_module(leader, "store", [target, source][round % 2]).await;
            spans.push((began, Instant::now()));
            tally.reach(round as u64 * CALLS_PER_MOVE).await;
            if round % 100 == 99 {
                println!("{} moves: {}; memory {:?} KiB", round + 1, tally.counts, memory());
            }
        }
        tally.reach(moves as u64 * CALLS_PER_MOVE).await;
        let after = memory();
        let counts = tally.finish().await;
        let stalls = counts.longest_in(&spans);
        let mut took: Vec<Duration> = spans.iter().map(|(began, ended)| *ended - *began).collect();
        took.sort_unstable();
        let at = |all: &[Duration], percent: usize| all[(all.len() - 1) * percent / 100];
        println!("{moves} moves: {counts}");
        println!(
            "longest call about a move: p50 {:?}, p99 {:?}, at most {:?}",
            at(&stalls, 50),
            at(&stalls, 99),
            at(&stalls, 100)
        );
        println!("a move: p50 {:?}, p99 {:?}, at most {:?}", at(&took, 50), at(&took, 99), at(&took, 100));
        println!("memory in KiB: {before:?} before, {after:?} after");
        assert_eq!(counts.failures(), [""; 0]);
        assert_eq!((counts.lost(), counts.twice()), (0, 0));
        for (before, after) in before.iter().zip(&after) {
            assert!(after * 10 <= before * 11, "memory has grown from {before} to {after} KiB");
        }
    }

    #[tokio::test]
    #[ignore = "takes many minutes"]
    async fn fifty_owners_die() {
        deaths(Scene::start(Class::Durable, &[]).await, LEASE, 25).await;
        deaths(Scene::start(Class::Checkpointed, &[]).await, LEASE, 25).await;
    }

    #[tokio::test]
    #[ignore = "takes many minutes"]
    async fn whoever_dies_at_whatever_step_of_a_move() {
        let delays = [0, 5, 10, 20, 30, 45, 60, 80, 100, 130, 170, 250];
        for class in [Class::Durable, Class::PreCopied] {
            for victim in VICTIMS {
                deaths_amid_moves(Scene::start(class, &[SHORT_LEASE]).await, super::LEASE, &[victim], &delays).await;
            }
        }
    }

    /// Owners must not lose their leases over it, if an election is quick enough.
    #[tokio::test]
    #[ignore = "takes many minutes"]
    async fn leaders_die_with_the_default_lease() {
        let delays = [0, 30, 60, 100, 150, 200];
        deaths_amid_moves(Scene::start(Class::Durable, &[]).await, LEASE, &[Victim::Leader], &delays).await;
    }

    #[tokio::test]
    #[ignore = "takes many minutes"]
    async fn an_owner_that_wakes_too_late_with_the_default_lease() {
        for _ in 0..5 {
            frozen(&[], LEASE).await;
        }
    }
}

// Networks that fail

#[tokio::test]
async fn an_owner_that_is_cut_off_serves_no_more_and_a_move_that_cant_end_is_given_up() {
    network::inside("networks::an_owner_that_is_cut_off_serves_no_more_and_a_move_that_cant_end_is_given_up").await;
}

/// Run in a network of their own, by those above.
mod networks {
    use super::*;

    #[tokio::test]
    #[ignore = "needs the network that the test of the same name makes"]
    async fn an_owner_that_is_cut_off_serves_no_more_and_a_move_that_cant_end_is_given_up() {
        let network = Network::of_this_process();
        let fleet = network.fleet(PROGRAM, &[SHORT_LEASE, STAY, "cluster.move_timeout=5s"]);
        let scene = Scene::of(fleet, Class::Durable, [10, 77, 0, 254].into()).await;
        let Roles { leader, source, target } = scene.roles().await;
        let callers = scene.callers();
        callers.more(200, LIMIT).await;

        network.cut_between(source, target);
        let cut = Instant::now();
        scene.fleet.begin_move(leader, "store", target).await.unwrap();
        let name = scene.fleet.node(source).name.clone();
        let (_, view) = scene.home(leader, Duration::from_secs(30), |owner| owner == name).await;
        println!("the move was given up after {:?}", cut.elapsed());
        let epoch = module(&view, "store").unwrap().epoch;
        network.heal();
        scene.fleet.settled(target, 3, START).await;
        callers.more(200, LIMIT).await;
        let healed = Instant::now();

        network.cut_off(source);
        let lost = Instant::now();
        scene.home(leader, LEASE + TAKE_OVER + ELECTION, |owner| owner != name).await;
        println!("the majority serves after {:?}", lost.elapsed());
        callers.more(200, LIMIT).await;
        sleep(SECOND * 2).await;
        network.heal();
        for at in 0..3 {
            scene.fleet.settled(at, 3, START).await;
        }
        callers.more(200, LIMIT).await;
        let history = callers.finish().await;
        let target = scene.fleet.node(target).name.clone();
        let early = |call: &&outpost_tests::history::Call| {
            call.served().is_none() && call.ended < healed && !call.client.starts_with(&target)
        };
        let failed: Vec<String> = history.calls().iter().filter(early).map(|call| history.tell(call)).collect();
        assert_eq!(failed, [""; 0], "the source served on");
        let own = history
            .calls()
            .iter()
            .filter(|call| call.ended > lost && call.served().is_some_and(|served| served.epoch == epoch));
        let last = own.map(|call| call.ended).max();
        println!("it acknowledged until {:?} after it was cut off", last.map(|last| last - lost));
        assert!(last.is_none_or(|last| last < lost + LEASE), "it served without a lease");
        println!("served after {:?}; {}", history.served_again(lost), history.stalls(&[lost], SECOND));
        println!("writes that the database refused: {:?}", scene.database.as_ref().map(Database::refused));
        scene.check(&history, Losses::None).await;
    }
}
