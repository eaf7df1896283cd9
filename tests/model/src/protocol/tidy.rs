//! What makes no difference to anybody any more is made the same, so that there are fewer states.

use super::{Class, Protocol, index, over};
use crate::{
    rule::Rule,
    world::{HOSTS, Host, HostId, Incarnation, Instance, Lease, Message, Phase, Proposal, Record, Stage, World},
};

impl Protocol {
    pub(super) fn tidy(&self, world: &mut World) {
        let log = world.log;
        let in_force: [Incarnation; HOSTS] = std::array::from_fn(|host| world.incarnation(host as HostId));
        for proposal in &mut world.proposals {
            // It can only be refused: whether that is said now or later makes no difference.
            let vain = match proposal {
                Some(Proposal::Assign { leads: false, .. }) if self.has(Rule::TakeOverInTerm) => true,
                Some(Proposal::Assign { to, .. }) if in_force[index(to.host)] != *to => true,
                Some(Proposal::Assign { expect, .. } | Proposal::Handover { expect, .. }) => {
                    *expect != log.version && self.has(Rule::CasOnVersion)
                }
                None => false,
            };
            if vain {
                *proposal = None;
            }
        }
        for slot in 0..world.messages.len() {
            if let Some(message) = world.messages[slot]
                && self.is_lost(world, &message)
            {
                world.messages[slot] = None;
            }
        }
        world.messages.sort_unstable();
        world.proposals.sort_unstable();
        for id in 0..HOSTS as HostId {
            let me = world.incarnation(id);
            let host = &mut world.hosts[index(id)];
            host.heard |= self.has(Rule::NewLeaderWaits);
            if let Lease::Granted { must, .. } = &mut host.lease
                && host.view.version >= *must
            {
                *must = 0;
            }
            let busy = world.calls.iter().any(|call| matches!(call.stage, Stage::Inside { host, .. } if host == id));
            self.forget(host, me, &log, &world.messages, busy && self.carried());
            if let Some(instance) = &mut host.instance {
                instance.term &= matches!(instance.phase, Phase::Opening | Phase::Serving);
            }
        }
        for call in &mut world.calls {
            match call.stage {
                Stage::Answered if call.excused || !self.carried() => call.stage = Stage::Over,
                _ => {}
            }
            if matches!(call.stage, Stage::New | Stage::Answered | Stage::Over) {
                (call.epoch, call.fence, call.excused) = (0, 0, false);
            }
            call.applied &= !self.has(Rule::RetryOnlyUnbegun);
            // From here on it is only compared with fences, none of which is between the two.
            if call.stage == Stage::Reply || !self.carried() {
                call.epoch = call.fence;
            }
        }
        let news = world.calls.iter().any(|call| call.stage == Stage::New);
        let mut least = log.fence;
        for call in world.calls.iter().filter(|call| matches!(call.stage, Stage::Inside { .. } | Stage::Reply)) {
            least = least.min(call.fence);
        }
        for instance in world.hosts.iter_mut().filter_map(|host| host.instance.as_mut()) {
            if !news {
                instance.fence = 0;
            } else if instance.epoch > 0 {
                least = least.min(instance.fence);
            }
        }
        for fence in [&mut world.caller.known, &mut world.caller.seen] {
            if *fence <= least {
                *fence = 0;
            }
        }
        if world.calls.iter().all(over) {
            (world.caller.known, world.caller.seen) = (0, 0);
        }
        if self.class != Class::Durable {
            (world.store.fence, world.store.content) = (0, 0);
        }
    }

    /// What a host knows or has, and will never use, is dropped: then more states are the same.
    pub(super) fn forget(
        &self,
        host: &mut Host,
        me: Incarnation,
        log: &Record,
        messages: &[Option<Message>],
        busy: bool,
    ) {
        let view = &mut host.view;
        let stale = view.version != log.version;
        let to = |record: &Record| record.moving.filter(|moving| moving.to == me).map(|moving| moving.id);
        let (mine, to_me) = (self.is_mine(view, me), to(view));
        let from_me = view.seal.is_some_and(|seal| seal.from == me);
        if !host.up || !(mine || to_me.is_some() || from_me) {
            let version = if stale || !host.up { 0 } else { view.version };
            *view = Record { version, ..Record::default() };
            // Its gate is closed, and its host will not open it.
            let closed = |instance: &Instance| match instance.phase {
                Phase::Serving => !instance.term && self.has(Rule::TermAtAdmission) && self.has(Rule::LeaseAtAdmission),
                Phase::Opening => false,
                Phase::Ready | Phase::Sealing | Phase::Sealed { .. } => true,
            };
            if !busy && self.reduces() && host.instance.is_some_and(|instance| closed(&instance)) {
                host.instance = None;
            }
        } else if !mine && !from_me {
            *view = Record { version: view.version, moving: view.moving, ..Record::default() };
            // The move is over, and was not made: an instance for it is good for nothing but to be retired.
            let over = stale && log.owner != Some(me) && to(log) != to_me;
            let expected = messages.iter().flatten().any(|message| message.to == me);
            let idle = host.instance.is_none_or(|instance| {
                instance.epoch == 0 && (!instance.installed || self.has(Rule::FreshWithoutSeal))
            });
            if over && idle && !expected && self.reduce {
                (host.view, host.instance) = (Record::default(), None);
            }
        } else if mine {
            view.moving = view.moving.filter(|moving| moving.prepared);
            if host.instance.is_some_and(|instance| instance.epoch == view.epoch) {
                view.fence = 0;
            }
            view.active |= stale && view.seal.is_none();
            // It gave the part away, and closed its gate for that.
            let given = stale && view.moving.is_some() && log.owner != Some(me);
            let kept = log.seal.is_some_and(|seal| seal.from == me) || to(log).is_some();
            let sealed = |instance: Instance| matches!(instance.phase, Phase::Sealing | Phase::Sealed { .. });
            if given && !kept && !busy && self.reduces() && host.instance.is_none_or(sealed) {
                (host.view, host.instance) = (Record::default(), None);
            }
        }
        let view = &mut host.view;
        if stale && self.has(Rule::CasOnVersion) && self.reduce {
            match host.instance.as_mut().map(|instance| &mut instance.phase) {
                Some(Phase::Sealed { at, .. }) if *at == view.version => (*at, view.version) = (0, 0),
                Some(Phase::Sealed { .. }) => {}
                _ => view.version = 0,
            }
        }
    }

    /// Whether a message will never be read.
    pub(super) fn is_lost(&self, world: &World, message: &Message) -> bool {
        if !world.runs(message.from) || !world.runs(message.to) {
            return true;
        }
        let host = &world.hosts[index(message.to.host)];
        let Some(instance) = host.instance else { return true };
        if message.answer {
            let this = host.view.moving.is_some_and(|moving| moving.id == message.of);
            return !this && self.has(Rule::AnswerOfThisMove);
        }
        (instance.epoch != 0 || instance.of != message.of) && self.has(Rule::TransferOfThisMove)
    }
}
