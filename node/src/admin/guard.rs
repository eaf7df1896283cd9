//! Who asks, and whether that may be: before anything of what is asked is read.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use outpost_proto::identity::Role;
use tonic::{
    Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{
    BoxError,
    call::slot::{Request, Response, Wire},
    ingress::Seldom,
    status::AdminError,
    trust::{
        Admission, Peer,
        callers::bearer,
        operators::{Forbidden, Shown},
    },
};

/// The operator's API, for those who may ask it. What they may change within a method, the method asks.
pub(crate) struct Guarded<W> {
    pub(crate) api: W,
    pub(crate) admission: Admission,
    /// Strangers must not fill the log.
    pub(crate) strangers: Mutex<Seldom>,
}

impl<W: Wire> Wire for Guarded<W> {
    fn call(&self, mut request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let shown = shown(&request);
        let from = shown.from.clone();
        let admitted = self.admission.admit(shown);
        match admitted.and_then(|operator| operator.may_call(&method).map(|()| operator)) {
            Ok(operator) => {
                // From here on, the name counts; nobody needs the token.
                request.headers_mut().remove(AUTHORIZATION);
                request.extensions_mut().insert(operator);
                self.api.call(request)
            }
            Err(forbidden) => {
                let seldom = || self.strangers.lock().unwrap_or_else(PoisonError::into_inner).may_log();
                if !matches!(forbidden, Forbidden::Stranger(_)) || seldom() {
                    tracing::warn!(from, method, error = %forbidden, "refused an operator");
                }
                Box::pin(async move { Ok(Status::from(AdminError::Forbidden(forbidden)).into_http()) })
            }
        }
    }
}

fn shown(request: &Request) -> Shown<'_> {
    let (headers, extensions) = (request.headers(), request.extensions());
    let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    let info = extensions.get::<TcpConnectInfo>().or(tls);
    let address = info.and_then(TcpConnectInfo::remote_addr);
    Shown {
        certificate: extensions.get::<Peer>().and_then(|Peer(identity)| match &identity.role {
            Role::Operator(name) => Some(name.as_str()),
            Role::Node(_) => None,
        }),
        // What is there and can't be read is no token, and not nothing.
        token: headers.contains_key(AUTHORIZATION).then(|| bearer(headers).ok().flatten().unwrap_or_default()),
        private: tls.is_some() || address.is_some_and(|address| address.ip().is_loopback()),
        from: address.map(|address| address.to_string()).unwrap_or_default(),
    }
}
