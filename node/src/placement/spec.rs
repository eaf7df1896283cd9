//! What people ask for: the kind, the count and the constraints of each module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::state::Declared;
use crate::id::{ModuleName, NodeId, Timestamp};

/// A placement document that was read and checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// What holds for modules that are not named, and for what a named one leaves open.
    pub(crate) default: Rules,
    pub(crate) modules: BTreeMap<ModuleName, Rules>,
}

/// What is asked for one module. What is left open comes from the default, and then from the module's registration. What
/// is given, even as an empty list, replaces what the default says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rules {
    pub(crate) kind: Option<KindName>,
    /// Of a replicated module.
    pub(crate) replicas: Option<Count>,
    /// Labels that a host must have.
    pub(crate) require: Option<BTreeMap<String, String>>,
    /// The label over whose values the hosts of a replicated module are spread evenly.
    pub(crate) spread: Option<String>,
    /// Modules that each of its hosts must host as well.
    pub(crate) with: Option<BTreeSet<ModuleName>>,
    /// Modules that none of its hosts may host. It holds both ways, whichever of the two says so.
    pub(crate) apart: Option<BTreeSet<ModuleName>>,
    /// Never in a default.
    pub(crate) pin: Option<Pin>,
}

/// A kind as it is asked for, without its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KindName {
    Exclusive,
    Replicated,
}

/// What becomes of a module's state when the module moves, and when its node crashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StateClass {
    /// There is none: the module may be started anywhere at any time.
    #[default]
    None,
    /// It travels with a move, and is lost in a crash.
    Ephemeral,
    /// The same, and a crash loses only what came after the last checkpoint.
    Checkpointed,
    /// The module keeps it in a store of its own, which a former owner can't write to.
    Durable,
    /// It can't travel: the module stays where it is. A class that only a newer version knows is treated so, too.
    #[serde(other)] // has to be the last
    Fixed,
}

impl StateClass {
    /// Whether two hosts would have two states.
    pub(crate) fn is_some(self) -> bool {
        self != Self::None
    }

    /// Whether a move first waits for the calls inside, and then hands over what they have left.
    pub(crate) fn travels(self) -> bool {
        matches!(self, Self::Ephemeral | Self::Checkpointed | Self::Durable)
    }

    /// The word for it, as people read it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ephemeral => "ephemeral",
            Self::Checkpointed => "checkpointed",
            Self::Durable => "durable",
            Self::Fixed => "fixed",
        }
    }
}

/// How many nodes host a module at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// One at a time: may hold state.
    Exclusive,
    /// Several: stateless, or synchronises itself.
    Replicated(Count),
}

/// How many nodes host a replicated module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Count {
    /// Every node that may.
    Every,
    /// So many, at least 1.
    Exactly(u16),
}

/// A module that is bound to one node, until somebody says otherwise or the pin expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) node: NodeId,
    pub(crate) reason: String,
    pub(crate) expires: Option<Timestamp>,
}

/// The rules that hold for one module, whoever gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effective {
    pub(crate) kind: Kind,
    pub(crate) require: BTreeMap<String, String>,
    /// Only of a replicated module.
    pub(crate) spread: Option<String>,
    pub(crate) with: BTreeSet<ModuleName>,
    pub(crate) apart: BTreeSet<ModuleName>,
    /// One that has not expired.
    pub(crate) pin: Option<Pin>,
    pub(crate) origins: Origins,
}

/// Who gave each rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origins {
    pub(crate) kind: Origin,
    pub(crate) replicas: Origin,
    pub(crate) require: Origin,
    pub(crate) spread: Origin,
    pub(crate) with: Origin,
    pub(crate) apart: Origin,
    /// The spec asks for a replicated module, which one that declares state can't be.
    pub(crate) kept_exclusive: bool,
    pub(crate) expired_pin: Option<Pin>,
}

/// Who gave a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The module's registration in the program.
    Registration,
    /// `[default]` of the spec.
    Default,
    /// The module's own table in the spec.
    Module,
}

impl Spec {
    /// The rules that hold for a module now.
    pub(crate) fn effective(&self, module: &ModuleName, declared: &Declared, now: Timestamp) -> Effective {
        static NONE: Rules =
            Rules { kind: None, replicas: None, require: None, spread: None, with: None, apart: None, pin: None };
        let own = self.modules.get(module).unwrap_or(&NONE);
        let default = &self.default;

        let (asked, kind_from) = pick(own.kind.as_ref(), default.kind.as_ref());
        let registered = match declared.kind {
            Kind::Exclusive => KindName::Exclusive,
            Kind::Replicated(_) => KindName::Replicated,
        };
        let asked = asked.copied().unwrap_or(registered);
        let kept_exclusive = declared.state.is_some() && asked == KindName::Replicated;
        let (count, replicas_from) = pick(own.replicas.as_ref(), default.replicas.as_ref());
        let count = count.copied().unwrap_or(match declared.kind {
            Kind::Replicated(count) => count,
            Kind::Exclusive => Count::Every,
        });
        let kind = match asked {
            KindName::Replicated if !declared.state.is_some() => Kind::Replicated(count),
            KindName::Replicated | KindName::Exclusive => Kind::Exclusive,
        };

        let (require, require_from) = pick(own.require.as_ref(), default.require.as_ref());
        let (spread, spread_from) = pick(own.spread.as_ref(), default.spread.as_ref());
        let (with, with_from) = pick(own.with.as_ref(), default.with.as_ref());
        let (apart, apart_from) = pick(own.apart.as_ref(), default.apart.as_ref());
        let others = |modules: Option<&BTreeSet<ModuleName>>| {
            modules.into_iter().flatten().filter(|other| *other != module).cloned().collect()
        };
        let (pin, expired_pin) = match &own.pin {
            Some(pin) if pin.holds(now) => (Some(pin.clone()), None),
            pin => (None, pin.clone()),
        };
        Effective {
            kind,
            require: require.cloned().unwrap_or_default(),
            spread: spread.filter(|_| kind != Kind::Exclusive).cloned(),
            with: others(with),
            apart: others(apart),
            pin,
            origins: Origins {
                kind: kind_from,
                replicas: replicas_from,
                require: require_from,
                spread: spread_from,
                with: with_from,
                apart: apart_from,
                kept_exclusive,
                expired_pin,
            },
        }
    }
}

/// What the module says, or else the default.
fn pick<'a, T>(own: Option<&'a T>, default: Option<&'a T>) -> (Option<&'a T>, Origin) {
    match (own, default) {
        (Some(own), _) => (Some(own), Origin::Module),
        (None, Some(default)) => (Some(default), Origin::Default),
        (None, None) => (None, Origin::Registration),
    }
}

impl Effective {
    /// Each rule that holds, and who gave it: `kind = exclusive (registration)`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let from = &self.origins;
        let mut lines = vec![match (self.kind, from.kept_exclusive) {
            (_, true) => format!("kind = exclusive (registration: it declares state; {} asks in vain)", from.kind),
            (Kind::Exclusive, _) => format!("kind = exclusive ({})", from.kind),
            (Kind::Replicated(_), _) => format!("kind = replicated ({})", from.kind),
        }];
        if let Kind::Replicated(count) = self.kind {
            lines.push(format!("replicas = {count} ({})", from.replicas));
        }
        for (label, value) in &self.require {
            lines.push(format!("require {label} = {value} ({})", from.require));
        }
        if let Some(label) = &self.spread {
            lines.push(format!("spread over {label} ({})", from.spread));
        }
        for (rule, modules, from) in [("with", &self.with, from.with), ("apart from", &self.apart, from.apart)] {
            if !modules.is_empty() {
                let modules: Vec<&str> = modules.iter().map(ModuleName::as_str).collect();
                lines.push(format!("{rule} {} ({from})", modules.join(", ")));
            }
        }
        if let Some(pin) = &self.pin {
            lines.push(format!("pin = {pin} (module)"));
        }
        if let Some(pin) = &from.expired_pin {
            lines.push(format!("pin = {pin} (module; it has expired, and does not hold)"));
        }
        lines
    }
}

impl Pin {
    /// Whether it has not expired.
    pub(crate) fn holds(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, \"{}\"", self.node, self.reason)?;
        if let Some(expires) = self.expires {
            write!(f, ", until {expires}")?;
        }
        Ok(())
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Replicated => "replicated",
        })
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("every"),
            Self::Exactly(count) => count.fmt(f),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registration => "registration",
            Self::Default => "default",
            Self::Module => "module",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(kind: Kind, stateful: bool) -> Declared {
        let state = if stateful { StateClass::Fixed } else { StateClass::None };
        Declared { kind, state, services: Vec::new(), interface: None }
    }

    fn module(name: &str) -> ModuleName {
        ModuleName::parse(name).unwrap()
    }

    #[test]
    fn what_a_module_leaves_open_comes_from_the_default_and_then_from_the_registration() {
        let mut spec = Spec::default();
        let plain = declared(Kind::Exclusive, false);
        let of = |spec: &Spec| spec.effective(&module("cart"), &plain, Timestamp(0)).lines();
        assert_eq!(of(&spec), ["kind = exclusive (registration)"]);
        spec.default.kind = Some(KindName::Replicated);
        spec.default.require = Some([("zone".to_owned(), "a".to_owned())].into());
        assert_eq!(
            of(&spec),
            ["kind = replicated (default)", "replicas = every (registration)", "require zone = a (default)"]
        );
        let own = Rules { replicas: Some(Count::Exactly(2)), require: Some(BTreeMap::new()), ..Rules::default() };
        spec.modules.insert(module("cart"), own);
        assert_eq!(of(&spec), ["kind = replicated (default)", "replicas = 2 (module)"]);
    }

    #[test]
    fn a_module_that_declares_state_is_exclusive_whatever_is_asked() {
        let mut spec = Spec::default();
        spec.default.kind = Some(KindName::Replicated);
        let effective = spec.effective(&module("cart"), &declared(Kind::Exclusive, true), Timestamp(0));
        assert_eq!(effective.kind, Kind::Exclusive);
        assert_eq!(effective.lines(), ["kind = exclusive (registration: it declares state; default asks in vain)"]);
    }

    #[test]
    fn a_pin_holds_until_it_expires() {
        let node = NodeId::parse("node-2").unwrap();
        let pin = Pin { node, reason: "local GPU".into(), expires: Some(Timestamp(1000)) };
        let rules = Rules { pin: Some(pin), ..Rules::default() };
        let spec = Spec { modules: [(module("cart"), rules)].into(), ..Spec::default() };
        let plain = declared(Kind::Exclusive, false);
        assert!(spec.effective(&module("cart"), &plain, Timestamp(999)).pin.is_some());
        let after = spec.effective(&module("cart"), &plain, Timestamp(1000));
        assert_eq!(after.pin, None);
        let line =
            "pin = node-2, \"local GPU\", until 1970-01-01T00:00:01Z (module; it has expired, and does not hold)";
        assert_eq!(after.lines()[1], line);
    }
}
