//! What a host does about its instance, as the node's handoff core decides it.

use super::{Class, Next, Protocol, believes, changed, end_instance, index};
use crate::{
    rule::Rule,
    step::Step,
    world::{
        Broken, Call, HostId, Incarnation, Instance, Message, Move, Phase, Proposal, Record, Seal, Stage, World, put,
    },
};

impl Protocol {
    pub(super) fn is_mine(&self, record: &Record, me: Incarnation) -> bool {
        match record.owner {
            Some(owner) if self.has(Rule::OwnerIsIncarnation) => owner == me,
            Some(owner) => owner.host == me.host,
            None => false,
        }
    }

    /// Whether an instance is the sealed one that the record speaks of.
    pub(super) fn is_sealed_for(&self, record: &Record, me: Incarnation, instance: &Instance) -> bool {
        matches!(instance.phase, Phase::Sealed { .. })
            && self.has(Rule::SourceKeepsSealed)
            && record.seal == Some(Seal { digest: instance.content, from: me })
    }

    /// Whether the record has a use for an instance.
    pub(super) fn is_wanted(&self, record: &Record, me: Incarnation, instance: &Instance) -> bool {
        let mine = self.is_mine(record, me);
        // A source that has seen the handover knows that its instance is not one of an older epoch, but the sealed one.
        let skipped = mine && !instance.given;
        if self.is_sealed_for(record, me, instance) && (!skipped || self.has(Rule::KeptWhenSkipped)) {
            return true;
        }
        if mine && instance.epoch == 0 {
            return record.seal.is_some() || !instance.installed || !self.has(Rule::FreshWithoutSeal);
        }
        if mine {
            return instance.epoch == record.epoch || !self.has(Rule::EpochDecides);
        }
        let moving = record.moving.filter(|moving| moving.to == me);
        instance.epoch == 0 && moving.is_some_and(|moving| moving.id == instance.of)
    }

    pub(super) fn core(&self, world: &World, id: HostId, next: &mut Next) {
        let host = &world.hosts[index(id)];
        let (record, me) = (&host.view, world.incarnation(id));
        let (mine, to_me) = (self.is_mine(record, me), record.moving.filter(|moving| moving.to == me));
        let mut go = |step, change: &dyn Fn(&mut World)| next.push(changed(world, step, change));
        let Some(instance) = host.instance else {
            if mine || to_me.is_some() {
                go(Step::Start(id), &|new| {
                    let of = to_me.map_or(0, |moving| moving.id);
                    // A factory may read what its module wrote elsewhere.
                    let content = if self.class == Class::Durable { new.store.content } else { 0 };
                    let (phase, epoch, fence, installed, term) = (Phase::Ready, 0, 0, false, false);
                    new.hosts[index(id)].instance =
                        Some(Instance { phase, epoch, fence, content, installed, given: false, of, term });
                });
            }
            return;
        };
        if instance.phase == Phase::Opening {
            // What was decided is carried out, whatever the node has learned meanwhile.
            return go(Step::Open(id), &|new| {
                if let Some(instance) = &mut new.hosts[index(id)].instance {
                    instance.phase = Phase::Serving;
                    if !self.has(Rule::OpenInDecidedTerm) {
                        instance.term = believes(host.lease);
                    }
                }
            });
        }
        if !self.is_wanted(record, me, &instance) {
            return go(Step::Retire(id), &|new| end_instance(new, id, self.carried()));
        }
        let current = record.version == world.log.version;
        if let Some(moving) = to_me {
            if instance.epoch == 0 && !moving.prepared && current {
                go(Step::Prepared(id), &|new| {
                    new.log.version += 1;
                    new.log.moving = Some(Move { prepared: true, ..moving });
                });
            }
            self.install(world, id, &instance, next);
            return;
        }
        self.install(world, id, &instance, next);
        if !mine {
            return;
        }
        if instance.epoch != record.epoch
            && self.may_adopt(record, me, &instance)
            && (self.class != Class::Durable || world.store.fence <= record.epoch)
        {
            next.push(changed(world, Step::Adopt(id), &|new| self.adopt(new, id)));
        }
        if instance.epoch == record.epoch && (!record.active || record.seal.is_some()) && current {
            next.push(changed(world, Step::Activated(id), &|new| {
                let version = new.log.version + 1;
                new.log = Record { version, active: true, seal: None, ..new.log };
            }));
        }
        if instance.epoch == record.epoch || (instance.epoch > 0 && !self.has(Rule::EpochDecides)) {
            self.own(world, id, &instance, next);
        }
    }

    /// A final part, or the word that it was installed, has come.
    pub(super) fn install(&self, world: &World, id: HostId, instance: &Instance, next: &mut Next) {
        let me = world.incarnation(id);
        for (slot, message) in world.messages.iter().enumerate() {
            let Some(message) = message.filter(|message| message.to == me) else { continue };
            let taken = match instance.phase {
                Phase::Ready if !message.answer && instance.epoch == 0 => {
                    if message.of != instance.of && self.has(Rule::TransferOfThisMove) {
                        continue;
                    }
                    changed(world, Step::Install(id, message.content), &|new| {
                        if let Some(instance) = &mut new.hosts[index(id)].instance {
                            (instance.content, instance.installed) = (message.content, true);
                        }
                        new.messages[slot] = None;
                        put(&mut new.messages, Message { from: me, to: message.from, answer: true, ..message });
                    })
                }
                Phase::Sealed { at, answered: false } if message.answer && message.content == instance.content => {
                    let this = world.hosts[index(id)].view.moving.is_some_and(|moving| moving.id == message.of);
                    if !this && self.has(Rule::AnswerOfThisMove) {
                        continue;
                    }
                    changed(world, Step::Answered(id), &|new| {
                        if let Some(instance) = &mut new.hosts[index(id)].instance {
                            instance.phase = Phase::Sealed { at, answered: true };
                        }
                        new.messages[slot] = None;
                    })
                }
                _ => continue,
            };
            next.push(taken);
        }
    }

    /// Whether an owner's instance has what the record says.
    pub(super) fn may_adopt(&self, record: &Record, me: Incarnation, instance: &Instance) -> bool {
        match record.seal {
            None => instance.epoch == 0,
            Some(_) if self.is_sealed_for(record, me, instance) => true,
            Some(_) if !self.has(Rule::DigestAtOpen) => instance.epoch == 0,
            Some(seal) => instance.epoch == 0 && instance.installed && instance.content == seal.digest,
        }
    }

    /// The instance becomes the owner's.
    pub(super) fn adopt(&self, world: &mut World, id: HostId) {
        let host = &mut world.hosts[index(id)];
        let Some(instance) = &mut host.instance else { return };
        let named = host.view.seal.map(|seal| seal.digest);
        let other = match named {
            Some(digest) => instance.content != digest,
            None => instance.installed,
        };
        if other && self.class == Class::Ephemeral {
            world.broken = Some(Broken::OtherContent);
        }
        let (epoch, fence) = (host.view.epoch, host.view.fence);
        let (phase, installed, of) = (Phase::Ready, false, 0);
        *instance = Instance { phase, epoch, fence, installed, given: false, of, ..*instance };
        if self.class == Class::Durable {
            world.store.fence = world.store.fence.max(epoch);
            if self.has(Rule::ReadAfterFence) {
                instance.content = world.store.content;
            }
        }
    }

    /// What the owner does with an instance of the record's epoch.
    pub(super) fn own(&self, world: &World, id: HostId, instance: &Instance, next: &mut Next) {
        let host = &world.hosts[index(id)];
        let record = &host.view;
        let moving = record.moving.filter(|moving| moving.prepared);
        let mut go = |step, change: &dyn Fn(&mut Instance)| {
            next.push(changed(world, step, &|new| {
                if let Some(instance) = &mut new.hosts[index(id)].instance {
                    change(instance);
                }
            }));
        };
        match instance.phase {
            Phase::Serving | Phase::Ready if moving.is_some() => {
                go(Step::Seal(id), &|instance| instance.phase = Phase::Sealing);
            }
            _ => {}
        }
        let closed = match instance.phase {
            Phase::Ready => moving.is_none(),
            Phase::Sealing => moving.is_none(),
            Phase::Sealed { .. } => moving.is_none() || !self.has(Rule::ReopenOnlyOnAbort),
            Phase::Serving => moving.is_none() && !instance.term,
            Phase::Opening => false,
        };
        let active = record.active || record.seal.is_none() || !self.has(Rule::OpenAfterActivated);
        if closed && believes(host.lease) && active {
            next.push(changed(world, Step::DecideToOpen(id), &|new| {
                if let Some(instance) = &mut new.hosts[index(id)].instance {
                    // To open late makes a difference only to what is read late.
                    let at_once = self.has(Rule::OpenInDecidedTerm);
                    (instance.phase, instance.term) = (if at_once { Phase::Serving } else { Phase::Opening }, true);
                    if instance.epoch != record.epoch {
                        new.broken = Some(Broken::OtherContent);
                    }
                }
            }));
        }
        let Some(moving) = moving else { return };
        let (me, from) = (world.incarnation(id), world.incarnation(id));
        let inside = |call: &Call| {
            matches!(call.stage, Stage::Inside { host, .. } if host == id) && call.epoch == instance.epoch
        };
        let drained = !world.calls.iter().any(inside) || !self.has(Rule::DrainBeforeSeal);
        let handover = |digest| Proposal::Handover { expect: record.version, epoch: record.epoch, digest, from };
        match instance.phase {
            Phase::Sealing if !self.carried() && !world.proposals.contains(&Some(handover(0))) => {
                next.push(changed(world, Step::ProposeHandover(id), &|new| put(&mut new.proposals, handover(0))));
            }
            Phase::Sealing if self.carried() && drained => {
                next.push(changed(world, Step::FinalPart(id, instance.content), &|new| {
                    if let Some(instance) = &mut new.hosts[index(id)].instance {
                        instance.phase = Phase::Sealed { at: record.version, answered: false };
                    }
                    let content = instance.content;
                    let message = Message { from: me, to: moving.to, of: moving.id, content, answer: false };
                    put(&mut new.messages, message);
                }));
            }
            // Another move than the one it was sealed for.
            Phase::Sealed { at, .. } if at != record.version => {
                next.push(changed(world, Step::Seal(id), &|new| {
                    if let Some(instance) = &mut new.hosts[index(id)].instance {
                        instance.phase = Phase::Sealing;
                    }
                }));
            }
            Phase::Sealed { answered, .. } => {
                let proposal = handover(instance.content);
                if (answered || !self.has(Rule::AckBeforeHandover)) && !world.proposals.contains(&Some(proposal)) {
                    next.push(changed(world, Step::ProposeHandover(id), &|new| put(&mut new.proposals, proposal)));
                }
            }
            Phase::Ready | Phase::Opening | Phase::Serving | Phase::Sealing => {}
        }
    }
}
