//! Who has begun a call, as the call carries it along.
//!
//! The node at which a client's call comes in finds out who that is ([`trust::callers`](crate::trust::callers)). From there on
//! it is part of the call's [`Scope`]: what the call leads to, on any node, has it too.
//!
//! A scope is copied many times in a call, so it has a number in place of the client, and the call itself [holds](Held) what
//! the number stands for. A call without a known client pays nothing for that.
//!
//! **Invariant:** a number stands for one client, ever: what outlives its call finds nobody under it, and never somebody else.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{chain::Chain, scope::Scope};
use crate::trust::Client;

/// Who calls: of use in a module's methods, while they serve a call.
///
/// ```
/// # use tonic::Status;
/// # fn check() -> Result<(), Status> {
/// let caller = outpost::Caller::current();
/// let subject = caller.client().and_then(|client| client.token()).map(|token| token.subject());
/// let subject = subject.ok_or_else(|| Status::unauthenticated("show a token"))?;
/// # let _ = subject; Ok(()) }
/// # assert!(check().is_err());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Caller {
    client: Option<Arc<Client>>,
    chain: Chain,
}

impl Caller {
    /// Of the call that is being served. It is known in the code that serves it, and not in tasks which that begins: read it
    /// before, and hand it on.
    #[must_use]
    pub fn current() -> Self {
        let Scope { client, chain, .. } = Scope::current();
        Self { client: client.and_then(ClientId::client), chain }
    }

    /// The outside client that has begun it, however many modules the call has come through since.
    ///
    /// `None` where that has shown neither certificate nor token that the node asks for, *and* where a module has begun the
    /// call by itself. So it is no sign of a call from within: what is only for other modules is to be
    /// [`internal`](crate::Module::internal).
    #[must_use]
    pub fn client(&self) -> Option<&Client> {
        self.client.as_deref()
    }

    /// Whether the call has come through a module, the one that serves it included. A `false` is certain. A `true` may be
    /// that of another module, whose name shares the same one of 128 bits: so it is nothing to admit somebody by.
    #[must_use]
    pub fn may_have_come_through(&self, module: &str) -> bool {
        self.chain.may_have(Chain::of(module))
    }
}

/// What stands for a client that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientId(NonZeroU64);

impl ClientId {
    /// The client, while a call holds it.
    pub(crate) fn client(self) -> Option<Arc<Client>> {
        held().get(&self).cloned()
    }
}

/// The clients of all calls that are under way in this process.
fn held() -> MutexGuard<'static, HashMap<ClientId, Arc<Client>>> {
    static HELD: LazyLock<Mutex<HashMap<ClientId, Arc<Client>>>> = LazyLock::new(Mutex::default);
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the client of a call, for as long as the call and its answer last.
#[derive(Debug)]
pub(crate) struct Held(ClientId);

impl Held {
    pub(crate) fn of(client: Arc<Client>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed));
        let id = ClientId(number.expect("a process makes fewer calls"));
        held().insert(id, client);
        Self(id)
    }

    /// Holds a client for longer than the call that it came with.
    pub(crate) fn again(id: Option<ClientId>) -> Option<Self> {
        id.and_then(ClientId::client).map(Self::of)
    }

    pub(crate) fn id(&self) -> ClientId {
        self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let client = held().remove(&self.0);
        drop(client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str) -> Held {
        Held::of(Arc::new(Client::new(Some(name.to_owned()), None)))
    }

    #[test]
    fn outside_of_a_call_nobody_calls() {
        let caller = Caller::current();
        assert!(caller.client().is_none());
        assert!(!caller.may_have_come_through("cart"));
    }

    #[test]
    fn what_serves_a_call_knows_who_has_begun_it() {
        let client = held("web");
        let scope = Scope::arrived(0, Chain::of("cart"), Some(client.id()));
        let caller = scope.within(Chain::of("orders")).enter(Caller::current);
        assert_eq!(caller.client().and_then(Client::certificate), Some("web"));
        assert!(caller.may_have_come_through("cart") && caller.may_have_come_through("orders"));
        assert!(!caller.may_have_come_through("payment"));
    }

    #[test]
    fn what_outlives_its_call_finds_nobody() {
        let (first, id) = {
            let client = held("web");
            (Held::again(Some(client.id())).unwrap(), client.id())
        };
        let others: Vec<Held> = ["a", "b", "c"].map(held).into();
        assert_eq!(id.client(), None);
        assert!(others.iter().all(|other| other.id() != id));
        assert_eq!(first.id().client().unwrap().certificate(), Some("web"), "it is held for longer");
    }
}
