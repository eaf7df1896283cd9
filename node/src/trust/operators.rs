//! Who may run the cluster, and how far: a file of operators. Pure.
//!
//! ```toml
//! [alice]                       # the name in her certificate: .../operator/alice
//! scope = "admin"
//!
//! [deploy]
//! scope = "operate"
//! modules = ["cart", "catalog"] # of others it may only read
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::id::ModuleName;

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// See everything.
    Read,
    /// Move modules, scale and pin them; drain, cordon and uncordon nodes.
    Operate,
    /// Change the placement as a whole, the voters, and which nodes there are.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        })
    }
}

impl Scope {
    /// What a method of the operator's API needs. One that is not known here needs the most.
    pub(crate) fn of_method(method: &str) -> Self {
        match method {
            "Describe" | "Watch" | "Explain" | "Events" | "Plan" | "History" | "Audit" => Self::Read,
            "Move" | "AbortMove" | "Scale" | "Pin" | "Unpin" | "Drain" | "Cordon" => Self::Operate,
            _ => Self::Admin,
        }
    }
}

/// What one operator may.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rights {
    scope: Scope,
    /// The modules that it may change; all, where this is not said.
    modules: Option<BTreeSet<ModuleName>>,
}

/// All operators of a file, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operators(BTreeMap<String, Rights>);

/// Somebody who asks a node, as far as that knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operator {
    /// None where nobody has to say who it is.
    pub(crate) name: Option<String>,
    /// Where the connection is from.
    pub(crate) from: String,
    rights: Rights,
}

/// What somebody may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("operator `{0}` is not among those that may ask here (`admin.operators`)")]
    Unknown(String),
    #[error("operator `{name}` has scope `{has}`, and this needs `{needs}`")]
    Scope { name: String, has: Scope, needs: Scope },
    #[error("operator `{name}` may not change module `{module}`, only {}", list(.only))]
    Module { name: String, module: ModuleName, only: BTreeSet<ModuleName> },
    #[error("operator `{name}` may only change {}, and this concerns more than that", list(.only))]
    Wide { name: String, only: BTreeSet<ModuleName> },
}

fn list(modules: &BTreeSet<ModuleName>) -> String {
    if modules.is_empty() {
        return "none".to_owned();
    }
    modules.iter().map(ModuleName::as_str).collect::<Vec<_>>().join(", ")
}

const ALL: Rights = Rights { scope: Scope::Admin, modules: None };

impl Operators {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map(Self).map_err(|error| error.to_string().trim_end().to_owned())
    }
}

impl Operator {
    /// Somebody where nobody has to say who it is.
    pub(crate) fn anyone(from: String) -> Self {
        Self { name: None, from, rights: ALL }
    }

    /// Who a certificate says it is; where there is no list of operators, every certificate of one is good for everything.
    ///
    /// # Errors
    /// One that is not in the list.
    pub(crate) fn named(name: &str, from: String, known: Option<&Operators>) -> Result<Self, Forbidden> {
        let rights = match known {
            None => ALL,
            Some(Operators(known)) => known.get(name).cloned().ok_or_else(|| Forbidden::Unknown(name.to_owned()))?,
        };
        Ok(Self { name: Some(name.to_owned()), from, rights })
    }

    fn name(&self) -> String {
        self.name.clone().unwrap_or_default()
    }

    /// Whether a method may be called at all.
    ///
    /// # Errors
    /// Too small a scope.
    pub(crate) fn may_call(&self, method: &str) -> Result<(), Forbidden> {
        let needs = Scope::of_method(method);
        match self.rights.scope >= needs {
            true => Ok(()),
            false => Err(Forbidden::Scope { name: self.name(), has: self.rights.scope, needs }),
        }
    }

    /// Whether a module may be changed.
    ///
    /// # Errors
    /// Where it may change others only.
    pub(crate) fn may_change(&self, module: &ModuleName) -> Result<(), Forbidden> {
        match &self.rights.modules {
            Some(only) if !only.contains(module) => {
                Err(Forbidden::Module { name: self.name(), module: module.clone(), only: only.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether something may be changed that concerns all modules: a node, the placement as a whole.
    ///
    /// # Errors
    /// Where it may change some modules only.
    pub(crate) fn may_change_all(&self) -> Result<(), Forbidden> {
        match &self.rights.modules {
            None => Ok(()),
            Some(only) => Err(Forbidden::Wide { name: self.name(), only: only.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
        [alice]
        scope = \"admin\"
        [deploy]
        scope = \"operate\"
        modules = [\"cart\"]
        [viewer]
        scope = \"read\"
    ";

    fn operator(name: &str) -> Result<Operator, Forbidden> {
        Operator::named(name, "127.0.0.1:1".to_owned(), Some(&Operators::parse(FILE).unwrap()))
    }

    fn module(name: &str) -> ModuleName {
        ModuleName::parse(name).unwrap()
    }

    #[test]
    fn each_may_what_its_scope_says() {
        let all = ["Watch", "Plan", "Move", "Drain", "Apply", "Forget", "SetVoters", "Rollback", "Unheard"];
        let may = |name: &str| {
            let operator = operator(name).unwrap();
            all.iter().filter(|method| operator.may_call(method).is_ok()).count()
        };
        assert_eq!((may("viewer"), may("deploy"), may("alice")), (2, 4, all.len()));
        assert_eq!(operator("mallory"), Err(Forbidden::Unknown("mallory".to_owned())));
    }

    #[test]
    fn some_may_change_only_their_modules() {
        let deploy = operator("deploy").unwrap();
        assert_eq!(deploy.may_change(&module("cart")), Ok(()));
        let refused = deploy.may_change(&module("payment")).unwrap_err().to_string();
        assert!(refused.contains("`deploy`") && refused.contains("`payment`") && refused.contains("cart"), "{refused}");
        assert!(deploy.may_change_all().is_err());
        let none = Operators::parse("[x]\nscope = \"operate\"\nmodules = []").unwrap();
        let none = Operator::named("x", String::new(), Some(&none)).unwrap();
        assert!(none.may_change(&module("cart")).is_err(), "no module is not all of them");
        let alice = operator("alice").unwrap();
        assert_eq!((alice.may_change(&module("payment")), alice.may_change_all()), (Ok(()), Ok(())));
    }

    #[test]
    fn without_a_list_an_operators_certificate_is_good_for_everything() {
        let named = Operator::named("eve", String::new(), None).unwrap();
        assert_eq!(named.may_call("Forget"), Ok(()));
        assert_eq!(Operator::anyone(String::new()).may_call("Forget"), Ok(()));
    }

    #[test]
    fn a_file_with_faults_says_where() {
        for (text, part) in [
            ("[alice]\nscope = \"root\"", "line 2"),
            ("[alice]\nscope = \"read\"\nmodule = [\"cart\"]", "line 3"),
            ("[alice]\nscope = \"read\"\nmodules = [\"Cart!\"]", "Cart!"),
            ("[alice]", "scope"),
            ("alice", "line 1"),
        ] {
            let error = Operators::parse(text).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
