//! Who votes, and how that changes while leases are granted: what the other model takes for granted of the log.
//!
//! ```text
//!  a leader of term 1     asks its voters: do I lead?   ──▶ a majority of them: then it grants a lease
//!  one of term 2          elected by a majority of *its* voters, waits for a whole lease, and takes over
//! ```
//!
//! That this is safe rests on one thing: between any two majorities that matter there is a voter that remembers. It has
//! promised the newer term, and does not confirm the older one. Changes of the voters put that to the test, and so does a
//! voter whose data are gone. **What is checked**: no leader is confirmed to a host that asked after a later one was
//! elected; what is committed, every later leader has; and from each state one can be reached in which somebody leads.
//!
//! Raft itself is openraft's, and trusted; its rules are here as far as they are needed for the question to make sense. What
//! is told happens at once where it is told: a vote, a heartbeat, an entry. Whoever has not heard yet is as a message that is
//! still under way. Elections happen at once too, with just as many votes as are needed.

use std::fmt;

use crate::{
    check::Model,
    rule::{Rule, Rules},
    world::Broken,
};

mod world;

pub use world::{Budget, Entry, FIRST, Log, MEMBERS, Member, MemberId, Set, Term, Voters, World};

/// Those who vote, with some rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voting {
    /// In force.
    pub rules: Rules,
    /// What may happen.
    pub budget: Budget,
}

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each is below, and is what it means")]
pub enum Step {
    Elect { leader: MemberId, by: Set },
    Ask { leader: MemberId },
    Confirm { leader: MemberId, by: MemberId },
    Grant { leader: MemberId },
    Replicate { leader: MemberId, to: MemberId },
    Change { leader: MemberId, to: Set },
    Finish { leader: MemberId },
    Lose(MemberId),
}

/// Takes a step, and what it changes.
type Go<'a> = dyn FnMut(Step, &dyn Fn(&mut World)) + 'a;

impl Voting {
    fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    fn of(&self, world: &World, id: MemberId, next: &mut Vec<(Step, World)>) {
        let member = &world.members[id];
        if member.lost {
            return;
        }
        let mut go = |step, change: &dyn Fn(&mut World)| {
            let mut new = world.clone();
            change(&mut new);
            self.tidy(&mut new);
            next.push((step, new));
        };
        if world.budget.losses > 0 && may_be_lost(world, id) {
            go(Step::Lose(id), &|new| {
                new.budget.losses -= 1;
                new.members[id] = Member { lost: self.has(Rule::VoterIsItsData), ..Member::default() };
            });
        }
        let voters = member.log.voters();
        if world.budget.elections > 0 && voters.all().has(id) && !(member.leads && member.term == world.newest) {
            let would = |voter: &MemberId| world.members[*voter].log.is_no_newer_than(&member.log);
            let would = world.there().each().filter(would).fold(Set::NONE, Set::with);
            for by in just_enough(voters, would).filter(|by| by.has(id)) {
                go(Step::Elect { leader: id, by }, &|new| self.elect(new, id, by));
            }
        }
        if !member.leads {
            return;
        }
        if member.term < world.newest && !member.asked {
            go(Step::Ask { leader: id }, &|new| {
                let member = &mut new.members[id];
                member.asked = true;
                if self.has(Rule::ConfirmAfterAsking) {
                    member.confirmed = Set::NONE.with(id);
                }
            });
        }
        let counts = if self.has(Rule::VotersInForce) { voters } else { member.elected_by };
        if member.asked && (counts.agree(member.confirmed) || !self.has(Rule::GrantConfirmed)) {
            go(Step::Grant { leader: id }, &|new| new.broken = Some(Broken::LeaseOfReplacedLeader));
        }
        for to in Set::ALL.each().filter(|to| *to != id && !world.members[*to].lost) {
            let other = &world.members[to];
            if other.term > member.term {
                continue;
            }
            if !member.confirmed.has(to) && (member.asked || !self.has(Rule::ConfirmAfterAsking)) {
                go(Step::Confirm { leader: id, by: to }, &|new| new.hear(id, to));
            }
            if other.log != member.log {
                go(Step::Replicate { leader: id, to }, &|new| {
                    new.hear(id, to);
                    new.members[to].log = member.log;
                    new.commit(id);
                });
            }
        }
        self.changes(world, id, &mut go);
    }

    fn changes(&self, world: &World, id: MemberId, go: &mut Go<'_>) {
        let Member { log, term, settled, .. } = world.members[id];
        let voters = log.voters();
        if settled && !voters.old.is_empty() {
            go(Step::Finish { leader: id }, &|new| {
                new.write(id, Entry { term, voters: Voters { old: Set::NONE, new: voters.new } });
            });
        }
        if world.budget.changes == 0 || !((settled && voters.old.is_empty()) || !self.has(Rule::OneChangeAtATime)) {
            return;
        }
        // Those who answer: whoever has promised a later leader does not.
        let answers =
            world.there().each().filter(|member| world.members[*member].term <= term).fold(Set::NONE, Set::with);
        let healthy = |set: Set| set.and(answers).len() * 2 > set.len() || !self.has(Rule::HealthyBeforeChange);
        let odd = (1..=Set::ALL.0).map(Set).filter(|set| set.len() % 2 == 1);
        for to in odd.filter(|to| *to != voters.new && healthy(*to) && healthy(voters.new)) {
            go(Step::Change { leader: id, to }, &|new| {
                new.budget.changes -= 1;
                let old = if self.has(Rule::ChangeIsJoint) { voters.new } else { Set::NONE };
                new.write(id, Entry { term, voters: Voters { old, new: to } });
            });
        }
    }

    fn elect(&self, world: &mut World, id: MemberId, by: Set) {
        world.budget.elections -= 1;
        let newest = Set::ALL.each().map(|member| world.members[member].term).max().unwrap_or_default();
        let term = newest.max(world.newest) + 1;
        for voter in by.each() {
            let voter = &mut world.members[voter];
            (voter.term, voter.leads) = (term, false);
        }
        if !world.committed.is_in(&world.members[id].log) {
            world.broken = Some(Broken::CommittedEntryLost);
        }
        let leader = &mut world.members[id];
        (leader.leads, leader.settled, leader.asked, leader.confirmed) = (true, false, false, Set::NONE.with(id));
        leader.elected_by = leader.log.voters();
        leader.log.last = term;
        world.newest = term;
        world.commit(id);
    }

    /// What makes no difference any more is dropped.
    fn tidy(&self, world: &mut World) {
        for member in &mut world.members {
            if member.lost {
                *member = Member { lost: true, ..Member::default() };
            }
            if !member.leads {
                (member.settled, member.asked, member.confirmed) = (false, false, Set::NONE);
            }
            if !member.asked && self.has(Rule::ConfirmAfterAsking) {
                member.confirmed = Set::NONE;
            }
            if !member.leads || self.has(Rule::VotersInForce) {
                member.elected_by = Voters::default();
            }
        }
    }
}

/// Whether the rest of the voters is a majority, and no change of them is under way for anybody. More than that, not every
/// cluster survives: see the README.
fn may_be_lost(world: &World, id: MemberId) -> bool {
    let there = world.there();
    let rest = Set(there.0 & !(1 << id));
    let voters = world.committed.voters();
    voters.old.is_empty()
        && voters.agree(rest)
        && there.each().all(|member| world.members[member].log.voters() == voters)
}

/// The majorities of these that would be none without any one of theirs.
fn just_enough(voters: Voters, these: Set) -> impl Iterator<Item = Set> {
    let some = (1..=Set::ALL.0).map(Set).filter(move |some| some.and(these) == *some && voters.agree(*some));
    some.filter(move |some| some.each().all(|one| !voters.agree(Set(some.0 & !(1 << one)))))
}

impl World {
    /// A member hears of a leader, and answers.
    fn hear(&mut self, leader: MemberId, id: MemberId) {
        let term = self.members[leader].term;
        let member = &mut self.members[id];
        member.leads &= member.term == term;
        member.term = term;
        self.members[leader].confirmed = self.members[leader].confirmed.with(id);
    }

    /// A leader adds a change of the voters to its log.
    fn write(&mut self, leader: MemberId, entry: Entry) {
        let member = &mut self.members[leader];
        member.log.write(entry);
        member.settled = false;
        self.commit(leader);
    }

    /// What a majority has now is committed.
    fn commit(&mut self, leader: MemberId) {
        let log = self.members[leader].log;
        let voters = log.voters();
        if log.last != self.members[leader].term || !voters.agree(self.who_has(&log)) {
            return;
        }
        self.members[leader].settled = true;
        if log.is_in(&self.committed) {
            return;
        }
        if !self.committed.is_in(&log) {
            self.broken = Some(Broken::CommittedEntryLost);
        }
        self.committed = log;
        if voters.old.is_empty() && !voters.new.has(leader) {
            self.members[leader].leads = false;
        }
    }
}

impl Model for Voting {
    type World = World;
    type Step = Step;

    fn initial(&self) -> World {
        let mut world = World::initial(self.budget);
        world.members[0].elected_by = Voters { old: Set::NONE, new: FIRST };
        self.tidy(&mut world);
        world
    }

    fn steps(&self, world: &World) -> Vec<(Step, World)> {
        let mut next = Vec::with_capacity(24);
        for id in Set::ALL.each() {
            self.of(world, id, &mut next);
        }
        next
    }

    fn canonical(&self, mut world: World) -> World {
        world.rank();
        world.renamed()
    }

    fn is_fault(step: &Step) -> bool {
        matches!(step, Step::Lose(_))
    }

    fn broken(world: &World) -> Option<Broken> {
        world.broken
    }

    /// The newest leader can commit, and be confirmed; or there were as many elections as are looked at.
    fn is_well(&self, world: &World) -> bool {
        let leads = |member: &Member| member.leads && member.term == world.newest && member.log.is_in(&world.committed);
        world.budget.elections == 0
            || world.members.iter().any(|member| leads(member) && member.log.voters().agree(world.who_has(&member.log)))
    }

    fn describe(world: &World) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, member) in world.members.iter().enumerate() {
            let Member { lost, term, log, leads, asked, confirmed, .. } = member;
            if *lost {
                lines.push(format!("{}  its data are lost", name(id)));
                continue;
            }
            let mut line = format!("{}  term {term}, votes by {}, log to term {}", name(id), log.voters(), log.last);
            if *leads {
                line.push_str(", leads");
            }
            if *asked {
                line.push_str(&format!(", was asked for a lease, confirmed by {confirmed}"));
            }
            lines.push(line);
        }
        lines.push(format!("committed: votes by {}", world.committed.voters()));
        lines.extend(world.broken.map(|broken| broken.to_string()));
        lines
    }
}

/// Members are called P, Q, R and S.
fn name(member: MemberId) -> char {
    char::from(b'P' + member as u8)
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: String = self.each().map(name).collect();
        f.write_str(&names)
    }
}

impl fmt::Display for Voters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.old.is_empty() { write!(f, "{}", self.new) } else { write!(f, "{} and {}", self.old, self.new) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Elect { leader, by } => write!(f, "{}: is elected, by {by}", name(leader)),
            Self::Ask { leader } => write!(f, "{}: is asked for a lease", name(leader)),
            Self::Confirm { leader, by } => write!(f, "{}: confirms that {} leads", name(by), name(leader)),
            Self::Grant { leader } => write!(f, "{}: grants the lease", name(leader)),
            Self::Replicate { leader, to } => write!(f, "{}: has the log of {}", name(to), name(leader)),
            Self::Change { leader, to } => write!(f, "{}: begins to change the voters to {to}", name(leader)),
            Self::Finish { leader } => write!(f, "{}: finishes the change of the voters", name(leader)),
            Self::Lose(member) => write!(f, "fault: {} loses its data", name(member)),
        }
    }
}
