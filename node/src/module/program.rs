//! Whether the modules fit together. Pure: names in, a graph or errors out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::id::{BadModuleName, ModuleName};

/// What a module says that it calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dependency {
    /// A service, by its full name: the module has a handle on it.
    Service(&'static str),
    /// A module, by its name.
    Module(String),
}

/// A module as registered.
#[derive(Debug)]
pub(crate) struct Declared<'a> {
    pub(crate) name: &'a str,
    pub(crate) services: &'a [&'static str],
    pub(crate) depends_on: &'a [Dependency],
    /// It declares state, and that several nodes may host it.
    pub(crate) state_on_several: bool,
    /// How many parameters of its factory are its state.
    pub(crate) states: usize,
    /// It is to be checkpointed.
    pub(crate) checkpointed: bool,
}

/// Why modules do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// A module has a name that can't be one.
    #[error("{0}")]
    Name(#[from] BadModuleName),
    /// Two modules have one name.
    #[error("two modules are named `{0}`; rename one of them")]
    SameName(ModuleName),
    /// Two modules, or one module twice, serve one service.
    #[error("module `{second}` claims service `{service}`, which module `{first}` serves already")]
    SameService {
        /// The full name of the service.
        service: String,
        /// The module that was registered first.
        first: ModuleName,
        /// The other one.
        second: ModuleName,
    },
    /// A module declares state, and several hosts.
    #[error(
        "module `{0}` declares state and that several nodes may host it, each of which would have a state of its own; \
             remove what declares the state, or what makes it replicated"
    )]
    StateOnSeveral(ModuleName),
    /// A module has more than one state.
    #[error(
        "the factory of module `{0}` has several `State` parameters, and a module has one state; put them into one type"
    )]
    SeveralStates(ModuleName),
    /// A module is to be checkpointed, and has nothing to write.
    #[error("module `{0}` is checkpointed, and its factory has no `State` parameter to write; add one")]
    NoState(ModuleName),
    /// A module has a handle on a service that no module serves.
    #[error("module `{module}` depends on service `{service}`, which no registered module serves; the modules are: {}",
        .known.join(", "))]
    NoService {
        /// The module that has the handle.
        module: ModuleName,
        /// The full name of the service.
        service: String,
        /// The modules there are.
        known: Vec<String>,
    },
    /// A module depends on one that is not registered.
    #[error("module `{module}` depends on module `{dependency}`, which is not registered; the modules are: {}",
        .known.join(", "))]
    NoModule {
        /// The module with the dependency.
        module: ModuleName,
        /// The name it gave.
        dependency: String,
        /// The modules there are.
        known: Vec<String>,
    },
}

/// Modules that fit together: who serves what, and who calls whom.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// In the order of registration.
    pub(crate) names: Vec<ModuleName>,
    /// The modules that each module declares that it calls.
    pub(crate) calls: Graph,
}

/// An edge leads from a module to one that it calls, or waits for.
pub(crate) type Graph = BTreeMap<ModuleName, BTreeSet<ModuleName>>;

impl Program {
    /// Checks the modules, and reports every fault at once.
    pub(crate) fn check(modules: &[Declared<'_>]) -> Result<Self, Vec<ProgramError>> {
        let mut errors = Vec::new();
        let mut names: Vec<ModuleName> = Vec::new();
        let mut served: HashMap<&str, ModuleName> = HashMap::new();
        for module in modules {
            let name = match ModuleName::parse(module.name) {
                Ok(name) if names.contains(&name) => {
                    errors.push(ProgramError::SameName(name));
                    continue;
                }
                Ok(name) => name,
                Err(error) => {
                    errors.push(error.into());
                    continue;
                }
            };
            if module.state_on_several {
                errors.push(ProgramError::StateOnSeveral(name.clone()));
            }
            if module.states > 1 {
                errors.push(ProgramError::SeveralStates(name.clone()));
            }
            if module.checkpointed && module.states == 0 {
                errors.push(ProgramError::NoState(name.clone()));
            }
            for service in module.services {
                if let Some(first) = served.get(service) {
                    let (first, second, service) = (first.clone(), name.clone(), (*service).to_owned());
                    errors.push(ProgramError::SameService { service, first, second });
                } else {
                    served.insert(service, name.clone());
                }
            }
            names.push(name);
        }

        let known: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut calls = Graph::new();
        for module in modules {
            let Ok(name) = ModuleName::parse(module.name) else { continue };
            let called = calls.entry(name.clone()).or_default();
            for dependency in module.depends_on {
                match resolve(dependency, &served, &names) {
                    // A module may call itself by its own handle; that is no dependency.
                    Some(dependency) if dependency == name => {}
                    Some(dependency) => {
                        called.insert(dependency);
                    }
                    None => errors.push(missing(name.clone(), dependency, known.clone())),
                }
            }
        }
        if errors.is_empty() { Ok(Self { names, calls }) } else { Err(errors) }
    }

    /// Loops among declared dependencies, the first module again at the end: one for each module that is in a loop and
    /// in none that was reported.
    pub(crate) fn cycles(&self) -> Vec<Vec<ModuleName>> {
        let mut reported = BTreeSet::new();
        let mut cycles = Vec::new();
        for name in self.calls.keys() {
            if reported.contains(name) {
                continue;
            }
            if let Some(cycle) = path(&self.calls, name, name) {
                reported.extend(cycle.iter().cloned());
                cycles.push(cycle);
            }
        }
        cycles
    }
}

fn resolve(dependency: &Dependency, served: &HashMap<&str, ModuleName>, names: &[ModuleName]) -> Option<ModuleName> {
    match dependency {
        Dependency::Service(service) => served.get(service).cloned(),
        Dependency::Module(name) => names.iter().find(|known| known.as_str() == name).cloned(),
    }
}

fn missing(module: ModuleName, dependency: &Dependency, known: Vec<String>) -> ProgramError {
    match dependency {
        Dependency::Service(service) => ProgramError::NoService { module, service: (*service).to_owned(), known },
        Dependency::Module(name) => ProgramError::NoModule { module, dependency: name.clone(), known },
    }
}

/// A shortest way along edges, at least one, with both ends in it.
pub(crate) fn path(graph: &Graph, from: &ModuleName, to: &ModuleName) -> Option<Vec<ModuleName>> {
    let mut came_from: BTreeMap<&ModuleName, &ModuleName> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(here) = queue.pop_front() {
        for next in graph.get(here).into_iter().flatten() {
            if next == to {
                let mut way = vec![next.clone(), here.clone()];
                let mut at = here;
                while at != from {
                    at = came_from[at];
                    way.push(at.clone());
                }
                way.reverse();
                return Some(way);
            }
            if next != from && !came_from.contains_key(next) {
                came_from.insert(next, here);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ModuleName {
        ModuleName::parse(name).unwrap()
    }

    fn module<'a>(name: &'a str, services: &'a [&'static str], depends_on: &'a [Dependency]) -> Declared<'a> {
        Declared { name, services, depends_on, state_on_several: false, states: 0, checkpointed: false }
    }

    #[test]
    fn dependencies_are_resolved_to_modules() {
        let calls = [Dependency::Service("shop.Pricing"), Dependency::Module("stock".into())];
        let program = Program::check(&[
            module("cart", &["shop.Cart"], &calls),
            module("pricing", &["shop.Pricing"], &[]),
            module("stock", &[], &[]),
        ])
        .unwrap();
        assert_eq!(program.names, ["cart", "pricing", "stock"].map(name));
        assert_eq!(program.calls[&name("cart")], ["pricing", "stock"].map(name).into());
        assert_eq!(program.cycles(), Vec::<Vec<ModuleName>>::new());
    }

    #[test]
    fn every_fault_is_reported_and_names_both_sides() {
        let calls = [Dependency::Service("shop.Nowhere"), Dependency::Module("nobody".into())];
        let errors = Program::check(&[
            module("cart", &["shop.Cart"], &calls),
            module("basket", &["shop.Cart"], &[]),
            module("Bad", &[], &[]),
            module("cart", &[], &[]),
        ])
        .unwrap_err();
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(text[0], "module `basket` claims service `shop.Cart`, which module `cart` serves already");
        assert!(text[1].starts_with("`Bad` can't name a module"), "{}", text[1]);
        assert_eq!(text[2], "two modules are named `cart`; rename one of them");
        assert_eq!(
            text[3],
            "module `cart` depends on service `shop.Nowhere`, which no registered module serves; \
             the modules are: cart, basket"
        );
        assert_eq!(
            text[4],
            "module `cart` depends on module `nobody`, which is not registered; the modules are: cart, basket"
        );
        assert_eq!(text.len(), 5);
    }

    #[test]
    fn a_circle_of_calls_is_found_once() {
        let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")];
        let mut calls = Graph::new();
        for (from, to) in edges {
            calls.entry(name(from)).or_default().insert(name(to));
        }
        let program = Program { names: Vec::new(), calls };
        assert_eq!(program.cycles(), [["a", "b", "c", "a"].map(name).to_vec()]);
    }

    #[test]
    fn a_module_that_calls_itself_is_no_circle() {
        let calls = [Dependency::Service("shop.Cart")];
        let program = Program::check(&[module("cart", &["shop.Cart"], &calls)]).unwrap();
        assert_eq!(program.cycles(), Vec::<Vec<ModuleName>>::new());
    }
}
