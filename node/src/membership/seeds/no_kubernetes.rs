//! In place of `kubernetes.rs` where that is left out: nothing is a Service then.

use std::{convert::Infallible, net::SocketAddr};

use super::Found;

/// There is none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service(Infallible);

impl Service {
    pub(super) fn parse(_: &str) -> Result<Self, &'static str> {
        Err("this program is built without a client of Kubernetes: build it with the feature `kubernetes` of crate \
             `outpost`, or write the DNS name of a headless Service, such as `shop-nodes.shop.svc:7002`")
    }
}

pub(super) async fn watch(service: Service, _: &[SocketAddr], _: impl Fn(Found)) {
    match service.0 {}
}
