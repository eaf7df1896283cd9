//! Calls, from the gate to the caller.

use super::{Class, Next, Protocol, believes, changed, index, over};
use crate::{
    rule::Rule,
    step::Step,
    world::{Broken, Call, HOSTS, HostId, Instance, Phase, Stage, World},
};

impl Protocol {
    pub(super) fn call(&self, world: &World, number: usize, next: &mut Next) {
        let call = &world.calls[number];
        let effect = 1 << number;
        let mut go = |step, change: &dyn Fn(&mut World)| next.push(changed(world, step, change));
        match call.stage {
            Stage::New => {
                for id in (0..HOSTS as HostId).filter(|host| self.admits(world, *host)) {
                    go(Step::Admit(number, id), &|new| {
                        let Some(Instance { epoch, fence, term, .. }) = new.hosts[index(id)].instance else { return };
                        let stage = Stage::Inside { host: id, applied: !self.carried(), term };
                        new.calls[number] = Call { stage, epoch, fence, ..*call };
                    });
                }
            }
            Stage::Inside { host: id, applied: false, term } => {
                let instance = world.hosts[index(id)].instance.filter(|instance| instance.epoch == call.epoch);
                let durable = self.class == Class::Durable;
                if durable && world.store.fence > call.epoch && self.has(Rule::StoreFence) {
                    go(Step::StoreRefuses(number, id), &|new| new.calls[number].stage = Stage::Over);
                } else if let Some(instance) = instance {
                    go(Step::Apply(number, id), &|new| {
                        let content = instance.content | effect;
                        if let Some(instance) = &mut new.hosts[index(id)].instance {
                            instance.content = content;
                        }
                        if durable {
                            if new.store.fence > call.epoch {
                                new.broken = Some(Broken::WriteBelowFence);
                            }
                            // It writes all that it believes to be there.
                            new.store.content = content;
                        }
                        if call.applied {
                            new.broken = Some(Broken::CallTwice);
                        }
                        new.calls[number].stage = Stage::Inside { host: id, applied: true, term };
                        new.calls[number].applied = true;
                    });
                }
            }
            Stage::Inside { host: id, applied: true, term } => {
                let lease = believes(world.hosts[index(id)].lease) || !self.has(Rule::LeaseAtReply);
                let term = term || !self.has(Rule::TermAtReply) || !self.has(Rule::LeaseAtReply);
                if lease && term {
                    go(Step::ReplyLeaves(number, id), &|new| {
                        new.calls[number].stage = Stage::Reply;
                        if self.carried() && self.trusts_clocks() && world.log.fence > call.epoch {
                            new.broken = Some(Broken::ReplyAfterTakeOver);
                        }
                    });
                } else {
                    go(Step::ReplyStopped(number, id), &|new| new.calls[number].stage = Stage::Over);
                }
            }
            Stage::Reply => {
                let late = call.fence < world.caller.known && self.has(Rule::FenceAtCaller);
                if late {
                    go(Step::Refuse(number), &|new| new.calls[number].stage = Stage::Over);
                } else {
                    go(Step::Accept(number), &|new| {
                        new.calls[number].stage = Stage::Answered;
                        if call.fence < new.caller.seen {
                            new.broken = Some(Broken::OlderAnswerAfterNewer);
                        }
                        new.caller.seen = new.caller.seen.max(call.fence);
                        if self.has(Rule::FenceInReply) {
                            new.caller.known = new.caller.known.max(call.fence);
                        }
                    });
                }
                if !self.has(Rule::RetryOnlyUnbegun) {
                    go(Step::ReplyLost(number), &|new| new.calls[number].stage = Stage::Over);
                }
            }
            Stage::Over if !self.has(Rule::RetryOnlyUnbegun) && !call.retried => {
                go(Step::Retry(number), &|new| {
                    (new.calls[number].stage, new.calls[number].retried) = (Stage::New, true);
                });
            }
            Stage::Answered | Stage::Over => {}
        }
        if let Stage::Inside { host: id, .. } = call.stage
            && self.carried()
            && world.hosts[index(id)].instance.is_some_and(|instance| instance.phase == Phase::Sealing)
        {
            go(Step::Cut(number, id), &|new| new.calls[number].stage = Stage::Over);
        }
        let waits = matches!(call.stage, Stage::New | Stage::Inside { .. } | Stage::Reply);
        if waits && world.caller.known < world.log.fence && world.calls[..number].iter().all(over) {
            go(Step::CallerLearns, &|new| new.caller.known = new.log.fence);
        }
    }
}
