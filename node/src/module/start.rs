//! Starting the modules of a node: all factories at once, each free to call modules that start with it.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{sync::Notify, task::JoinSet};

use super::{
    Built, ErasedFactory, Limits, Supply,
    program::{Graph, path},
};
use crate::{
    BoxError,
    call::scope::Scope,
    id::ModuleName,
    status::{CallError, StartError, with_causes},
};

/// The module whose factory is running, as calls that it makes carry it along: a small number, since the scope is
/// copied with each poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Starting {
    index: u32,
    /// Tells the nodes of one process apart.
    node: u32,
}

/// Which factories wait for which modules. A circle of waits would never end; whoever would close it gets an error, and
/// the start fails.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    node: u32,
    names: Vec<ModuleName>,
    state: Mutex<State>,
    circle_found: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How often a module's factory waits for another module now.
    waits: BTreeMap<(ModuleName, ModuleName), usize>,
    circle: Option<Vec<ModuleName>>,
}

impl State {
    fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for (from, to) in self.waits.keys() {
            graph.entry(from.clone()).or_default().insert(to.clone());
        }
        graph
    }
}

impl Waits {
    /// `node` is a number that no other node of the process has.
    pub(crate) fn new(node: u32, names: Vec<ModuleName>) -> Self {
        Self { node, names, ..Self::default() }
    }

    /// Notes that a factory waits for a module, until the guard is dropped.
    pub(crate) fn wait(&self, starting: Option<Starting>, module: &ModuleName) -> Result<Option<Edge<'_>>, CallError> {
        let Some(from) = starting.filter(|starting| starting.node == self.node) else { return Ok(None) };
        let edge = (self.names[from.index as usize].clone(), module.clone());
        let mut state = self.state();
        *state.waits.entry(edge.clone()).or_default() += 1;
        if let Some(circle) = path(&state.graph(), &edge.0, &edge.0) {
            state.circle = Some(circle.clone());
            drop(state);
            drop(Edge { waits: self, edge });
            self.circle_found.notify_one();
            return Err(CallError::WaitCycle(circle));
        }
        drop(state);
        Ok(Some(Edge { waits: self, edge }))
    }

    /// Blames a factory that waits for nobody, where there is one: the others may only wait for that.
    fn timeout(&self, unfinished: &[usize], limit: Duration) -> StartError {
        let waits = self.state().graph();
        let names = || unfinished.iter().map(|index| &self.names[*index]);
        let blamed = names().find(|name| !waits.contains_key(*name)).or_else(|| names().next());
        let module = blamed.cloned().unwrap_or_else(ModuleName::node);
        let awaited_by = waits.iter().filter(|(_, to)| to.contains(&module)).map(|(from, _)| from.clone()).collect();
        StartError::FactoryTimeout { module, limit, awaited_by }
    }

    async fn circle(&self) -> Vec<ModuleName> {
        loop {
            if let Some(circle) = self.state().circle.clone() {
                return circle;
            }
            self.circle_found.notified().await;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One wait.
pub(crate) struct Edge<'a> {
    waits: &'a Waits,
    edge: (ModuleName, ModuleName),
}

impl Drop for Edge<'_> {
    fn drop(&mut self) {
        let mut state = self.waits.state();
        if let Some(count) = state.waits.get_mut(&self.edge) {
            *count -= 1;
            if *count == 0 {
                state.waits.remove(&self.edge);
            }
        }
    }
}

/// Runs factories, each given with its module's place in the program, and hands over what each has built as soon as it has. The first failure ends the others.
///
/// # Cancel safety
/// Dropping the future ends the factories.
pub(crate) async fn start(
    waits: &Arc<Waits>,
    factories: Vec<(usize, Arc<dyn ErasedFactory>, Supply)>,
    limits: Limits,
    limit: Duration,
    mut built: impl FnMut(usize, Vec<Built>),
) -> Result<(), StartError> {
    let mut running = JoinSet::new();
    let mut indices = HashMap::new();
    let mut unfinished: Vec<usize> = factories.iter().map(|(index, ..)| *index).collect();
    for (index, factory, supply) in factories {
        let scope = Scope::of_start(Starting { index: index as u32, node: waits.node });
        let mut factory = Box::pin(async move { factory.build(supply).await });
        let limited = poll_fn(move |cx| limits.enter(|| factory.as_mut().poll(cx)));
        let task = running.spawn(scope.around(limited).map(move |services| (index, services)));
        indices.insert(task.id(), index);
    }

    let all = async {
        while let Some(finished) = running.join_next().await {
            let (index, services) = finished.map_err(|error| panicked(&waits.names[indices[&error.id()]], error))?;
            let services = services.map_err(|error| failed(waits, index, &error))?;
            unfinished.retain(|module| *module != index);
            built(index, services);
        }
        Ok(())
    };
    let started = tokio::select! {
        biased;
        // A circle is the reason, even where a factory answers with what the circle did to it.
        circle = waits.circle() => Err(StartError::FactoryCycle(circle)),
        done = tokio::time::timeout(limit, all) => match done {
            Ok(done) => done,
            Err(_) => Err(waits.timeout(&unfinished, limit)),
        },
    };
    if let Err(StartError::FactoryCycle(_)) = started {
        // A module that is tried again may find that the others have started meanwhile.
        waits.state().circle = None;
    }
    started
}

fn failed(waits: &Waits, index: usize, error: &BoxError) -> StartError {
    if let Some(circle) = waits.state().circle.clone() {
        return StartError::FactoryCycle(circle);
    }
    StartError::Factory { module: waits.names[index].clone(), error: with_causes(&**error) }
}

fn panicked(module: &ModuleName, error: tokio::task::JoinError) -> StartError {
    let message = match error.try_into_panic() {
        Ok(panic) => crate::call::panic_text(&*panic),
        Err(_) => "it was cancelled".to_owned(),
    };
    StartError::FactoryPanicked { module: module.clone(), message }
}
