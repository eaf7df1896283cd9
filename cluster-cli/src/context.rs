//! Contexts: which cluster, and who asks. `context`.
//!
//! ```toml
//! current = "prod"
//!
//! [contexts.prod]
//! node = "10.0.0.5:7001"
//! certificate = "/home/alice/alice.pem"
//! key = "/home/alice/alice.key"
//! authorities = "/home/alice/ca.pem"
//!
//! [contexts.ci]
//! node = "10.0.0.5:7001"
//! authorities = "/home/alice/ca.pem"
//! cluster = "shop"
//! token_file = "/home/alice/ci.token"
//! ```

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    args::{ContextSetArgs, ContextVerb, DataOutput},
    error::CliError,
    files,
    output::Output,
    text::table,
    tunnel::Place,
};

/// Why contexts are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadContext {
    #[error("there is no context `{name}`{}", list_of(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("can't tell where contexts are kept: neither OUTPOST_CONTEXTS nor XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
    #[error("`{0}` can't name a context; `none` is what no context is called")]
    Name(String),
    #[error(
        "context `{0}` names some of what goes together, and not all: certificate, key and authorities; or, to show a token, \
         authorities and cluster; `outpost context set` mends it"
    )]
    Half(String),
    #[error("a context of the name `{0}` is there, and not a local cluster's")]
    Taken(&'static str),
}

fn list_of(names: &[String]) -> String {
    match names {
        [] => "; `outpost context set` makes one".to_owned(),
        names => format!("; there are {}", names.join(", ")),
    }
}

/// All contexts of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// The admin API of a node ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// ... or where nodes are in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authorities: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// Of a local cluster, which takes it away again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    local: bool,
}

/// What an operator shows, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authorities: PathBuf,
}

/// How a context has the tool connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    /// By TLS, with a certificate.
    Certificate(Files),
    /// By TLS without one, to a node of this cluster. A token goes to nobody else, although the authorities may sign for more.
    Cluster {
        name: String,
        authorities: PathBuf,
    },
}

/// Where contexts are kept.
pub(crate) fn path() -> Result<PathBuf, BadContext> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = || set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    set("OUTPOST_CONTEXTS")
        .or_else(|| folder().map(|folder| folder.join("outpost/contexts.toml")))
        .ok_or(BadContext::NoHome)
}

impl Contexts {
    /// Those of the user. Where there is no file, there is none.
    pub(crate) fn load() -> Result<Self, BadContext> {
        // Where there is no home, there is nothing in it.
        let Ok(path) = path() else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(BadContext::File { path, problem: error.to_string() }),
        };
        toml::from_str(&text).map_err(|error| BadContext::File { path, problem: error.message().to_owned() })
    }

    fn save(&self) -> Result<(), BadContext> {
        let path = path()?;
        let bad = |problem: String| BadContext::File { path: path.clone(), problem };
        let text = toml::to_string(self).map_err(|error| bad(error.to_string()))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| bad(error.to_string()))?;
        }
        files::replace(&path, text.as_bytes()).map_err(|error| bad(error.to_string()))
    }

    /// The one that is asked for, or the current one.
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<Option<&Context>, BadContext> {
        match name.or(self.current.as_deref()) {
            None | Some("none") => Ok(None),
            Some(name) => match self.contexts.get(name) {
                // A context that can't show anything must not pass for one that needs not.
                Some(context) if context.way().is_none() => Err(BadContext::Half(name.to_owned())),
                Some(context) => Ok(Some(context)),
                None => Err(self.unknown(name)),
            },
        }
    }

    fn unknown(&self, name: &str) -> BadContext {
        BadContext::Unknown { name: name.to_owned(), known: self.contexts.keys().cloned().collect() }
    }

    fn change(&mut self, verb: &ContextVerb) -> Result<(), BadContext> {
        match verb {
            ContextVerb::List { .. } => {}
            ContextVerb::Set(args) => {
                if args.name == "none" || args.name.is_empty() {
                    return Err(BadContext::Name(args.name.clone()));
                }
                let context = Context::of(args);
                context.way().ok_or_else(|| BadContext::Half(args.name.clone()))?;
                self.contexts.insert(args.name.clone(), context);
                // The first one is meant.
                self.current.get_or_insert_with(|| args.name.clone());
            }
            ContextVerb::Use { name } if name == "none" => self.current = None,
            ContextVerb::Use { name } => {
                self.choose(Some(name))?;
                self.current = Some(name.clone());
            }
            ContextVerb::Remove { name } => {
                self.contexts.remove(name).ok_or_else(|| self.unknown(name))?;
                self.current.take_if(|current| current == name);
            }
        }
        Ok(())
    }
}

/// The same file, whatever the tool's working directory is later.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Context {
    fn of(args: &ContextSetArgs) -> Self {
        let [certificate, key, authorities, token_file] =
            [&args.certificate, &args.key, &args.authorities, &args.token_file]
                .map(|path| path.as_deref().map(absolute));
        let kubernetes = args.kubernetes.clone().map(|target| Place {
            target,
            namespace: args.namespace.clone(),
            context: args.kube_context.clone(),
        });
        let node = args.node.as_ref().map(ToString::to_string);
        let cluster = args.cluster.clone();
        Self { node, kubernetes, certificate, key, authorities, cluster, token_file, local: false }
    }

    /// That of a local cluster.
    pub(crate) fn local(node: String, files: Files) -> Self {
        let Files { certificate, key, authorities } = files;
        let [certificate, key, authorities] = [certificate, key, authorities].map(Some);
        let node = Some(node);
        Self { node, kubernetes: None, certificate, key, authorities, cluster: None, token_file: None, local: true }
    }

    /// None where it names half of what it needs.
    pub(crate) fn way(&self) -> Option<Way> {
        let Self { certificate, key, authorities, cluster, .. } = self.clone();
        match (certificate, key, authorities, cluster) {
            (None, None, None, None) => Some(Way::Plain),
            (Some(certificate), Some(key), Some(authorities), None) => {
                Some(Way::Certificate(Files { certificate, key, authorities }))
            }
            (None, None, Some(authorities), Some(name)) => Some(Way::Cluster { name, authorities }),
            _ => None,
        }
    }
}

pub(crate) async fn run(verb: &ContextVerb, out: &mut Output) -> Result<(), CliError> {
    let mut contexts = Contexts::load()?;
    if let ContextVerb::List { output } = verb {
        return match output {
            DataOutput::Table => out.print_told(&listed(&contexts)).await,
            DataOutput::Json => out.print_json(&json!(contexts)).await,
        };
    }
    contexts.change(verb)?;
    contexts.save()?;
    Ok(())
}

fn listed(contexts: &Contexts) -> String {
    let rows = contexts.contexts.iter().map(|(name, context)| {
        let current = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
        let file =
            |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
        let place = context.kubernetes.as_ref().map(ToString::to_string);
        let place = context.node.clone().or(place).unwrap_or_default();
        [current.to_owned(), name.clone(), place, file(&context.certificate), file(&context.token_file)]
    });
    table(["", "NAME", "NODE", "CERTIFICATE", "TOKEN"], rows)
}

/// The context of a local cluster, for as long as that runs. Others' are left alone: it becomes the current one only where
/// there is none.
#[derive(Debug)]
pub(crate) struct Local {
    context: Context,
    pub(crate) is_current: bool,
}

impl Local {
    /// What it is called.
    pub(crate) const NAME: &'static str = "dev";

    pub(crate) fn begin(context: Context) -> Result<Self, BadContext> {
        let mut contexts = Contexts::load()?;
        if contexts.contexts.get(Self::NAME).is_some_and(|known| !known.local) {
            return Err(BadContext::Taken(Self::NAME));
        }
        let current = contexts.current.get_or_insert_with(|| Self::NAME.to_owned());
        let is_current = current == Self::NAME;
        contexts.contexts.insert(Self::NAME.to_owned(), context.clone());
        contexts.save()?;
        Ok(Self { context, is_current })
    }
}

impl Drop for Local {
    /// Unless another cluster has taken its place.
    fn drop(&mut self) {
        let Ok(mut contexts) = Contexts::load() else { return };
        if contexts.contexts.get(Self::NAME) != Some(&self.context) {
            return;
        }
        contexts.contexts.remove(Self::NAME);
        contexts.current.take_if(|current| current == Self::NAME);
        // What is left says that nobody is there, and how to go on.
        let _ = contexts.save();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(node: &str) -> Context {
        Context {
            node: Some(node.to_owned()),
            kubernetes: None,
            certificate: None,
            key: None,
            authorities: None,
            cluster: None,
            token_file: None,
            local: false,
        }
    }

    fn two() -> Contexts {
        let contexts = [("a", "127.0.0.1:1"), ("b", "127.0.0.1:2")];
        let contexts = contexts.map(|(name, node)| (name.to_owned(), context(node)));
        Contexts { current: Some("a".to_owned()), contexts: contexts.into() }
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let mut contexts = two();
        let files = Files { certificate: "/c".into(), key: "/k".into(), authorities: "/a".into() };
        let whole = Context::local("127.0.0.1:3".to_owned(), files.clone());
        assert_eq!(whole.way(), Some(Way::Certificate(files)));
        contexts.contexts.insert("c".to_owned(), whole);
        let cluster = Context {
            authorities: Some("/a".into()),
            cluster: Some("shop".to_owned()),
            token_file: Some("/t".into()),
            ..context("10.0.0.5:1")
        };
        assert_eq!(cluster.way(), Some(Way::Cluster { name: "shop".to_owned(), authorities: "/a".into() }));
        contexts.contexts.insert("d".to_owned(), cluster);
        assert_eq!(toml::from_str::<Contexts>(&toml::to_string(&contexts).unwrap()).unwrap(), contexts);
    }

    #[test]
    fn the_one_that_is_asked_for_comes_first() {
        let contexts = two();
        assert_eq!(contexts.choose(None).unwrap(), Some(&context("127.0.0.1:1")));
        assert_eq!(contexts.choose(Some("b")).unwrap(), Some(&context("127.0.0.1:2")));
        assert_eq!(contexts.choose(Some("none")).unwrap(), None);
        let unknown = contexts.choose(Some("x")).unwrap_err().to_string();
        assert!(unknown.contains("`x`") && unknown.contains("a, b"), "{unknown}");
        assert_eq!(Contexts::default().choose(None).unwrap(), None);
    }

    #[test]
    fn a_context_that_names_half_of_what_it_shows_is_none() {
        let mut contexts = two();
        contexts.contexts.insert("c".to_owned(), Context { key: Some("/k".into()), ..context("127.0.0.1:3") });
        let half = contexts.choose(Some("c")).unwrap_err().to_string();
        assert!(half.contains("`c`") && half.contains("not all"), "{half}");
        assert_eq!(Context { authorities: Some("/a".into()), ..context("127.0.0.1:3") }.way(), None);
    }

    #[test]
    fn what_is_removed_is_not_current() {
        let mut contexts = two();
        contexts.change(&ContextVerb::Remove { name: "a".to_owned() }).unwrap();
        assert_eq!(contexts.current, None);
        assert!(contexts.change(&ContextVerb::Use { name: "a".to_owned() }).is_err());
        contexts.change(&ContextVerb::Use { name: "b".to_owned() }).unwrap();
        assert_eq!(contexts.current.as_deref(), Some("b"));
        contexts.change(&ContextVerb::Use { name: "none".to_owned() }).unwrap();
        assert_eq!(contexts.current, None);
    }
}
