//! What may happen next, in words.

use std::fmt;

use crate::world::{Content, HostId, Record};

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each is below, and is what it means")]
pub enum Step {
    // The leader.
    BeginMove { to: HostId },
    AbortMove,
    AssignOfGone { to: HostId },
    TakeOver { to: HostId },
    CommitAssign { to: HostId },
    GiveUpTakeOver,
    Elect,
    Renew(HostId),
    RenewByOldLeader(HostId),

    // A host's lease, and what it knows.
    Learn(HostId),
    TakeLease(HostId),
    LeaseEnds(HostId),
    Suspend(HostId),
    Resume(HostId),
    Notice(HostId),
    Crash(HostId),
    Restart(HostId),

    // A host's instance.
    Start(HostId),
    Retire(HostId),
    Prepared(HostId),
    Seal(HostId),
    FinalPart(HostId, Content),
    Install(HostId, Content),
    Answered(HostId),
    ProposeHandover(HostId),
    CommitHandover { ready: bool },
    Adopt(HostId),
    Activated(HostId),
    DecideToOpen(HostId),
    Open(HostId),

    // Calls.
    Admit(usize, HostId),
    Apply(usize, HostId),
    StoreRefuses(usize, HostId),
    ReplyLeaves(usize, HostId),
    ReplyStopped(usize, HostId),
    Cut(usize, HostId),
    Accept(usize),
    Refuse(usize),
    ReplyLost(usize),
    Retry(usize),
    CallerLearns,
}

impl Step {
    /// Whether this is bad luck, which nobody may rely on for the cluster to recover.
    pub fn is_fault(self) -> bool {
        matches!(self, Self::LeaseEnds(_) | Self::Suspend(_) | Self::Crash(_) | Self::Elect | Self::ReplyLost(_))
    }
}

/// The hosts are called A, B and C.
pub(crate) fn name(host: HostId) -> char {
    char::from(b'A' + host)
}

/// Content, as the calls that had an effect on it.
pub(crate) fn content(content: Content) -> &'static str {
    ["{}", "{1}", "{2}", "{1,2}"][usize::from(content & 3)]
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BeginMove { to } => write!(f, "leader: BeginMove to {}", name(to)),
            Self::AbortMove => write!(f, "leader: AbortMove"),
            Self::AssignOfGone { to } => write!(f, "leader: the owner has started again: Assign to {}", name(to)),
            Self::TakeOver { to } => write!(f, "leader: holds the owner, and proposes to Assign to {}", name(to)),
            Self::CommitAssign { to } => write!(f, "log: the Assign to {} commits", name(to)),
            Self::GiveUpTakeOver => write!(f, "leader: has no answer to its proposal, and lets go of the owner"),
            Self::Elect => write!(f, "log: another leader is elected"),
            Self::Renew(host) => write!(f, "leader: grants {} a lease", name(host)),
            Self::RenewByOldLeader(host) => write!(f, "old leader: grants {} a lease", name(host)),
            Self::Learn(host) => write!(f, "{}: applies the log", name(host)),
            Self::TakeLease(host) => write!(f, "{}: uses the lease that it was granted", name(host)),
            Self::LeaseEnds(host) => write!(f, "fault: {}'s lease ends while it runs", name(host)),
            Self::Suspend(host) => write!(f, "fault: {}'s lease ends while its clock stands still", name(host)),
            Self::Resume(host) => {
                write!(f, "{}: gets a new lease before it notices that the last had ended", name(host))
            }
            Self::Notice(host) => write!(f, "{}: notices that its clock stood still", name(host)),
            Self::Crash(host) => write!(f, "fault: {} crashes", name(host)),
            Self::Restart(host) => write!(f, "{}: starts again, as another incarnation", name(host)),
            Self::Start(host) => write!(f, "{}: starts an instance", name(host)),
            Self::Retire(host) => write!(f, "{}: retires its instance", name(host)),
            Self::Prepared(host) => write!(f, "{}: Prepared commits", name(host)),
            Self::Seal(host) => write!(f, "{}: closes its gate for the move", name(host)),
            Self::FinalPart(host, state) => {
                write!(f, "{}: sealed with {}; the final part is on its way", name(host), content(state))
            }
            Self::Install(host, state) => write!(f, "{}: installs {}, and answers", name(host), content(state)),
            Self::Answered(host) => write!(f, "{}: hears that the target has installed its state", name(host)),
            Self::ProposeHandover(host) => write!(f, "{}: proposes the Handover", name(host)),
            Self::CommitHandover { ready: false } => write!(f, "log: the Handover commits"),
            Self::CommitHandover { ready: true } => write!(f, "log: the Handover commits, and its target is active"),
            Self::Adopt(host) => write!(f, "{}: its instance is the owner's from now on", name(host)),
            Self::Activated(host) => write!(f, "{}: Activated commits", name(host)),
            Self::DecideToOpen(host) => write!(f, "{}: decides to open its gate", name(host)),
            Self::Open(host) => write!(f, "{}: opens its gate", name(host)),
            Self::Admit(call, host) => write!(f, "call {}: is admitted by {}", call + 1, name(host)),
            Self::Apply(call, host) => write!(f, "call {}: has its effect at {}", call + 1, name(host)),
            Self::StoreRefuses(call, host) => {
                write!(f, "call {}: the store refuses what it writes at {}", call + 1, name(host))
            }
            Self::ReplyLeaves(call, host) => write!(f, "call {}: its reply leaves {}", call + 1, name(host)),
            Self::ReplyStopped(call, host) => {
                write!(f, "call {}: {} has lost the lease since, and answers `unknown`", call + 1, name(host))
            }
            Self::Cut(call, host) => {
                write!(f, "call {}: {} drains no longer, and answers `unknown`", call + 1, name(host))
            }
            Self::Accept(call) => write!(f, "call {}: its caller takes the answer", call + 1),
            Self::Refuse(call) => write!(f, "call {}: its caller knows of a take-over since: `unknown`", call + 1),
            Self::ReplyLost(call) => write!(f, "fault: the reply of call {} is lost", call + 1),
            Self::Retry(call) => write!(f, "call {}: its caller tries it again", call + 1),
            Self::CallerLearns => write!(f, "the caller applies the log"),
        }
    }
}

/// A record, on one line.
#[derive(Debug)]
pub(crate) struct Line<'a>(pub(crate) &'a Record);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { version, epoch, fence, owner, active, moving, seal } = self.0;
        if *version > 0 {
            write!(f, "v{version} ")?;
        }
        write!(f, "epoch {epoch}")?;
        if *fence > 0 {
            write!(f, " fence {fence}")?;
        }
        if let Some(owner) = owner {
            write!(f, " owner {}{}", name(owner.host), owner.generation)?;
        }
        if *active && *version > 0 {
            f.write_str(" active")?;
        }
        if let Some(moving) = moving {
            let prepared = if moving.prepared { ", prepared" } else { "" };
            write!(f, " moving to {}{}{prepared}", name(moving.to.host), moving.to.generation)?;
        }
        if let Some(seal) = seal {
            write!(f, " seal {} of {}{}", content(seal.digest), name(seal.from.host), seal.from.generation)?;
        }
        Ok(())
    }
}
