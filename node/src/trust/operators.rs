//! Who may run the cluster, and how far: a file of operators. Pure.
//!
//! ```toml
//! [alice]                       # the name in her certificate: .../operator/alice
//! scope = "admin"
//!
//! [deploy]
//! scope = "operate"
//! modules = ["cart", "catalog"] # of others it may only read
//! # It may show one of these tokens in place of a certificate.
//! token_sha256 = ["5d41…ff until 2027-01-31T00:00:00Z"]
//! ```
//!
//! **Invariant:** a token is in neither the file, nor a type here that is shown, nor an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use outpost_proto::{
    identity,
    token::{PREFIX, Token, TokenHash},
};
use serde::{Deserialize, Serialize};

use crate::id::{BadTimestamp, ModuleName, Timestamp};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    scope: Scope,
    /// The modules that it may change; all, where this is not said.
    modules: Option<BTreeSet<ModuleName>>,
}

/// An operator as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    scope: Scope,
    modules: Option<BTreeSet<ModuleName>>,
    /// Several, so that one takes over from another without a gap.
    #[serde(default)]
    token_sha256: Vec<String>,
}

/// All operators of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Operators {
    rights: BTreeMap<String, Rights>,
    /// All are compared with one that is shown, so that how long that takes tells nothing.
    tokens: Vec<Known>,
}

/// A token, as far as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    hash: TokenHash,
    /// Whose it is.
    operator: String,
    /// From when on it is not good any more.
    until: Option<Timestamp>,
}

impl Known {
    /// Reads `HASH`, or `HASH until TIME`. No error shows any of it: it may be part of a token.
    fn parse(text: &str, operator: &str) -> Result<Self, String> {
        let (hash, until) = text.split_once(" until ").map_or((text, None), |(hash, until)| (hash, Some(until)));
        let characters = hash.chars().count();
        let hash = hash.parse().map_err(|error| format!("{error}; this has {characters} characters"))?;
        let until = until.map(str::parse).transpose();
        let until = until.map_err(|error: BadTimestamp| format!("what comes after `until` is {error}"))?;
        Ok(Self { hash, operator: operator.to_owned(), until })
    }
}

/// What somebody shows who asks a node. It has no `Debug`: a token is in it.
pub(crate) struct Shown<'a> {
    /// The operator's name in the certificate of the connection.
    pub(crate) certificate: Option<&'a str>,
    /// What is there in place of a token, whether it is one or not.
    pub(crate) token: Option<&'a str>,
    /// Whether nobody else could read it on the way: by TLS, or from this machine.
    pub(crate) private: bool,
    /// Where the connection is from.
    pub(crate) from: String,
}

/// Somebody who asks a node, as far as that knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operator {
    /// None where nobody has to say who it is.
    pub(crate) name: Option<String>,
    /// Where the connection is from.
    pub(crate) from: String,
    rights: Rights,
}

/// Why it is not known who asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stranger {
    #[error(
        "it is not known who asks; show the token of an operator (metadata `authorization: Bearer TOKEN`; of the tool, \
         `--token-file`), or its certificate"
    )]
    ShowsNothing,
    #[error("metadata `authorization` is not one `Bearer TOKEN`, with a token such as `outpost token generate` prints")]
    Malformed,
    #[error("the token that was shown is no operator's here; is its hash in `token_sha256` (`admin.operators`)?")]
    UnknownToken,
    #[error("the token of operator `{operator}` that was shown was good until {until}; it needs another one")]
    ExpiredToken { operator: String, until: Timestamp },
    #[error("a token is taken by TLS or from the same machine only; this one was sent in plain text: replace it")]
    Plain,
}

/// What somebody may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("{0}")]
    Stranger(#[from] Stranger),
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
        // First of all: errors of TOML quote the line that they are about.
        if let Some(line) = text.lines().position(|line| line.contains(PREFIX)) {
            return Err(format!(
                "line {} has a token in it; write its hash, and replace the token: whoever has read the file has it",
                line + 1
            ));
        }
        let raw: BTreeMap<String, Raw> =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut operators = Self::default();
        for (name, Raw { scope, modules, token_sha256 }) in raw {
            if !identity::is_segment(&name) {
                return Err(format!(
                    "`{name}` can't name an operator, in a certificate or in the audit log; use letters, digits, dashes, \
                     dots and underscores, and 253 at the most"
                ));
            }
            for text in token_sha256 {
                let known = Known::parse(&text, &name).map_err(|error| format!("token_sha256 of `{name}`: {error}"))?;
                if let Some(Known { hash, operator, .. }) = operators.known(known.hash) {
                    return Err(format!(
                        "token_sha256 of `{name}`: {hash} is there twice, for `{operator}` too; each token is one operator's"
                    ));
                }
                operators.tokens.push(known);
            }
            operators.rights.insert(name, Rights { scope, modules });
        }
        Ok(operators)
    }

    /// Whether some operator may show a token.
    pub(crate) fn take_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// The token with this hash. Goes on after it is found.
    fn known(&self, hash: TokenHash) -> Option<&Known> {
        self.tokens.iter().fold(None, |found, known| if known.hash == hash { Some(known) } else { found })
    }

    /// Whose token it is.
    fn owner(&self, hash: TokenHash, now: Timestamp) -> Result<&str, Stranger> {
        match self.known(hash).ok_or(Stranger::UnknownToken)? {
            Known { operator, until: Some(until), .. } if *until <= now => {
                Err(Stranger::ExpiredToken { operator: operator.clone(), until: *until })
            }
            known => Ok(&known.operator),
        }
    }
}

impl Operator {
    /// Somebody where nobody has to say who it is.
    pub(crate) fn anyone(from: String) -> Self {
        Self { name: None, from, rights: ALL }
    }

    /// Who asks, by what is shown. A token decides, where one is shown: whoever shows it means it, and has to hear that it
    /// is not good, instead of going on as somebody else. Where there is no list of operators, every certificate of one is
    /// good for everything.
    ///
    /// # Errors
    /// What is not known, or not in the list.
    pub(crate) fn of(shown: Shown<'_>, known: Option<&Operators>, now: Timestamp) -> Result<Self, Forbidden> {
        let Shown { certificate, token, private, from } = shown;
        let name = match (token, certificate) {
            (Some(_), _) if !private => return Err(Stranger::Plain.into()),
            (Some(text), _) => {
                let token: Token = text.parse().map_err(|_| Stranger::Malformed)?;
                known.ok_or(Stranger::UnknownToken)?.owner(token.hash(), now)?
            }
            (None, Some(name)) => name,
            (None, None) => return Err(Stranger::ShowsNothing.into()),
        };
        let rights = match known {
            None => ALL,
            Some(known) => known.rights.get(name).cloned().ok_or_else(|| Forbidden::Unknown(name.to_owned()))?,
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

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const FILE: &str = "
        [alice]
        scope = \"admin\"
        [deploy]
        scope = \"operate\"
        modules = [\"cart\"]
        [viewer]
        scope = \"read\"
    ";

    fn certificate(name: &str) -> Shown<'_> {
        Shown { certificate: Some(name), token: None, private: true, from: "127.0.0.1:1".to_owned() }
    }

    fn operator(name: &str) -> Result<Operator, Forbidden> {
        Operator::of(certificate(name), Some(&Operators::parse(FILE).unwrap()), NOW)
    }

    fn token(byte: u8) -> Token {
        Token::new([byte; 32])
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
        let none = Operator::of(certificate("x"), Some(&none), NOW).unwrap();
        assert!(none.may_change(&module("cart")).is_err(), "no module is not all of them");
        let alice = operator("alice").unwrap();
        assert_eq!((alice.may_change(&module("payment")), alice.may_change_all()), (Ok(()), Ok(())));
    }

    #[test]
    fn without_a_list_an_operators_certificate_is_good_for_everything() {
        let named = Operator::of(certificate("eve"), None, NOW).unwrap();
        assert_eq!(named.may_call("Forget"), Ok(()));
        assert_eq!(Operator::anyone(String::new()).may_call("Forget"), Ok(()));
    }

    #[test]
    fn a_token_that_is_shown_decides() {
        let (ci, next) = (token(1), token(2));
        let hashes = format!("token_sha256 = [\"{}\", \"{}\"]", ci.hash(), next.hash());
        let known = Operators::parse(&format!("{FILE}[ci]\nscope = \"operate\"\n{hashes}")).unwrap();
        assert!(known.take_tokens() && !Operators::parse(FILE).unwrap().take_tokens());
        let [ci, next, other] = [ci, next, token(3)].map(|token| token.secret());
        let shown = |token| Shown { token, certificate: None, ..certificate("") };
        let asks = |shown, known| Operator::of(shown, known, NOW).map(|operator| operator.name());
        for token in [&ci, &next] {
            assert_eq!(asks(shown(Some(token)), Some(&known)).unwrap(), "ci");
            assert_eq!(asks(Shown { token: Some(token), ..certificate("alice") }, Some(&known)).unwrap(), "ci");
        }
        let stranger = |shown, known| match Operator::of(shown, known, NOW) {
            Err(Forbidden::Stranger(stranger)) => stranger,
            other => panic!("{other:?}"),
        };
        // The certificate would be good.
        assert_eq!(
            stranger(Shown { token: Some(&other), ..certificate("alice") }, Some(&known)),
            Stranger::UnknownToken
        );
        assert_eq!(stranger(shown(Some(&other)), None), Stranger::UnknownToken);
        for text in ["", &ci[1..], &ci[..ci.len() - 1]] {
            assert_eq!(
                stranger(Shown { token: Some(text), ..certificate("alice") }, Some(&known)),
                Stranger::Malformed
            );
        }
        assert_eq!(stranger(Shown { private: false, ..shown(Some(&ci)) }, Some(&known)), Stranger::Plain);
        assert_eq!(stranger(shown(None), Some(&known)), Stranger::ShowsNothing);
        let read = Operator::of(shown(Some(&ci)), Some(&known), NOW).unwrap();
        assert_eq!((read.may_call("Cordon"), read.may_call("Forget").is_err()), (Ok(()), true));
    }

    #[test]
    fn a_token_is_good_until_its_time() {
        let [old, new] = [token(1), token(2)];
        // NOW is 08:00:00.
        let hashes = format!(
            "token_sha256 = [\"{} until 2027-01-15T08:00:00Z\", \"{} until 2027-01-15T08:00:00.001Z\"]",
            old.hash(),
            new.hash()
        );
        let known = Operators::parse(&format!("[ci]\nscope = \"read\"\n{hashes}")).unwrap();
        let [old, new] = [old, new].map(|token| token.secret());
        let shown = |token| Shown { token: Some(token), ..certificate("ci") };
        assert_eq!(Operator::of(shown(&new), Some(&known), NOW).unwrap().name(), "ci");
        let refused = Operator::of(shown(&old), Some(&known), NOW).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the token of operator `ci` that was shown was good until 2027-01-15T08:00:00Z; it needs another one"
        );
        assert!(known.take_tokens(), "there may be another one");
    }

    #[test]
    fn no_error_shows_what_may_be_a_token() {
        let (secret, hash) = (token(0xab).secret(), token(1).hash());
        for (text, part) in [
            (format!("# {secret}\n"), "line 1 has a token in it"),
            (format!("[ci]\nscope = \"read\"\ntoken_sha256 = [\"{secret}\"]"), "line 3 has a token in it"),
            (
                format!("[ci]\nscope = \"read\"\ntoken_sha256 = [\"{}\"]", &secret[15..]),
                "`ci`: the hash of a token is 64",
            ),
            (format!("[ci]\nscope = \"read\"\ntoken_sha256 = [\"{hash}\", \"{hash}\"]"), "for `ci` too"),
            (
                format!("[ci]\nscope = \"read\"\ntoken_sha256 = [\"{hash} until {}\"]", &secret[15..]),
                "not a time in UTC",
            ),
            (format!("[ci]\nscope = \"read\"\ntoken_sha256 = [\"{hash} till 2027\"]"), "this has 74 characters"),
        ] {
            let error = Operators::parse(&text).unwrap_err();
            assert!(error.contains(part) && !error.contains("abab"), "{part} in {error}");
        }
    }

    #[test]
    fn a_file_with_faults_says_where() {
        for (text, part) in [
            ("[alice]\nscope = \"root\"", "line 2"),
            ("[alice]\nscope = \"read\"\nmodule = [\"cart\"]", "line 3"),
            ("[alice]\nscope = \"read\"\nmodules = [\"Cart!\"]", "Cart!"),
            ("[alice]", "scope"),
            ("[\"al ice\"]\nscope = \"read\"", "`al ice` can't name"),
            ("[alice]\nscope = \"read\"\ntoken_sha256 = \"00\"", "line 3"),
            ("[alice]\nscope = \"read\"\ntoken_sha256 = [\"00\"]", "this has 2 characters"),
            ("alice", "line 1"),
        ] {
            let error = Operators::parse(text).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
