//! Who asks, and whether that may be: before anything of what is asked is read.

use futures_util::future::BoxFuture;
use tonic::{
    Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{
    BoxError,
    call::slot::{Request, Response, Wire},
    status::AdminError,
    trust::{Admission, Peer},
};

/// The operator's API, for those who may ask it. What they may change within a method, the method asks.
pub(crate) struct Guarded<W> {
    pub(crate) api: W,
    pub(crate) admission: Admission,
}

impl<W: Wire> Wire for Guarded<W> {
    fn call(&self, mut request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let from = from(&request);
        let admitted = self.admission.admit(request.extensions().get::<Peer>(), from.clone());
        match admitted.and_then(|operator| operator.may_call(&method).map(|()| operator)) {
            Ok(operator) => {
                request.extensions_mut().insert(operator);
                self.api.call(request)
            }
            Err(forbidden) => {
                tracing::warn!(from, method, error = %forbidden, "refused an operator");
                Box::pin(async move { Ok(Status::from(AdminError::Forbidden(forbidden)).into_http()) })
            }
        }
    }
}

fn from(request: &Request) -> String {
    let extensions = request.extensions();
    let plain = extensions.get::<TcpConnectInfo>();
    let info = plain.or_else(|| extensions.get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref));
    info.and_then(TcpConnectInfo::remote_addr).map(|address| address.to_string()).unwrap_or_default()
}
