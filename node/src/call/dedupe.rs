//! Calls that run once, however often they are made: an instance keeps the answers that it gave, by call id.
//!
//! ```text
//! call ─▶ known? ─┬─ no ──────▶ a task of its own ─▶ module ─▶ answer ─┬─▶ kept
//!                 ├─ it runs ──▶ waits for that one ◀──────────────────┘
//!                 └─ answered ─▶ the same answer
//! ```
//!
//! The module runs in a task, which goes on when the caller goes away: if a lost connection ended it half way, nobody could
//! say what a second run would do. The answers travel with the state of the module.

pub(crate) mod book;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tonic::{Status, body::Body};

use super::{
    caller::ClientId,
    delivery, placed,
    slot::{Request, Response},
};
use crate::{
    id::{Epoch, ModuleName},
    status::CallError,
};
use book::{Book, Known};
pub(crate) use book::{Bounds, Key, Reply, Unreadable};

/// How long a call may go on that nobody waits for any more. The caller may have lost its connection, and ask again.
const RUN_ON: Duration = Duration::from_secs(30);

/// Where a call's answer will be, for all that wait for it.
type Running = Arc<watch::Sender<Option<Arc<Reply>>>>;

/// See the module. Dropping it ends the calls that run.
#[derive(Debug)]
pub(crate) struct Dedupe {
    module: ModuleName,
    bounds: Bounds,
    /// The largest request, in bytes.
    most: usize,
    book: Mutex<Book<Running>>,
    runs: Mutex<JoinSet<()>>,
}

impl Dedupe {
    /// `max_message` is the most bytes that a server of the module decodes.
    pub(crate) fn new(module: ModuleName, bounds: Bounds, max_message: usize) -> Arc<Self> {
        /// What announces a message on a wire.
        const PREFIX: usize = 5;
        let (book, runs) = (Mutex::new(Book::new(bounds)), Mutex::default());
        Arc::new(Self { module, bounds, most: max_message.saturating_add(PREFIX), book, runs })
    }

    /// Reads a request whole: one that breaks off on its way has not run, and nothing of it is kept.
    ///
    /// # Errors
    /// A request that is too large, or that broke off.
    pub(crate) async fn take_in(
        &self,
        path: &str,
        client: Option<ClientId>,
        request: Request,
    ) -> Result<(Key, Request), Status> {
        let (mut parts, body) = request.into_parts();
        let body =
            Limited::new(body, self.most).collect().await.map_err(|error| match error.is::<LengthLimitError>() {
                true => CallError::TooLarge { most: self.most }.into(),
                false => Status::from_error(error),
            })?;
        // Who asks again may read another compression than who asked first.
        parts.headers.remove("grpc-accept-encoding");
        let call_id = delivery::call_id(&parts.headers).unwrap_or_default().to_owned();
        let client = client.and_then(ClientId::client).map(|client| client.key()).unwrap_or_default();
        let key = Key { method: path.to_owned(), call_id, client };
        Ok((key, Request::from_parts(parts, Body::new(Full::new(body.to_bytes())))))
    }

    /// The answer of a call: of this run, of one that goes on, or of one that is over.
    ///
    /// # Errors
    /// When too many calls run.
    /// # Cancel safety
    /// Dropping the future ends no run.
    pub(crate) async fn answer<F>(self: &Arc<Self>, key: Key, run: impl FnOnce() -> F) -> Result<Arc<Reply>, CallError>
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let mut answer = {
            let mut book = self.book();
            match book.look(&key) {
                Some(Known::Answered(reply)) => return Ok(Arc::clone(reply)),
                Some(Known::Runs(running)) => running.subscribe(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    let running = Arc::new(sender);
                    let full = |_| CallError::TooManyKept { module: self.module.clone(), most: self.bounds.entries };
                    book.begin(key.clone(), Arc::clone(&running)).map_err(full)?;
                    self.start(Run { table: Arc::downgrade(self), key, running }, run());
                    receiver
                }
            }
        };
        let reply = answer.wait_for(Option::is_some).await.ok().and_then(|reply| reply.clone());
        // Its task writes an answer however it ends, while the table is there.
        reply.ok_or(CallError::Panicked)
    }

    fn start(&self, run: Run, module: impl Future<Output = Reply> + Send + 'static) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.spawn(async move {
            let reply = tokio::select! {
                reply = module => reply,
                () = run.abandoned() => Reply::of(CallError::Abandoned(RUN_ON).into()),
            };
            run.end(reply);
        });
        // What has ended is let go.
        while runs.try_join_next().is_some() {}
    }

    /// Ends the calls that run, since the module moves away from this epoch; their answer, which is kept, is that they may
    /// have run. To be called once the gate has cut them off. Their passes are dropped a moment later: the gate tells when.
    pub(crate) fn cut(&self, epoch: Epoch) {
        let running: Vec<(Key, Running)> =
            self.book().running().map(|(key, running)| (key.clone(), Arc::clone(running))).collect();
        for (key, running) in running {
            let error = CallError::Cut { module: self.module.clone(), epoch };
            self.ended(key, &running, Reply::of(error.into()));
        }
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// The answers, for the instance that will be in this one's place. Calls that run will be answered there that they may
    /// have: their effect may be in the state that these answers go with. None do where the gate is drained, or cut and
    /// [`Dedupe::cut`] was called.
    pub(crate) fn encode(&self) -> Bytes {
        let interrupted = CallError::Interrupted { module: self.module.clone() };
        self.book().encode(&Reply::of(interrupted.into()))
    }

    /// Takes over the answers of the instance that was in this one's place.
    ///
    /// # Errors
    /// What is not such an encoding; then nothing has changed.
    pub(crate) fn decode(&self, encoded: &[u8]) -> Result<(), Unreadable> {
        #[cfg(feature = "simulation")]
        if crate::simulation::is_broken(crate::simulation::Rule::AnswersTravel) {
            return Ok(());
        }
        self.book().decode(encoded)
    }

    /// Keeps the answer of a run, and gives it to all that wait; unless the run was cut before.
    fn ended(&self, key: Key, running: &Running, reply: Reply) {
        let reply = Arc::new(reply);
        {
            let mut book = self.book();
            if !matches!(book.look(&key), Some(Known::Runs(known)) if Arc::ptr_eq(known, running)) {
                return;
            }
            if placed::is_not_executed(&reply.headers) {
                book.forget(&key);
            } else if book.is_too_large(&reply) {
                let kept = Reply::of(CallError::AnswerNotKept { module: self.module.clone() }.into());
                book.finish(key, Arc::new(kept));
            } else {
                book.finish(key, Arc::clone(&reply));
            }
        }
        running.send_replace(Some(reply));
    }

    fn book(&self) -> MutexGuard<'_, Book<Running>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run of the module; writes an answer however it ends.
struct Run {
    /// Not held: the table holds its runs.
    table: Weak<Dedupe>,
    key: Key,
    running: Running,
}

impl Run {
    fn end(&self, reply: Reply) {
        if let Some(table) = self.table.upgrade() {
            table.ended(self.key.clone(), &self.running, reply);
        }
    }

    /// Ready when nobody has waited for the answer for a while.
    async fn abandoned(&self) {
        loop {
            self.running.closed().await;
            sleep(RUN_ON).await;
            if self.running.is_closed() {
                return;
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // After its end this does nothing. Otherwise the task panicked, or was ended with the table.
        self.end(Reply::of(CallError::Panicked.into()));
    }
}

impl Reply {
    /// A status.
    pub(crate) fn of(status: Status) -> Self {
        let (parts, _) = status.into_http::<Body>().into_parts();
        Self { status: parts.status, headers: parts.headers, body: Bytes::new(), trailers: None }
    }

    /// Reads a response to its end.
    pub(crate) async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        match body.collect().await {
            Ok(collected) => {
                let trailers = collected.trailers().cloned();
                Self { status: parts.status, headers: parts.headers, body: collected.to_bytes(), trailers }
            }
            Err(status) => Self::of(status),
        }
    }

    pub(crate) fn response(&self) -> Response {
        self.clone().into_response()
    }

    pub(crate) fn into_response(self) -> Response {
        let body = Full::new(self.body.clone());
        let body = match (self.trailers, self.body.is_empty()) {
            (None, true) => Body::empty(),
            (None, false) => Body::new(body),
            (Some(trailers), _) => Body::new(body.with_trailers(std::future::ready(Some(Ok(trailers))))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::poll;
    use tokio::sync::oneshot;
    use tonic::Code;

    use super::*;

    fn table(entries: usize, bytes: usize) -> Arc<Dedupe> {
        let module = ModuleName::parse("payments").unwrap();
        Dedupe::new(module, Bounds { entries, bytes }, 100)
    }

    fn key(call_id: &str) -> Key {
        Key { method: "/shop.v1.Payments/Charge".to_owned(), call_id: call_id.to_owned(), client: String::new() }
    }

    fn said(body: &'static str) -> Reply {
        Reply { body: Bytes::from_static(body.as_bytes()), ..Reply::of(Status::ok("")) }
    }

    fn code(reply: &Reply) -> Code {
        Status::from_header_map(&reply.headers).unwrap().code()
    }

    #[tokio::test]
    async fn calls_of_one_id_run_once_and_have_one_answer() {
        let (table, runs) = (table(10, 10_000), Arc::new(AtomicUsize::new(0)));
        let run = || {
            let runs = Arc::clone(&runs);
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                said("done")
            }
        };
        let (one, two) = tokio::join!(table.answer(key("a"), run), table.answer(key("a"), run));
        let three = table.answer(key("a"), run).await.unwrap();
        assert_eq!((&one.unwrap(), &two.unwrap()), (&three, &three));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        table.answer(key("b"), run).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_no_run() {
        let table = table(10, 10_000);
        let (go_on, goes_on) = oneshot::channel::<()>();
        let run = || async move {
            goes_on.await.unwrap();
            said("the first run")
        };
        {
            let mut call = std::pin::pin!(table.answer(key("a"), run));
            assert!(poll!(call.as_mut()).is_pending());
        }
        let again = table.answer(key("a"), || async { said("a second run") });
        let mut again = std::pin::pin!(again);
        assert!(poll!(again.as_mut()).is_pending());
        go_on.send(()).unwrap();
        assert_eq!(again.await.unwrap().body, "the first run");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_nobody_waits_for_is_ended_after_a_while_and_not_run_again() {
        let table = table(10, 10_000);
        {
            let mut call = std::pin::pin!(table.answer(key("a"), std::future::pending));
            assert!(poll!(call.as_mut()).is_pending());
        }
        sleep(RUN_ON / 2).await;
        {
            let mut again = std::pin::pin!(table.answer(key("a"), std::future::pending));
            assert!(poll!(again.as_mut()).is_pending());
            sleep(RUN_ON * 2).await;
            assert!(poll!(again.as_mut()).is_pending(), "somebody waits");
        }
        sleep(RUN_ON * 2).await;
        let reply = table.answer(key("a"), || async { said("a second run") }).await.unwrap();
        assert_eq!(code(&reply), Code::Cancelled);
    }

    #[tokio::test]
    async fn errors_are_kept_unless_they_say_that_nothing_ran() {
        let table = table(10, 10_000);
        let fail = || async { Reply::of(Status::aborted("no")) };
        table.answer(key("a"), fail).await.unwrap();
        let again = table.answer(key("a"), || async { said("a second run") }).await.unwrap();
        assert_eq!(code(&again), Code::Aborted);
        let stopped = || async { Reply::of(CallError::Stopped(ModuleName::parse("payments").unwrap()).into()) };
        table.answer(key("b"), stopped).await.unwrap();
        assert_eq!(table.answer(key("b"), || async { said("the first run") }).await.unwrap().body, "the first run");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let table = table(10, 10_000);
        let panics = || async { panic!("in the module's response") };
        assert_eq!(code(&table.answer(key("a"), panics).await.unwrap()), Code::Internal);
        let again = table.answer(key("a"), || async { said("a second run") }).await.unwrap();
        assert_eq!(code(&again), Code::Internal);
    }

    #[tokio::test]
    async fn calls_that_were_cut_are_not_run_again_wherever_their_answers_went() {
        let (from, to) = (table(10, 10_000), table(10, 10_000));
        from.answer(key("a"), || async { said("done") }).await.unwrap();
        let mut call = std::pin::pin!(from.answer(key("b"), std::future::pending));
        assert!(poll!(call.as_mut()).is_pending());
        from.cut(Epoch(3));
        assert_eq!(code(&call.await.unwrap()), Code::Unavailable);
        to.decode(&from.encode()).unwrap();
        for table in [&from, &to] {
            let run = || async { said("a second run") };
            assert_eq!(table.answer(key("a"), run).await.unwrap().body, "done");
            let cut = table.answer(key("b"), run).await.unwrap();
            assert_eq!((code(&cut), cut.headers["outpost-outcome"].as_bytes()), (Code::Unavailable, &b"unknown"[..]));
        }
    }

    #[tokio::test]
    async fn a_call_that_ran_when_the_answers_were_written_is_not_run_again_by_who_reads_them() {
        let (from, to) = (table(10, 10_000), table(10, 10_000));
        let mut call = std::pin::pin!(from.answer(key("a"), std::future::pending));
        assert!(poll!(call.as_mut()).is_pending());
        to.decode(&from.encode()).unwrap();
        let again = to.answer(key("a"), || async { said("a second run") }).await.unwrap();
        assert_eq!((code(&again), again.headers["outpost-outcome"].as_bytes()), (Code::Unavailable, &b"unknown"[..]));
        assert_eq!(again.headers["outpost-reason"], "interrupted");
    }

    #[tokio::test]
    async fn a_table_that_is_full_of_runs_takes_no_more() {
        let table = table(1, 10_000);
        let mut call = std::pin::pin!(table.answer(key("a"), std::future::pending));
        assert!(poll!(call.as_mut()).is_pending());
        let refused = table.answer(key("b"), || async { said("one too many") }).await.unwrap_err();
        assert!(matches!(refused, CallError::TooManyKept { most: 1, .. }), "{refused}");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_is_given_once() {
        let table = table(10, 1000);
        let large = || async { said("0123456789").with_body(&[7; 600]) };
        assert_eq!(table.answer(key("a"), large).await.unwrap().body.len(), 600);
        let again = table.answer(key("a"), || async { said("a second run") }).await.unwrap();
        assert_eq!((code(&again), again.body.len()), (Code::FailedPrecondition, 0));
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_not_taken_in() {
        let request = |size: usize| http::Request::new(Body::new(Full::new(Bytes::from(vec![0; size]))));
        let table = table(10, 1000);
        table.take_in("/a/B", None, request(105)).await.unwrap();
        assert_eq!(table.take_in("/a/B", None, request(106)).await.unwrap_err().code(), Code::OutOfRange);
    }

    #[tokio::test]
    async fn a_reply_becomes_the_response_that_it_was_read_from() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("t"))]);
        for reply in [
            Reply::of(Status::aborted("no")),
            said("a body"),
            Reply { trailers: Some(trailers.clone()), ..said("a body") },
            Reply { trailers: Some(trailers), ..said("") },
        ] {
            assert_eq!(Reply::read(reply.response()).await, reply);
        }
    }

    impl Reply {
        fn with_body(self, body: &[u8]) -> Self {
            Self { body: Bytes::copy_from_slice(body), ..self }
        }
    }
}
