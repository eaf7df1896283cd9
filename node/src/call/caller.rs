//! Who has begun a call, as the call carries it along.
//!
//! The node at which a client's call comes in finds out who that is ([`trust::callers`](crate::trust::callers)). From there on
//! it is part of the call's [`Scope`]: what the call leads to, on any node, has it too.

use std::sync::Arc;

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
        Self { client, chain }
    }

    /// The outside client that has begun it, however many modules the call has come through since. `None` where that has
    /// shown neither certificate nor token that the node asks for, and where a module has begun it by itself.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_a_call_nobody_calls() {
        let caller = Caller::current();
        assert!(caller.client().is_none());
        assert!(!caller.may_have_come_through("cart"));
    }

    #[test]
    fn what_serves_a_call_knows_who_has_begun_it() {
        let client = Arc::new(Client::new(Some("web".to_owned()), None));
        let scope = Scope::arrived(0, Chain::of("cart"), Some(client));
        let caller = scope.within(Chain::of("orders")).enter(Caller::current);
        assert_eq!(caller.client().and_then(Client::certificate), Some("web"));
        assert!(caller.may_have_come_through("cart") && caller.may_have_come_through("orders"));
        assert!(!caller.may_have_come_through("payment"));
    }
}
