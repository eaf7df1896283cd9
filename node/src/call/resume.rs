//! Streams that go on where they ended: a handle asks for the rest, when the module has moved or its node has gone.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status, codec::Codec};

use super::{
    deadline, retry,
    route::{BoxStream, Method, Route, write_deadline},
    scope::Scope,
    streaming::Streaming,
};

/// A stream is asked for so often in a row without a message, at the most.
const MOST_TRIES: u32 = 10;

/// What a stream of responses goes on with.
pub(super) trait Resume<T>: Send {
    /// A message came: the rest begins after it.
    fn saw(&mut self, message: &T);

    /// The stream has ended with this status: the rest of it, if it can be had.
    fn again(&mut self, status: &Status) -> Option<Again<T>>;
}

/// The stream that takes the place of one that ended.
pub(super) type Again<T> = BoxFuture<'static, Result<Streaming<T>, Status>>;

/// How a handle makes its call.
type Make<Req, Res> =
    Arc<dyn Fn(Request<Req>) -> BoxFuture<'static, Result<Response<Streaming<Res>>, Status>> + Send + Sync>;

struct Resumable<Req, Res> {
    make: Make<Req, Res>,
    metadata: tonic::metadata::MetadataMap,
    message: Req,
    go_on: fn(&mut Req, &Res),
    /// Of the call that the stream is made in.
    scope: Scope,
    deadline: Option<Instant>,
    /// Since the last message.
    failures: u32,
}

impl Route {
    /// One request, a stream of responses that goes on by itself: `go_on` makes the request one for what comes after a
    /// message.
    ///
    /// # Errors
    /// Those of [`Route::server_stream`].
    /// # Cancel safety
    /// Dropping the future, or the stream it gave, ends the call.
    pub async fn resumed_stream<L, Req, Res, C>(
        &self,
        path: &'static str,
        request: Request<Req>,
        codec: fn() -> C,
        direct: Method<L, Request<Req>, BoxStream<Res>>,
        go_on: fn(&mut Req, &Res),
    ) -> Result<Response<Streaming<Res>>, Status>
    where
        L: ?Sized + 'static,
        Req: Clone + Send + Sync + 'static,
        Res: Send + Sync + 'static,
        C: Codec<Encode = Req, Decode = Res> + Send + 'static,
    {
        let route = self.clone();
        let make: Make<Req, Res> = Arc::new(move |request| {
            let route = route.clone();
            Box::pin(async move { route.server_stream::<L, _, _, _>(path, request, codec(), direct).await })
        });
        let scope = Scope::current();
        let (metadata, _, message) = request.into_parts();
        let timeout = metadata.get(deadline::HEADER).map(|timeout| timeout.as_encoded_bytes());
        let deadline = deadline::of(timeout, scope.deadline);
        let mut resumable = Resumable { make, metadata, message, go_on, scope, deadline, failures: 0 };
        let mut made = resumable.make().await;
        while let Err(status) = &made
            && let Some(again) = resumable.after(status)
        {
            again.await;
            made = resumable.make().await;
        }
        Ok(made?.map(|stream| stream.resumed_by(Box::new(resumable))))
    }
}

impl<Req, Res> Resumable<Req, Res>
where
    Req: Clone + Send + 'static,
    Res: 'static,
{
    /// Makes the call for what has yet to come.
    fn make(&self) -> BoxFuture<'static, Result<Response<Streaming<Res>>, Status>> {
        let mut request = Request::new(self.message.clone());
        *request.metadata_mut() = self.metadata.clone();
        if let Some(deadline) = self.deadline {
            write_deadline(deadline, request.metadata_mut());
        }
        (self.make)(request)
    }

    /// The pause before the call may be made again, if it may.
    fn after(&mut self, status: &Status) -> Option<tokio::time::Sleep> {
        self.failures += 1;
        let pause = retry::pause(self.failures);
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() + pause < deadline);
        let again = in_time && self.failures < MOST_TRIES && retry::ended_on_the_way(status);
        again.then(|| sleep(pause))
    }
}

impl<Req, Res> Resume<Res> for Resumable<Req, Res>
where
    Req: Clone + Send + Sync + 'static,
    Res: Send + Sync + 'static,
{
    fn saw(&mut self, message: &Res) {
        self.failures = 0;
        (self.go_on)(&mut self.message, message);
    }

    fn again(&mut self, status: &Status) -> Option<Again<Res>> {
        let pause = self.after(status)?;
        let call = self.make();
        // Whoever reads the stream may do so in another call than the one that it was asked for in.
        let again = self.scope.around(async move {
            pause.await;
            call.await.map(Response::into_inner)
        });
        Some(Box::pin(again))
    }
}

impl<T> fmt::Debug for dyn Resume<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resume").finish_non_exhaustive()
    }
}
