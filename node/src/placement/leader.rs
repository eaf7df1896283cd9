//! The leader's work: looks at the facts, and proposes what the scheduler plans.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    log::{Log, ProposeError},
    scheduler::{self, Limits, Plan},
    state::{Command, Hosting, PartChange, Proposal, State},
    versions::Versions,
    view::{self, Heard},
};
use crate::{
    clock,
    id::{Epoch, Incarnation, ModuleName, NodeId},
    membership::{Instance, Members},
};

/// How often it looks when nothing has changed: leases end without a sign.
const LOOK: Duration = Duration::from_millis(500);

/// How long the first placement waits for the nodes that a cluster begins with: what has state stays where it is put.
const GATHER: Duration = Duration::from_secs(10);

/// Runs at every node, and works at the one that leads.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) me: NodeId,
    pub(crate) log: Log,
    pub(crate) members: watch::Receiver<Arc<Members>>,
    pub(crate) limits: Limits,
    pub(crate) versions: Arc<Versions>,
    /// The nodes that a new cluster begins with.
    pub(crate) initial: Vec<NodeId>,
    /// How long a move may wait for its target to be ready.
    pub(crate) move_timeout: Duration,
    /// The index of the state for which nothing was left to do.
    pub(crate) settled: watch::Sender<Option<u64>>,
}

impl Leader {
    /// Never returns.
    pub(crate) async fn run(self) {
        let mut state = self.log.state();
        let mut leadership = self.log.leadership();
        let mut members = self.members.clone();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut moves = Moves::default();
        // Owners that were taken over from, perhaps: the proposals were not answered.
        let mut undecided: BTreeMap<Incarnation, u64> = BTreeMap::new();
        let began = Instant::now();
        loop {
            let leads = leadership.borrow_and_update().is_me;
            if leads {
                let state = Arc::clone(&state.borrow_and_update());
                let members = Arc::clone(&members.borrow_and_update());
                if !self.gathers(&state, began) {
                    self.decide(&state, &mut undecided).await;
                    self.step(&state, &members, &mut moves, &mut undecided).await;
                }
            } else {
                moves = Moves::default();
            }
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                Ok(()) = state.changed(), if leads => {}
                Ok(()) = members.changed(), if leads => {}
                _ = looks.tick(), if leads => {}
            }
        }
    }

    /// Whether nothing was placed yet, and some of the nodes to begin with are about to join.
    fn gathers(&self, state: &State, began: Instant) -> bool {
        let missing = self.initial.iter().any(|node| !state.nodes.contains_key(node));
        state.parts.is_empty() && missing && began.elapsed() < GATHER
    }

    /// Gives owners leave to renew again once it is decided whether they were taken over from.
    async fn decide(&self, state: &State, undecided: &mut BTreeMap<Incarnation, u64>) {
        for (owner, term) in std::mem::take(undecided) {
            // It changes nothing, as no record has this version. Once it was answered, so is all that was proposed
            // before it, in the same term.
            let (expect, change) = (u64::MAX, PartChange::AbortMove);
            let Some(module) = state.parts.keys().next().cloned() else { continue };
            let command = Command::Part { module, expect, change, why: String::new() };
            match self.propose_one(command, Some(term)).await {
                Decided::Yes => self.log.leases().release(&owner),
                Decided::Unknown => {
                    undecided.insert(owner, term);
                }
            }
        }
    }

    async fn step(
        &self,
        state: &State,
        members: &Members,
        moves: &mut Moves,
        undecided: &mut BTreeMap<Incarnation, u64>,
    ) {
        if state.cluster.is_empty() {
            return;
        }
        let (_, spec) = state.spec();
        let heard = heard(&self.log, state);
        let facts = view::facts(state, spec, members, &heard, &self.versions, clock::wall(), self.limits);
        let Plan { mut changes, .. } = scheduler::plan(&facts);
        let late = self.late(state, moves);
        changes.retain(|planned| {
            let begins = matches!(planned.change, PartChange::BeginMove { .. });
            !(late.contains_key(&planned.module) || begins && moves.pauses(&planned.module, Instant::now()))
        });
        if changes.is_empty() && late.is_empty() {
            self.settled.send_replace(Some(state.index));
            return;
        }
        let planned = changes.into_iter().map(|planned| {
            let scheduler::Planned { module, expect, change, reason } = planned;
            Command::Part { module, expect, change, why: reason }
        });
        let late = late.into_iter().map(|(module, expect)| {
            let within = humantime::format_duration(self.move_timeout);
            let why = format!("its target was not ready within {within} (cluster.move_timeout)");
            Command::Part { module, expect, change: PartChange::AbortMove, why }
        });
        undecided.extend(self.propose(state, members, planned.chain(late).collect()).await);
    }

    /// Moves that have waited for too long, and the version of each record.
    fn late(&self, state: &State, moves: &mut Moves) -> BTreeMap<ModuleName, u64> {
        let now = Instant::now();
        moves.look(state, now);
        let late = state.parts.iter().filter_map(|(module, part)| {
            let since = moves.since.get(&(module.clone(), part.moving()?.id))?;
            (now - since.0 >= self.move_timeout).then(|| (module.clone(), part.version))
        });
        late.collect()
    }

    /// Proposes changes of different parts. Those that take over from an owner which has fallen silent come last, by
    /// owner: it gets no lease until they are made. Returns those owners of which it is not known whether they are.
    async fn propose(&self, state: &State, members: &Members, commands: Vec<Command>) -> Vec<(Incarnation, u64)> {
        let mut take_overs: BTreeMap<Incarnation, Vec<Command>> = BTreeMap::new();
        let mut others = Vec::new();
        for command in commands {
            match silent_owner(state, members, &command) {
                Some(owner) => take_overs.entry(owner).or_default().push(command),
                None => others.push(command),
            }
        }
        join_all(others.into_iter().map(|command| self.propose_one(command, None))).await;
        let take_overs = take_overs.into_iter().map(|(owner, commands)| self.take_over(owner, commands));
        join_all(take_overs).await.into_iter().flatten().collect()
    }

    async fn take_over(&self, owner: Incarnation, commands: Vec<Command>) -> Option<(Incarnation, u64)> {
        // If it does not, the owner was heard of again.
        let term = self.log.leases().hold(Instant::now(), &owner)?;
        tracing::warn!(node_id = %owner.node, parts = commands.len(), "node is silent, and its lease has ended: taking over");
        let proposed = join_all(commands.into_iter().map(|command| self.propose_one(command, Some(term)))).await;
        if proposed.contains(&Decided::Unknown) {
            // With a lease the owner would serve until it hears of an entry that may come yet.
            return Some((owner, term));
        }
        self.log.leases().release(&owner);
        None
    }

    async fn propose_one(&self, command: Command, term: Option<u64>) -> Decided {
        let Command::Part { module, change, .. } = &command else { return Decided::Yes };
        let (module, text) = (module.clone(), change.to_string());
        let proposal = Proposal { at: clock::wall(), by: self.me.to_string(), asked: None, command };
        let proposed = match term {
            Some(term) => self.log.propose_in_term(term, proposal).await,
            None => self.log.propose(proposal).await,
        };
        match proposed {
            Ok(Ok(_)) => tracing::debug!(%module, change = text, "placement changed"),
            Ok(Err(refused)) => tracing::debug!(%module, %refused, "the placement has moved on"),
            Err(error) => {
                tracing::warn!(%module, %error, "the placement log did not take a change");
                if matches!(error, ProposeError::Unknown { .. }) {
                    return Decided::Unknown;
                }
            }
        }
        Decided::Yes
    }
}

/// What this leader remembers of moves.
#[derive(Debug, Default)]
struct Moves {
    /// Since when it has seen each move that is under way, and the epoch that the part had.
    since: BTreeMap<(ModuleName, u64), (Instant, Epoch)>,
    /// How often a move of each part was given up, and until when it is not moved again but by an operator.
    given_up: BTreeMap<ModuleName, (u32, Instant)>,
}

/// The pause after a move that was given up; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Moves {
    fn look(&mut self, state: &State, now: Instant) {
        let mut since = BTreeMap::new();
        for (module, part) in &state.parts {
            if let Some(moving) = part.moving() {
                let key = (module.clone(), moving.id);
                let seen = self.since.remove(&key).unwrap_or((now, part.epoch));
                since.insert(key, seen);
            }
        }
        for ((module, _), (_, epoch)) in std::mem::replace(&mut self.since, since) {
            match state.parts.get(&module) {
                // It is where it was.
                Some(part) if part.epoch == epoch => {
                    let (times, _) = self.given_up.get(&module).copied().unwrap_or((0, now));
                    let pause = (FIRST_PAUSE * 2_u32.pow(times.min(10))).min(LONGEST_PAUSE);
                    self.given_up.insert(module, (times + 1, now + pause));
                }
                _ => {
                    self.given_up.remove(&module);
                }
            }
        }
    }

    fn pauses(&self, module: &ModuleName, now: Instant) -> bool {
        self.given_up.get(module).is_some_and(|(_, until)| now < *until)
    }
}

/// Whether it is known what became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decided {
    Yes,
    /// It may be applied yet.
    Unknown,
}

/// The owner that a command takes over from, where only the end of its lease shows that it serves no more.
fn silent_owner(state: &State, members: &Members, command: &Command) -> Option<Incarnation> {
    let Command::Part { module, change: PartChange::Assign(_), .. } = command else { return None };
    let part = state.parts.get(module)?;
    let Hosting::Exclusive { owner, .. } = &part.hosting else { return None };
    // An owner that failed to start serves only after the record says so, which it then does at another version.
    let failed = members.get(&owner.node).is_some_and(|member| {
        let hosted = member.hosting.get(module);
        member.generation == owner.generation
            && hosted.is_some_and(|hosted| hosted.state == Instance::Failed && hosted.epoch == part.epoch)
    });
    (!view::has_gone(state, owner) && (part.is_settled() || !failed)).then(|| owner.clone())
}

/// The process of each node that has not left.
fn in_force(state: &State) -> impl Iterator<Item = Incarnation> {
    state.nodes.keys().filter_map(|node| state.incarnation(node))
}

/// Every process that may host something, as the state tells.
fn incarnations(state: &State) -> impl Iterator<Item = Incarnation> {
    let mut all = view::owners(state);
    all.extend(in_force(state));
    all.into_iter()
}

/// What leases say: all of it at the leader, nothing elsewhere.
pub(crate) fn heard(log: &Log, state: &State) -> Heard {
    let (now, mut leases) = (Instant::now(), log.leases());
    // Where nodes differ in their settings, the longest lease is waited for.
    leases.at_least(Duration::from_millis(state.nodes.values().map(|node| node.lease_ms).max().unwrap_or_default()));
    Heard {
        renewing: leases.live(now).cloned().collect(),
        ended: incarnations(state).filter(|incarnation| leases.expired(now, incarnation)).collect(),
        // One that is silent may serve calls of replicated modules on, and has applied nobody knows what.
        applied_by_all: in_force(state).map(|incarnation| leases.applied(&incarnation)).min().unwrap_or_default(),
    }
}
