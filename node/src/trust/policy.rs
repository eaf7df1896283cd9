//! Who may call what: a file of modules. Pure.
//!
//! ```toml
//! [orders]                                   # a module
//! clients = ["token"]                        # who may call it from outside
//! modules = ["checkout"]                     # of the modules that depend on it, those which may
//!
//! [orders.methods."shop.v1.Orders/Refund"]   # for one method, in place of that
//! clients = ["scope:refunds", "certificate:spiffe://example.org/backoffice/*"]
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::client::Client;
use crate::id::ModuleName;

/// Some clients, as a policy names them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Who {
    /// Everybody, whether they show something or not.
    Anyone,
    /// Who shows a token; that of one subject, where one is named.
    Token(Option<Name>),
    /// Who shows a token that is good for something.
    Scope(Name),
    /// Who shows a certificate; one for a name, where one is named.
    Certificate(Option<Name>),
}

/// A name, or all that begin alike: `spiffe://example.org/web/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    text: String,
    begins: bool,
}

impl Name {
    fn parse(text: &str) -> Result<Self, String> {
        let (begin, begins) = text.strip_suffix('*').map_or((text, false), |begin| (begin, true));
        if begin.contains('*') {
            return Err(format!("`{text}`: a `*` can only be at the end"));
        }
        if begin.is_empty() {
            return Err("a name is missing after the colon".to_owned());
        }
        Ok(Self { text: begin.to_owned(), begins })
    }

    fn is(&self, name: &str) -> bool {
        if self.begins { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl TryFrom<String> for Who {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, name) = text.split_once(':').map_or((&*text, None), |(kind, name)| (kind, Some(name)));
        let name = name.map(Name::parse).transpose()?;
        match (kind, name) {
            ("anyone", None) => Ok(Self::Anyone),
            ("token", name) => Ok(Self::Token(name)),
            ("scope", Some(name)) => Ok(Self::Scope(name)),
            ("certificate", name) => Ok(Self::Certificate(name)),
            _ => Err(format!(
                "`{text}` names no clients; write anyone, token, token:SUBJECT, scope:NAME, certificate or \
                 certificate:NAME"
            )),
        }
    }
}

impl Who {
    fn includes(&self, client: Option<&Client>) -> bool {
        let fits = |name: &Option<Name>, shown: &str| name.as_ref().is_none_or(|name| name.is(shown));
        let token = client.and_then(Client::token);
        match self {
            Self::Anyone => true,
            Self::Token(name) => token.is_some_and(|token| fits(name, token.subject())),
            Self::Scope(name) => token.is_some_and(|token| token.scopes().iter().any(|scope| name.is(scope))),
            Self::Certificate(name) => client.and_then(Client::certificate).is_some_and(|shown| fits(name, shown)),
        }
    }
}

/// What is said of a module, or of one of its methods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Callers {
    /// None, where the module itself says it.
    clients: Option<Vec<Who>>,
    /// None is all that depend on it.
    modules: Option<BTreeSet<ModuleName>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    clients: Option<Vec<Who>>,
    modules: Option<BTreeSet<ModuleName>>,
    /// By `package.Service/Method`.
    #[serde(default)]
    methods: BTreeMap<Method, Callers>,
}

/// A method's path, without the slash that it begins with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Method(String);

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some((service, method)) if !service.is_empty() && !method.is_empty() && !method.contains('/') => {
                Ok(Self(text))
            }
            _ => Err(format!("`{text}` is no method; write package.Service/Method")),
        }
    }
}

/// All that a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    modules: HashMap<ModuleName, Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    all: Callers,
    /// By path. What a method does not say, the module does.
    methods: HashMap<String, Callers>,
}

/// What a policy says of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Admitted,
    /// It has shown nothing, and something is asked for.
    Nameless,
    Refused,
    /// The policy does not say: the module does.
    Unsaid,
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let read: BTreeMap<ModuleName, Rules> =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let rule = |Rules { clients, modules, methods }| {
            let all = Callers { clients, modules };
            let methods = methods.into_iter().map(|(Method(method), said)| {
                let clients = said.clients.or_else(|| all.clients.clone());
                let modules = said.modules.or_else(|| all.modules.clone());
                (format!("/{method}"), Callers { clients, modules })
            });
            Rule { methods: methods.collect(), all }
        };
        Ok(Self { modules: read.into_iter().map(|(module, rules)| (module, rule(rules))).collect() })
    }

    /// The modules that it speaks of: those that are called, and those that call.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &ModuleName> {
        let callers = self.rules().filter_map(|callers| callers.modules.as_ref()).flatten();
        self.modules.keys().chain(callers)
    }

    fn rules(&self) -> impl Iterator<Item = &Callers> {
        self.modules.values().flat_map(|rule| rule.methods.values().chain([&rule.all]))
    }

    /// Whether some clients are admitted by a token only.
    pub(crate) fn asks_for_tokens(&self) -> bool {
        self.names(|who| matches!(who, Who::Token(_) | Who::Scope(_)))
    }

    /// Whether some clients are admitted by a certificate only.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.names(|who| matches!(who, Who::Certificate(_)))
    }

    fn names(&self, which: impl Fn(&Who) -> bool) -> bool {
        self.rules().filter_map(|callers| callers.clients.as_ref()).flatten().any(which)
    }

    /// The services of a module that it speaks of.
    pub(crate) fn services(&self, module: &ModuleName) -> impl Iterator<Item = &str> {
        let methods = self.modules.get(module).into_iter().flat_map(|rule| rule.methods.keys());
        methods.filter_map(|path| path.strip_prefix('/')?.rsplit_once('/')).map(|(service, _)| service)
    }

    /// Whether it admits some client to something of a module; `None` where it does not say.
    pub(crate) fn exposes(&self, module: &ModuleName) -> Option<bool> {
        let rule = self.modules.get(module)?;
        let said = rule.methods.values().chain([&rule.all]).filter_map(|callers| callers.clients.as_ref());
        said.map(|clients| !clients.is_empty()).reduce(|some, more| some || more)
    }

    fn of(&self, module: &ModuleName, path: &str) -> Option<&Callers> {
        let rule = self.modules.get(module)?;
        Some(rule.methods.get(path).unwrap_or(&rule.all))
    }

    /// Whether a client may call a method.
    pub(crate) fn client(&self, module: &ModuleName, path: &str, client: Option<&Client>) -> Verdict {
        match self.of(module, path).and_then(|callers| callers.clients.as_ref()) {
            None => Verdict::Unsaid,
            Some(clients) if clients.iter().any(|who| who.includes(client)) => Verdict::Admitted,
            Some(clients) if client.is_none() && !clients.is_empty() => Verdict::Nameless,
            Some(_) => Verdict::Refused,
        }
    }

    /// Whether a module that depends on another one may call all of its methods.
    pub(crate) fn admits_to_all(&self, from: &ModuleName, module: &ModuleName) -> bool {
        let admits = |callers: &Callers| callers.modules.as_ref().is_none_or(|modules| modules.contains(from));
        let rule = self.modules.get(module);
        from == module || rule.is_none_or(|rule| rule.methods.values().chain([&rule.all]).all(admits))
    }

    /// Whether a module that depends on another one may call a method of it. A module may always call itself.
    pub(crate) fn admits(&self, from: &ModuleName, module: &ModuleName, path: &str) -> bool {
        let modules = self.of(module, path).and_then(|callers| callers.modules.as_ref());
        from == module || modules.is_none_or(|modules| modules.contains(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Token;

    const FILE: &str = r#"
        [orders]
        clients = ["token"]
        modules = ["checkout"]

        [orders.methods."shop.v1.Orders/Refund"]
        clients = ["scope:refunds", "certificate:spiffe://example.org/backoffice/*"]

        [orders.methods."shop.v1.Orders/Export"]
        clients = []
        modules = []

        [catalog]
        clients = ["anyone"]

        [payment]
        modules = ["orders"]
    "#;

    fn module(name: &str) -> ModuleName {
        ModuleName::parse(name).unwrap()
    }

    fn token(subject: &str, scopes: &[&str]) -> Option<Client> {
        let scopes = scopes.iter().map(ToString::to_string).collect();
        Some(Client::new(None, Some(Token::new("https://id.example".to_owned(), subject.to_owned(), scopes))))
    }

    fn certificate(name: &str) -> Option<Client> {
        Some(Client::new(Some(name.to_owned()), None))
    }

    #[test]
    fn clients_are_admitted_by_what_they_show() {
        use Verdict::{Admitted, Nameless, Refused, Unsaid};
        let policy = Policy::parse(FILE).unwrap();
        let alice = || token("alice", &["orders"]);
        for (path, client, expected) in [
            ("/shop.v1.Orders/Get", None, Nameless),
            ("/shop.v1.Orders/Get", alice(), Admitted),
            ("/shop.v1.Orders/Get", certificate("spiffe://example.org/web"), Refused),
            ("/shop.v1.Orders/Refund", None, Nameless),
            ("/shop.v1.Orders/Refund", alice(), Refused),
            ("/shop.v1.Orders/Refund", token("bob", &["orders", "refunds"]), Admitted),
            ("/shop.v1.Orders/Refund", certificate("spiffe://example.org/backoffice/7"), Admitted),
            ("/shop.v1.Orders/Refund", certificate("spiffe://example.org/backoffic"), Refused),
            ("/shop.v1.Orders/Export", None, Refused),
            ("/shop.v1.Orders/Export", alice(), Refused),
        ] {
            assert_eq!(policy.client(&module("orders"), path, client.as_ref()), expected, "{path} {client:?}");
        }
        assert_eq!(policy.client(&module("catalog"), "/shop.v1.Catalog/List", None), Admitted);
        // Only modules are named, or nothing is.
        assert_eq!(policy.client(&module("payment"), "/shop.v1.Payment/Pay", alice().as_ref()), Unsaid);
        assert_eq!(policy.client(&module("cart"), "/shop.v1.Cart/Add", None), Unsaid);
    }

    #[test]
    fn one_subject_or_one_scope_may_be_named() {
        let policy = Policy::parse("[a]\nclients = [\"token:alice\", \"token:robot-*\"]").unwrap();
        let admitted = |subject| policy.client(&module("a"), "/a.A/B", token(subject, &["alice"]).as_ref());
        assert_eq!(admitted("alice"), Verdict::Admitted);
        assert_eq!(admitted("robot-7"), Verdict::Admitted);
        assert_eq!(admitted("alice2"), Verdict::Refused);
        // What a client can be called in its certificate is no subject of a token.
        assert_eq!(policy.client(&module("a"), "/a.A/B", certificate("alice").as_ref()), Verdict::Refused);
    }

    #[test]
    fn modules_are_admitted_by_name() {
        let policy = Policy::parse(FILE).unwrap();
        let admits = |from, to, path| policy.admits(&module(from), &module(to), path);
        assert!(admits("checkout", "orders", "/shop.v1.Orders/Get"));
        assert!(admits("checkout", "orders", "/shop.v1.Orders/Refund"), "what is not said of a method is the module's");
        assert!(!admits("checkout", "orders", "/shop.v1.Orders/Export"));
        assert!(!admits("cart", "orders", "/shop.v1.Orders/Get"));
        assert!(admits("orders", "orders", "/shop.v1.Orders/Export"), "itself");
        assert!(admits("cart", "catalog", "/shop.v1.Catalog/List"));
        let to_all = |from, to| policy.admits_to_all(&module(from), &module(to));
        assert!(!to_all("checkout", "orders"), "not to one of its methods");
        assert!(!to_all("cart", "orders") && !to_all("cart", "payment"));
        assert!(to_all("orders", "orders") && to_all("cart", "catalog") && to_all("orders", "payment"));
        assert!(!admits("cart", "payment", "/shop.v1.Payment/Pay"));
    }

    #[test]
    fn a_file_with_faults_says_where() {
        for (text, part) in [
            ("[orders]\nclients = [\"everyone\"]", "line 2"),
            ("[orders]\nclients = [\"token:\"]", "missing"),
            ("[orders]\nclients = [\"token:a*b\"]", "at the end"),
            ("[orders]\nclients = [\"scope\"]", "scope:NAME"),
            ("[orders]\nclient = []", "line 2"),
            ("[Orders!]\nclients = []", "Orders!"),
            ("[orders.methods.Refund]\nclients = []", "package.Service/Method"),
            ("[orders]\nmodules = [\"No Module\"]", "line 2"),
            ("orders", "line 1"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
