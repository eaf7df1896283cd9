//! A state of those who vote: what each member has on disk, who takes itself for the leader, and what is committed.

use crate::world::Broken;

/// How many members there are: three voters at first, and one that can become one.
pub const MEMBERS: usize = 4;
/// How many entries a log has room for: two changes, of two entries each.
const ENTRIES: usize = 4;

/// Which member.
pub type MemberId = usize;
/// Rank of a term of the consensus.
pub type Term = u8;

/// Some members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Set(pub u8);

impl Set {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// All there are.
    pub const ALL: Self = Self((1 << MEMBERS) - 1);

    /// Whether one is of them.
    #[must_use]
    pub fn has(self, member: MemberId) -> bool {
        self.0 & (1 << member) != 0
    }

    /// With one more.
    #[must_use]
    pub fn with(self, member: MemberId) -> Self {
        Self(self.0 | (1 << member))
    }

    /// How many.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it is nobody.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Each.
    pub fn each(self) -> impl Iterator<Item = MemberId> {
        (0..MEMBERS).filter(move |member| self.has(*member))
    }
}

/// Who votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Voters {
    /// While a change is under way, those before it; nobody otherwise.
    pub old: Set,
    /// Those that vote, or will.
    pub new: Set,
}

impl Voters {
    /// Whether these are a majority: while a change is under way, of both.
    #[must_use]
    pub fn agree(self, these: Set) -> bool {
        let majority = |of: Set| of.and(these).len() * 2 > of.len();
        (self.old.is_empty() || majority(self.old)) && majority(self.new)
    }

    /// All who have a vote.
    #[must_use]
    pub fn all(self) -> Set {
        Set(self.old.0 | self.new.0)
    }
}

/// A change of the voters in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Entry {
    /// In which it was written; 0 is no entry.
    pub term: Term,
    /// Who votes from it on, whether or not it is committed.
    pub voters: Voters,
}

/// A log, of which only changes of the voters matter, and who wrote last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Log {
    /// The term of its last entry, which may be one that changes nothing: each leader begins with such.
    pub last: Term,
    /// The others, in order.
    pub entries: [Entry; ENTRIES],
}

impl Log {
    /// How many of its entries change the voters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|entry| entry.term > 0).count()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Who votes, by this log.
    #[must_use]
    pub fn voters(&self) -> Voters {
        let last = self.entries.iter().rev().find(|entry| entry.term > 0);
        last.map_or(Voters { old: Set::NONE, new: FIRST }, |entry| entry.voters)
    }

    /// Whether a voter with this log votes for one with that.
    #[must_use]
    pub fn is_no_newer_than(&self, other: &Self) -> bool {
        (self.last, self.len()) <= (other.last, other.len())
    }

    /// Whether the other one has all of it.
    #[must_use]
    pub fn is_in(&self, other: &Self) -> bool {
        self.last <= other.last && self.entries[..self.len()] == other.entries[..self.len()]
    }

    pub(super) fn write(&mut self, entry: Entry) {
        let len = self.len();
        if let Some(free) = self.entries.get_mut(len) {
            *free = entry;
        }
        self.last = entry.term;
    }
}

/// The voters that a cluster begins with.
pub const FIRST: Set = Set(0b0111);

/// A member of the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Member {
    /// Its data are gone, and it with them.
    pub lost: bool,
    /// The newest term that it has promised to.
    pub term: Term,
    /// Its log.
    pub log: Log,
    /// It takes itself for the leader of its term.
    pub leads: bool,
    /// As a leader, it knows that all of its log is committed.
    pub settled: bool,
    /// A host has asked it for a lease, when there was a later leader already.
    pub asked: bool,
    /// Who has confirmed that it leads.
    pub confirmed: Set,
    /// Who voted when it was elected; kept only where a rule that needs no such thing is off.
    pub elected_by: Voters,
}

/// How much may happen yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Elections.
    pub elections: u8,
    /// Changes of the voters.
    pub changes: u8,
    /// Members whose data are lost.
    pub losses: u8,
}

/// A state of the whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct World {
    /// The members.
    pub members: [Member; MEMBERS],
    /// What a majority has had at some time. Nobody knows it as such.
    pub committed: Log,
    /// The newest term with a leader.
    pub newest: Term,
    /// What may happen yet.
    pub budget: Budget,
    /// What the last step broke.
    pub broken: Option<Broken>,
}

impl World {
    /// Three voters, of which the first leads.
    #[must_use]
    pub fn initial(budget: Budget) -> Self {
        let log = Log { last: 1, entries: Default::default() };
        let mut members = [Member { term: 1, log, ..Member::default() }; MEMBERS];
        (members[0].leads, members[0].settled) = (true, true);
        Self { members, committed: log, newest: 1, budget, broken: None }
    }

    /// Those whose data are there.
    #[must_use]
    pub fn there(&self) -> Set {
        Set::ALL.each().filter(|member| !self.members[*member].lost).fold(Set::NONE, Set::with)
    }

    /// Those who have all of a log, from who wrote its last entry.
    #[must_use]
    pub fn who_has(&self, log: &Log) -> Set {
        let has = |member: &MemberId| {
            let Member { lost, log: theirs, .. } = &self.members[*member];
            !lost && theirs.last == log.last && log.is_in(theirs)
        };
        Set::ALL.each().filter(has).fold(Set::NONE, Set::with)
    }

    /// Replaces terms by their ranks.
    pub(super) fn rank(&mut self) {
        let mut used = [false; 32];
        self.each_term(&mut |term| used[usize::from(*term)] = true);
        let mut next = 0;
        let mut ranks = [0; 32];
        for term in (1..32).filter(|term| used[*term]) {
            next += 1;
            ranks[term] = next;
        }
        self.each_term(&mut |term| *term = ranks[usize::from(*term)]);
    }

    fn each_term(&mut self, visit: &mut impl FnMut(&mut Term)) {
        let mut log = |log: &mut Log| {
            visit(&mut log.last);
            log.entries.iter_mut().for_each(|entry| visit(&mut entry.term));
        };
        log(&mut self.committed);
        self.members.iter_mut().for_each(|member| log(&mut member.log));
        self.members.iter_mut().for_each(|member| visit(&mut member.term));
        visit(&mut self.newest);
    }

    /// The least of all states that differ by the names of members alone.
    pub(super) fn renamed(&self) -> Self {
        // Who is not among the first voters, is told from them by the empty log.
        let mut best: Option<Self> = None;
        let mut order: [MemberId; MEMBERS] = std::array::from_fn(|member| member);
        permutations(&mut order, 0, 3, &mut |order| {
            let other = self.renumbered(order);
            if best.as_ref().is_none_or(|best| other < *best) {
                best = Some(other);
            }
        });
        best.unwrap_or_else(|| self.clone())
    }

    fn renumbered(&self, order: &[MemberId; MEMBERS]) -> Self {
        let set = |old: Set| old.each().fold(Set::NONE, |new, member| new.with(order[member]));
        let voters = |old: Voters| Voters { old: set(old.old), new: set(old.new) };
        let log = |old: &Log| Log {
            last: old.last,
            entries: old.entries.map(|entry| Entry { term: entry.term, voters: voters(entry.voters) }),
        };
        let mut members = [Member::default(); MEMBERS];
        for (old, place) in self.members.iter().zip(order) {
            members[*place] = Member {
                log: log(&old.log),
                confirmed: set(old.confirmed),
                elected_by: voters(old.elected_by),
                ..*old
            };
        }
        Self { members, committed: log(&self.committed), ..self.clone() }
    }
}

fn permutations(
    order: &mut [MemberId; MEMBERS],
    from: usize,
    until: usize,
    visit: &mut impl FnMut(&[MemberId; MEMBERS]),
) {
    if from == until {
        return visit(order);
    }
    for other in from..until {
        order.swap(from, other);
        permutations(order, from + 1, until, visit);
        order.swap(from, other);
    }
}
