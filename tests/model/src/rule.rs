//! The rules of the protocol, each with a switch.

use clap::ValueEnum;

/// Why a rule is there is shown by the counterexample that the checker finds without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Rule {
    // The record.
    /// A change of the record names the version that it saw, and does nothing at another one.
    CasOnVersion,
    /// Each change of the owner raises the epoch.
    EpochPerOwner,
    /// The owner is an incarnation: a process that starts again under the same name is not it.
    OwnerIsIncarnation,
    /// Assign keeps the seal where it goes to the incarnation that holds the sealed instance.
    SealKeptForHolder,
    /// Assign drops the seal where it goes to anybody else, a later process of the same node too.
    SealOnlyForHolder,

    // The move.
    /// Rule 0: an instance of another epoch than the record's is retired, whatever its state.
    EpochDecides,
    /// The state is sealed only when no call is inside.
    DrainBeforeSeal,
    /// A sealed source opens again only when the record says that the move is off.
    ReopenOnlyOnAbort,
    /// The source hands over only what the target says it has installed.
    AckBeforeHandover,
    /// The target takes a final part only for the move that its instance was started for.
    TransferOfThisMove,
    /// The source takes the target's word only for the move under way.
    AnswerOfThisMove,
    /// A new owner opens only content with the digest in the record.
    DigestAtOpen,
    /// What was installed for a move is thrown away by an owner whose record has no seal.
    FreshWithoutSeal,
    /// The source keeps its sealed instance as long as the record has the seal.
    SourceKeepsSealed,
    /// It keeps it, too, when it learns of the handover and of the Assign back to it at once.
    KeptWhenSkipped,
    /// Nobody opens while the record has a seal and is not active: the owner commits Activated, and then opens.
    OpenAfterActivated,

    // The lease, at the holder.
    /// A gate looks at the lease when a call comes.
    LeaseAtAdmission,
    /// A gate that was opened in one term of the lease admits nobody in the next.
    TermAtAdmission,
    /// The lease is looked at again before a reply leaves.
    LeaseAtReply,
    /// A call that was admitted in one term of the lease is not answered in the next.
    TermAtReply,
    /// A gate is opened for the term that was read before the record was, not for the one in which it opens.
    OpenInDecidedTerm,
    /// A lease is usable only when the node has applied all that was committed before the grant.
    MustApply,
    /// A lease counts from when it was asked for, not from when the grant arrives.
    CountFromAsking,

    // The lease, at the leader.
    /// Nobody takes over from an owner whose lease has not ended.
    WaitForLease,
    /// A new leader knows no leases, and waits for a whole one.
    NewLeaderWaits,
    /// A majority has confirmed the leader after it was asked, before it grants.
    GrantConfirmed,
    /// An owner that is being taken over from gets no grant.
    HoldWhileTakingOver,
    /// It gets none before the take-over is decided, however long that takes.
    HoldUntilDecided,
    /// A take-over is bound to the term of the leader that holds the owner.
    TakeOverInTerm,

    // Callers, and the module's own store.
    /// Only a call that never began is tried again.
    RetryOnlyUnbegun,
    /// A caller that knows of a take-over takes no reply from before it.
    FenceAtCaller,
    /// A reply tells the caller of the last take-over, too, not only of the epoch.
    FenceInReply,
    /// The store of a durable module refuses writes of an epoch below its fence.
    StoreFence,
    /// A durable module reads its store after it raised the fence there, at each change of its epoch.
    ReadAfterFence,

    // Who votes.
    /// Those who confirm a leader do so after a host has asked it for a lease.
    ConfirmAfterAsking,
    /// A leader counts those who vote now, not those who have elected it.
    VotersInForce,
    /// A member of the consensus is its data: without them it is another one, and has no vote.
    VoterIsItsData,
    /// While the voters change, a majority is one of the old and one of the new.
    ChangeIsJoint,
    /// A change of the voters begins when the one before it is finished.
    OneChangeAtATime,
    /// A change of the voters begins only while a majority of the old and of the new is there.
    HealthyBeforeChange,
}

impl Rule {
    /// All of them, in the order of this file.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is one of those about who votes.
    pub fn is_of_voters(self) -> bool {
        self >= Self::ConfirmAfterAsking
    }

    /// What it says, for people.
    pub fn text(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }
}

/// Which rules are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// The protocol as it is.
    pub const ALL: Self = Self(u64::MAX);

    /// The same but for one.
    #[must_use]
    pub fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u32))
    }

    /// Whether a rule is in force.
    #[inline]
    pub fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }
}
