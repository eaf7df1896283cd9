//! Who a client is, and whether it, or a module, may make a call.
//!
//! Clients are looked at where their calls come in, and modules where they make theirs: on their own node, which would have to
//! lie in any case for another one to believe something else.
//!
//! **Invariant:** what says who a client is has been checked by the node at which its call came in. Metadata of clients that
//! says so is dropped there.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};

pub(crate) use super::tokens::BadToken;
use super::{
    TrustError,
    client::Client,
    files::{File, Follows, FromFiles},
    policy::{Policy, Verdict},
    tokens::Tokens,
};
use crate::{
    clock,
    config::{CallerSettings, CallersMode, UnmarkedModules},
    id::ModuleName,
    module::Exposed,
};

/// The client at the other end of a connection, by its certificate. An extension of the requests that come over it.
#[derive(Debug, Clone)]
pub(crate) struct Certified {
    pub(crate) client: Arc<Client>,
    /// Since 1970.
    pub(crate) expires: Duration,
}

/// Why a call is not made. Nothing has run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Token(#[from] BadToken),
    #[error("the certificate that was shown on this connection has expired; connect again, with another one")]
    Expired,
    #[error("module `{0}` is for clients that say who they are: show a token, or a certificate")]
    Nameless(ModuleName),
    #[error("clients may not call module `{module}`: {why}")]
    Client { module: ModuleName, why: &'static str },
    #[error("module `{from}` may not call module `{module}`: {why}")]
    Module { from: ModuleName, module: ModuleName, why: Cow<'static, str> },
}

impl Refused {
    /// What the reasons are called in metrics.
    pub(crate) const REASONS: [&str; 5] = ["token", "expired", "nameless", "client", "module"];

    fn reason(&self) -> usize {
        match self {
            Self::Token(_) => 0,
            Self::Expired => 1,
            Self::Nameless(_) => 2,
            Self::Client { .. } => 3,
            Self::Module { .. } => 4,
        }
    }
}

/// A module that calls another one. What a policy says of all methods is remembered until it changes: a handle asks with each
/// call, and a call within a process costs little more than a policy.
#[derive(Debug)]
pub(crate) struct CallingModule {
    module: ModuleName,
    /// The version of the policy that admits it to all methods of the other one; 0 where none is known to.
    admitted_by: AtomicU64,
    /// The same of one that does not, so that each call has to be looked at.
    asked_by: AtomicU64,
}

impl CallingModule {
    pub(crate) fn new(module: ModuleName) -> Self {
        Self { module, admitted_by: AtomicU64::new(0), asked_by: AtomicU64::new(0) }
    }
}

/// Who may call what. Cheap to clone; the default lets everybody call what is not internal.
#[derive(Clone, Default)]
pub(crate) struct CallPolicy(Arc<Inner>);

#[derive(Default)]
struct Inner {
    policy: Option<Arc<FromFiles<Policy>>>,
    tokens: Option<Arc<FromFiles<Tokens>>>,
    mode: CallersMode,
    unmarked: UnmarkedModules,
    /// What was told already of what would be refused. Of a program's own names, so it has a bound.
    told: ArcSwap<HashSet<String>>,
    /// By reason: what was refused, and what would have been.
    refused: [AtomicU64; Refused::REASONS.len()],
    audited: [AtomicU64; Refused::REASONS.len()],
}

impl fmt::Debug for CallPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallPolicy").field("policy", &self.0.policy).field("mode", &self.0.mode).finish_non_exhaustive()
    }
}

impl CallPolicy {
    /// Reads the files, where there are some. `known` are the modules of the program, with their services; `certificates`,
    /// whether clients are asked for some.
    ///
    /// # Errors
    /// A file that can't be used, or that speaks of what is not there.
    pub(crate) fn load(
        settings: &CallerSettings,
        unmarked: UnmarkedModules,
        known: BTreeMap<ModuleName, Vec<String>>,
        certificates: bool,
    ) -> Result<Self, TrustError> {
        let tokens = settings.tokens.is_some();
        let policy = settings.policy.as_ref().map(|path| {
            FromFiles::load(vec![File::new("callers.policy", path)], move |files, contents| {
                let policy = Policy::parse(&String::from_utf8_lossy(&contents[0]));
                let policy = policy.and_then(|policy| fits(&policy, &known, tokens, certificates).map(|()| policy));
                policy.map_err(|problem| files[0].unusable(problem))
            })
        });
        let tokens = settings.tokens.clone().map(|tokens| {
            FromFiles::load(vec![File::new("callers.tokens.keys", &tokens.keys)], move |files, contents| {
                Tokens::new(&contents[0], &tokens).map_err(|problem| files[0].unusable(problem))
            })
        });
        let (policy, tokens) = (policy.transpose()?.map(Arc::new), tokens.transpose()?.map(Arc::new));
        Ok(Self(Arc::new(Inner { policy, tokens, mode: settings.mode, unmarked, ..Inner::default() })))
    }

    /// What follows the files, if there are some.
    pub(crate) fn follows(&self) -> impl Iterator<Item = Arc<dyn Follows>> {
        let policy = self.0.policy.clone().map(|policy| policy as Arc<dyn Follows>);
        policy.into_iter().chain(self.0.tokens.clone().map(|tokens| tokens as Arc<dyn Follows>))
    }

    /// Who makes a client's call, if that is known and may make it.
    ///
    /// # Errors
    /// A token or a certificate that is not believed, or somebody who may not.
    pub(crate) fn admit(
        &self,
        (module, exposed): (&ModuleName, Exposed),
        path: &str,
        headers: &HeaderMap,
        certified: Option<&Certified>,
    ) -> Result<Option<Arc<Client>>, Refused> {
        // Whoever it is: nobody's token need be looked at for that.
        let admitted = if exposed == Exposed::Internal {
            Err(Refused::Client { module: module.clone(), why: "it is internal" })
        } else {
            self.client(headers, certified).and_then(|client| {
                self.admits(module, exposed, path, client.as_deref())?;
                Ok(client)
            })
        };
        admitted.inspect_err(|refused| count(&self.0.refused, refused))
    }

    /// How many calls were refused, and how many would have been, for each of [`Refused::REASONS`].
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let counts = self.0.refused.iter().zip(&self.0.audited);
        Refused::REASONS.into_iter().zip(counts).map(|(reason, (refused, audited))| {
            (reason, refused.load(Ordering::Relaxed), audited.load(Ordering::Relaxed))
        })
    }

    /// Who a client is, by its certificate and by the token in its metadata.
    ///
    /// # Errors
    /// A token that is not believed.
    fn client(&self, headers: &HeaderMap, certified: Option<&Certified>) -> Result<Option<Arc<Client>>, Refused> {
        let now = || Duration::from_millis(clock::wall().0);
        // Who goes on with its connection has to be told by each call.
        if certified.is_some_and(|certified| certified.expires <= now()) {
            return Err(Refused::Expired);
        }
        let certified = certified.map(|certified| &certified.client);
        let token = match &self.0.tokens {
            None => None,
            Some(tokens) => {
                let check = |token: Option<&str>| token.map(|token| tokens.now().check(token, now())).transpose();
                let shown = bearer(headers).and_then(check);
                self.unless_audited(shown.map_err(Refused::Token), "", ToString::to_string)?.flatten()
            }
        };
        Ok(match (certified, token) {
            (Some(certified), Some(token)) => {
                let name = certified.certificate().map(ToOwned::to_owned);
                Some(Arc::new(Client::new(name, token.token().cloned())))
            }
            (Some(certified), None) => Some(Arc::clone(certified)),
            (None, token) => token,
        })
    }

    /// Whether a client may call a method of a module that is not internal.
    fn admits(
        &self,
        module: &ModuleName,
        exposed: Exposed,
        path: &str,
        client: Option<&Client>,
    ) -> Result<(), Refused> {
        let verdict = match &self.0.policy {
            None => Verdict::Unsaid,
            Some(policy) => policy.now().client(module, path, client),
        };
        let without = || if exposed == Exposed::Public { Ok(()) } else { self.unmarked(module) };
        let said = match verdict {
            Verdict::Admitted => Ok(()),
            Verdict::Nameless => Err(Refused::Nameless(module.clone())),
            Verdict::Refused => {
                let why = "the policy (`callers.policy`) does not name this client";
                Err(Refused::Client { module: module.clone(), why })
            }
            Verdict::Unsaid => return without(),
        };
        // What the policy does not get to say yet, the module does.
        match self.unless_audited(said, path, |_| format!("{module} {verdict:?}"))? {
            Some(()) => Ok(()),
            None => without(),
        }
    }

    /// Whether clients may call a module that does not say so, and of which the policy does not speak.
    fn unmarked(&self, module: &ModuleName) -> Result<(), Refused> {
        match self.0.unmarked {
            UnmarkedModules::Serve => {}
            UnmarkedModules::Audit => {
                let why = "it does not say that it is public";
                count(&self.0.audited, &Refused::Client { module: module.clone(), why });
                if self.is_first(&format!("{module} unmarked")) {
                    tracing::warn!(
                        %module,
                        "clients call a module that does not say that it is public; `ingress.unmarked_modules = \"refuse\"` \
                         would refuse them"
                    );
                }
            }
            UnmarkedModules::Refuse => {
                return Err(Refused::Client { module: module.clone(), why: "it does not say that it is public" });
            }
        }
        Ok(())
    }

    /// Whether clients hear of a module at all.
    pub(crate) fn exposes(&self, module: &ModuleName, exposed: Exposed) -> bool {
        let said = || self.0.policy.as_ref().and_then(|policy| policy.current().exposes(module));
        match exposed {
            Exposed::Internal => false,
            Exposed::Public => said().unwrap_or(true),
            Exposed::Unmarked => said().unwrap_or(self.0.unmarked != UnmarkedModules::Refuse),
        }
    }

    /// The same as [`CallPolicy::admits_module`], by what is known already.
    ///
    /// # Errors
    /// It may not.
    #[inline]
    pub(crate) fn admits_caller(&self, from: &CallingModule, module: &ModuleName, path: &str) -> Result<(), Refused> {
        match &self.0.policy {
            Some(policy) if from.admitted_by.load(Ordering::Relaxed) != policy.version() => {
                self.look_at_caller(policy, from, module, path)
            }
            _ => Ok(()),
        }
    }

    fn look_at_caller(
        &self,
        policy: &FromFiles<Policy>,
        from: &CallingModule,
        module: &ModuleName,
        path: &str,
    ) -> Result<(), Refused> {
        // Before what it stands for: if that changes meanwhile, the next call looks again.
        let version = policy.version();
        if from.asked_by.load(Ordering::Relaxed) != version {
            if policy.now().admits_to_all(&from.module, module) {
                from.admitted_by.store(version, Ordering::Relaxed);
                return Ok(());
            }
            from.asked_by.store(version, Ordering::Relaxed);
        }
        self.admits_module(&from.module, module, path)
    }

    /// Whether a module may call a method of another one.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn admits_module(&self, from: &ModuleName, module: &ModuleName, path: &str) -> Result<(), Refused> {
        let Some(policy) = &self.0.policy else { return Ok(()) };
        if policy.now().admits(from, module, path) {
            return Ok(());
        }
        let why = format!("the policy (`callers.policy`) names other modules for {path}");
        self.refuse_module(from, module, path, why.into())
    }

    /// A module calls another one that it does not declare.
    ///
    /// # Errors
    /// It may not.
    #[cold]
    pub(crate) fn undeclared(&self, from: &ModuleName, module: &ModuleName, path: &str) -> Result<(), Refused> {
        let why = format!("it does not declare that it does; add `.depends_on(\"{module}\")` where it is registered");
        self.refuse_module(from, module, path, why.into())
    }

    #[cold]
    fn refuse_module(
        &self,
        from: &ModuleName,
        module: &ModuleName,
        path: &str,
        why: Cow<'static, str>,
    ) -> Result<(), Refused> {
        let refused = Refused::Module { from: from.clone(), module: module.clone(), why };
        let admitted = self.unless_audited::<()>(Err(refused), path, |_| format!("{from} {module}")).map(drop);
        admitted.inspect_err(|refused| count(&self.0.refused, refused))
    }

    /// What was found, or nothing where it is only told of in the log: once for each `key`, which has nothing of a client's.
    fn unless_audited<T>(
        &self,
        found: Result<T, Refused>,
        path: &str,
        key: impl FnOnce(&Refused) -> String,
    ) -> Result<Option<T>, Refused> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(refused) if self.0.mode == CallersMode::Enforce => Err(refused),
            Err(refused) => {
                count(&self.0.audited, &refused);
                if self.is_first(&key(&refused)) {
                    tracing::warn!(method = path, would_be = %refused, "`callers.mode = \"enforce\"` would refuse a call");
                }
                Ok(None)
            }
        }
    }

    fn is_first(&self, what: &str) -> bool {
        // Nearly always it is not, and many calls ask.
        if self.0.told.load().contains(what) {
            return false;
        }
        let before = self.0.told.rcu(|told| {
            let mut told = HashSet::clone(told);
            told.insert(what.to_owned());
            told
        });
        !before.contains(what)
    }
}

#[cold]
fn count(counts: &[AtomicU64; Refused::REASONS.len()], refused: &Refused) {
    counts[refused.reason()].fetch_add(1, Ordering::Relaxed);
}

/// Whether a policy speaks of what is there only, for of a name that is written wrong it would say nothing at all; and whether
/// clients can show what it asks for.
fn fits(
    policy: &Policy,
    known: &BTreeMap<ModuleName, Vec<String>>,
    tokens: bool,
    certificates: bool,
) -> Result<(), String> {
    if policy.asks_for_tokens() && !tokens {
        return Err("it asks for tokens, and nothing says how they are checked (`callers.tokens`)".to_owned());
    }
    if policy.asks_for_certificates() && !certificates {
        return Err(
            "it asks for certificates, and clients are asked for none (`ingress.tls.client_authorities`)".to_owned()
        );
    }
    for module in policy.modules() {
        let Some(services) = known.get(module) else {
            let names: Vec<&str> = known.keys().map(ModuleName::as_str).collect();
            return Err(format!("there is no module `{module}`; the modules are: {}", names.join(", ")));
        };
        if let Some(service) = policy.services(module).find(|service| !services.iter().any(|known| known == service)) {
            return Err(format!("module `{module}` serves no `{service}`, but {}", services.join(", ")));
        }
    }
    Ok(())
}

/// The token in a request's metadata, if there is one: RFC 6750, 2.1.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, BadToken> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(header::AUTHORIZATION) { Err(BadToken::NotAToken) } else { Ok(None) };
    };
    let value = value.to_str().map_err(|_| BadToken::NotAToken)?;
    let (scheme, token) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    // Another kind is the module's to read.
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
}

#[cfg(test)]
mod tests;
