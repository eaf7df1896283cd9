//! A program whose calls are written down, by all nodes of a test in one book.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outpost::{App, BoxError, Module};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Answers, Obedient, relay,
    v1::{
        Answer, Ask,
        kinds_server::{Kinds, KindsServer},
    },
};

/// What happened on all nodes.
#[derive(Debug, Default)]
pub struct Book {
    admitted: Mutex<Vec<Admitted>>,
    executed: Mutex<HashMap<String, usize>>,
}

/// A call was let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// By the instance on this node.
    pub node: String,
    /// When.
    pub at: Instant,
}

/// The key of the metadata that tells which node has answered.
pub const SERVED_BY: &str = "served-by";
/// A thread may be held up between the gate and the book for this long.
const LATE: Duration = Duration::from_millis(250);

impl Book {
    fn admit(&self, node: &str) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.push(Admitted { node: node.to_owned(), at: Instant::now() });
    }

    fn execute(&self, call: &str) {
        let mut executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
        *executed.entry(call.to_owned()).or_default() += 1;
    }

    /// How often a call ran; calls are told apart by their text.
    pub fn executed(&self, call: &str) -> usize {
        self.executed.lock().unwrap_or_else(PoisonError::into_inner).get(call).copied().unwrap_or(0)
    }

    /// Calls that ran more than once.
    pub fn executed_twice(&self) -> Vec<String> {
        let executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
        executed.iter().filter(|(_, count)| **count > 1).map(|(call, _)| call.clone()).collect()
    }

    /// How many calls were let in by a node.
    pub fn admitted_by(&self, node: &str) -> usize {
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.iter().filter(|admitted| admitted.node == node).count()
    }

    /// INV-1: at each time, only one node lets calls in: the owners of the module, in this order.
    ///
    /// # Errors
    /// The first call that a node let in which was not the owner.
    pub fn one_owner_at_a_time(&self, owners: &[String]) -> Result<(), String> {
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owner = 0;
        let mut since = None;
        for Admitted { node, at } in admitted.iter() {
            let late = since.is_some_and(|since| *at < since + LATE);
            if *node == owners[owner] {
                continue;
            }
            if owners.get(owner + 1) == Some(node) {
                owner += 1;
                since = Some(*at);
            } else if !(late && owner > 0 && *node == owners[owner - 1]) {
                return Err(format!("{node} let a call in while {} was owner number {owner}", owners[owner]));
            }
        }
        Ok(())
    }
}

/// [`Kinds`] on one node, with what it does written down.
struct Witness {
    node: String,
    book: Arc<Book>,
    obedient: Obedient,
}

impl Witness {
    fn sign<T>(&self, mut response: Response<T>) -> Response<T> {
        response.metadata_mut().insert(SERVED_BY, self.node.parse().expect("a node's name is ASCII"));
        response
    }
}

#[tonic::async_trait]
impl Kinds for Witness {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        self.book.execute(&request.get_ref().text);
        Ok(self.sign(self.obedient.unary(request).await?))
    }

    type ServerStreamStream = Answers;

    async fn server_stream(&self, request: Request<Ask>) -> Result<Response<Answers>, Status> {
        Ok(self.sign(self.obedient.server_stream(request).await?))
    }

    async fn client_stream(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        Ok(self.sign(self.obedient.client_stream(request).await?))
    }

    type BidiStream = Answers;

    async fn bidi(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answers>, Status> {
        Ok(self.sign(self.obedient.bidi(request).await?))
    }
}

/// The module `kinds` of one node.
#[must_use]
pub fn kinds(node: &str, book: &Arc<Book>, obedient: &Obedient) -> Module {
    let (node, book, obedient) = (node.to_owned(), Arc::clone(book), obedient.clone());
    Module::new("kinds", move || {
        let witness = Witness { node: node.clone(), book: Arc::clone(&book), obedient: obedient.clone() };
        let (node, book) = (node.clone(), Arc::clone(&book));
        // Runs as soon as a call is let in, and before it has arrived whole.
        let admit = move |request| {
            book.admit(&node);
            Ok::<Request<()>, Status>(request)
        };
        async move { Ok::<_, BoxError>(KindsServer::with_interceptor(witness, admit)) }
    })
}

/// A program of `kinds`, whose calls are written down, and `relay`.
#[must_use]
pub fn app(node: &str, book: &Arc<Book>) -> App {
    App::new("kinds", "1.0.0").with(kinds(node, book, &Obedient::default())).module("relay", relay)
}
