//! A part's state on its way from the node that serves it to the one that it moves to.
//!
//! ```text
//! target                                   source
//!   │ begin (which move) ────────────────────▶│
//!   │◀────────────── base: chunks, end ───────│ snapshot, while it serves; only of a module that tracks its changes
//!   │◀────────────────────────────── copied ──│
//!   │   (Prepared is committed; the source closes its gate, calls inside finish)
//!   │◀─── changes, or the state: chunks, end ─│
//!   │◀─── replies: chunks, end ───────────────│ what the framework keeps of calls that may come again
//!   │◀─── whole: digest, bytes ───────────────│
//!   │ installed: digest ─────────────────────▶│ now the source may propose the hand-over
//!   │◀─────────────────────────────── noted ──│
//! ```
//! The target asks, so that a source whose target has gone keeps nothing for it. Whatever breaks before `installed`, the
//! move is given up; from then on the target keeps what it has until the record says what became of it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use outpost_proto::cluster::v1::{
    Copied, Noted, Section, SectionEnd, TransferBegin, TransferRequest, TransferResponse, Whole,
    handoff_client::HandoffClient, handoff_server::Handoff, transfer_request, transfer_response::Step,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};

use super::core::{Event, InstanceId};
use crate::{
    BoxError,
    call::dedupe::Dedupe,
    id::{Incarnation, ModuleName, NodeId},
    module::{Held, Hooks, SnapshotReader, SnapshotWriter},
    placement::state::Sealed,
    status::{is_move_over, move_over, with_causes},
    trust::{self, Peer, Trust},
};

/// How long a source waits for what its target asks for, and a target for a connection.
const SILENCE: Duration = Duration::from_secs(10);
/// How many chunks may be on their way within the source.
const QUEUE: usize = 8;
/// The pieces that replies are sent in.
const CHUNK: usize = 256 << 10;
/// What may be on its way between the nodes.
const WINDOW: u32 = 8 << 20;
/// What one frame may carry: fewer of them are less work for both.
const FRAME: u32 = 1 << 20;
/// A chunk, and what is around it.
const LARGEST_MESSAGE: usize = 4 << 20;

/// The target has the state.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) module: ModuleName,
    pub(crate) id: InstanceId,
    pub(crate) of: u64,
    pub(crate) sealed: Sealed,
    /// It can serve at once.
    pub(crate) ready: bool,
}

/// A part that moves away, as its target may have it.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) module: ModuleName,
    pub(crate) id: InstanceId,
    /// The move.
    pub(crate) of: u64,
    pub(crate) to: Incarnation,
    pub(crate) state: Option<Held>,
    /// The replies that are kept for calls which may come again.
    pub(crate) replies: Arc<Dedupe>,
    /// The move for which no call is inside, and none will be.
    pub(crate) empty: watch::Receiver<u64>,
    /// The move is over.
    pub(crate) over: CancellationToken,
    /// The module has ended here, whatever becomes of the move.
    pub(crate) gone: CancellationToken,
    pub(crate) installed: mpsc::Sender<Installed>,
    /// Bytes.
    pub(crate) limit: u64,
    /// What it was sealed with, once that was sent.
    pub(crate) sent: Mutex<Option<Sealed>>,
}

/// The parts that move away from this node.
#[derive(Debug, Default)]
pub(crate) struct Offers(watch::Sender<BTreeMap<ModuleName, Arc<Offer>>>);

impl Offers {
    /// What is offered now, in place of what was.
    pub(crate) fn set(&self, offers: BTreeMap<ModuleName, Arc<Offer>>) {
        self.0.send_replace(offers);
    }

    pub(crate) fn now(&self) -> BTreeMap<ModuleName, Arc<Offer>> {
        self.0.borrow().clone()
    }

    /// The offer of a move, which this node may have yet to hear of.
    async fn find(&self, begin: &TransferBegin) -> Result<Arc<Offer>, Status> {
        let mut offers = self.0.subscribe();
        let to = |offer: &Offer| offer.to.node.as_str() == begin.node && offer.to.generation == begin.generation;
        let offered = |offers: &BTreeMap<ModuleName, Arc<Offer>>| {
            let offer = offers.values().find(|offer| offer.module.as_str() == begin.module)?;
            (offer.of == begin.r#move && to(offer)).then(|| Arc::clone(offer))
        };
        let wait =
            async { offers.wait_for(|offers| offered(offers).is_some()).await.ok().and_then(|all| offered(&all)) };
        match timeout(SILENCE, wait).await {
            Ok(Some(offer)) => Ok(offer),
            _ => {
                let text =
                    format!("module `{}` is not on its way to {}#{}", begin.module, begin.node, begin.generation);
                Err(Status::failed_precondition(text))
            }
        }
    }
}

/// Answers targets.
#[derive(Debug)]
pub(crate) struct Source {
    offers: Arc<Offers>,
    /// The cluster's id.
    cluster: watch::Receiver<String>,
    giving: Mutex<JoinSet<()>>,
}

impl Source {
    pub(crate) fn new(offers: Arc<Offers>, cluster: watch::Receiver<String>) -> Self {
        Self { offers, cluster, giving: Mutex::default() }
    }
}

#[tonic::async_trait]
impl Handoff for Source {
    type TransferStream = Pin<Box<dyn Stream<Item = Result<TransferResponse, Status>> + Send>>;

    async fn transfer(
        &self,
        request: Request<Streaming<TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let mut requests = request.into_inner();
        let first = timeout(SILENCE, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the target did not say what it wants"))??;
        let Some(TransferRequest { step: Some(transfer_request::Step::Begin(begin)) }) = first else {
            return Err(Status::invalid_argument("a transfer begins with `begin`"));
        };
        if *self.cluster.borrow() != begin.cluster {
            return Err(Status::failed_precondition(format!("this node is not of cluster `{}`", begin.cluster)));
        }
        trust::may_speak_for(peer.as_ref(), &begin.node)?;
        let offer = self.offers.find(&begin).await?;
        let (to, responses) = mpsc::channel(QUEUE);
        let out = Out { to, hasher: blake3::Hasher::new(), bytes: 0 };
        // Ends with the stream of responses: then nothing can be sent any more.
        let mut giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        while giving.try_join_next().is_some() {}
        giving.spawn(async move {
            let to = out.to.clone();
            let giving = tokio::select! {
                given = offer.give(out, requests, &begin) => given,
                () = offer.gone.cancelled() => Err(Status::aborted("the module has ended here")),
                () = offer.over.cancelled() => Err(move_over()),
            };
            let Err(status) = giving else { return };
            if !is_move_over(&status) {
                tracing::warn!(module = %offer.module, to = %offer.to, error = status.message(), "a state was not handed over");
            }
            // The target may have gone.
            let _ = to.send(Err(status)).await;
        });
        drop(giving);
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// Where a source sends.
struct Out {
    to: mpsc::Sender<Result<TransferResponse, Status>>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Out {
    async fn step(&self, step: Step) -> Result<(), Status> {
        let sent = self.to.send(Ok(TransferResponse { step: Some(step) })).await;
        sent.map_err(|_| Status::cancelled("the target has gone"))
    }

    async fn chunk(&mut self, chunk: Bytes) -> Result<(), Status> {
        self.hasher.update(&chunk);
        self.bytes += chunk.len() as u64;
        self.step(Step::Chunk(chunk)).await
    }
}

impl Offer {
    async fn give(
        &self,
        mut out: Out,
        mut requests: Streaming<TransferRequest>,
        begin: &TransferBegin,
    ) -> Result<(), Status> {
        let known = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sealed) = known.filter(|sealed| !begin.installed.is_empty() && sealed.digest == begin.installed) {
            self.has_it(sealed, begin.ready).await;
            return out.step(Step::Noted(Noted {})).await;
        }
        if !begin.installed.is_empty() {
            return Err(Status::failed_precondition("the state that the target has is not the one that was sealed"));
        }
        let hooks = self.state.as_ref().map(|held| &held.hooks);
        let tracks = match hooks {
            Some(hooks) => hooks.track_changes(true).map_err(|error| failed(&error))?,
            None => false,
        };
        if let Some(hooks) = hooks.filter(|_| tracks) {
            self.section(&mut out, Section::Base, hooks).await?;
        }
        out.step(Step::Copied(Copied {})).await?;
        let mut empty = self.empty.clone();
        tokio::select! {
            sealed = empty.wait_for(|empty| *empty == self.of) => {
                sealed.map_err(|_| Status::aborted("the module has ended here"))?;
            }
            () = out.to.closed() => return Err(Status::cancelled("the target has gone")),
        }
        if let Some(hooks) = hooks {
            let section = if tracks { Section::Changes } else { Section::State };
            self.section(&mut out, section, hooks).await?;
        }
        out.step(Step::Begin(Section::Replies.into())).await?;
        let mut replies = self.replies.encode();
        while !replies.is_empty() {
            out.chunk(replies.split_to(replies.len().min(CHUNK))).await?;
        }
        out.step(Step::End(SectionEnd {})).await?;
        let sealed = Sealed { digest: out.hasher.finalize().to_hex().to_string(), bytes: out.bytes };
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(sealed.clone());
        out.step(Step::Whole(Whole { digest: sealed.digest.clone(), bytes: sealed.bytes })).await?;
        let answer = timeout(SILENCE, requests.message()).await;
        let answer =
            answer.map_err(|_| Status::deadline_exceeded("the target does not say that it has the state"))??;
        match answer.and_then(|request| request.step) {
            Some(transfer_request::Step::Installed(digest)) if digest == sealed.digest => {
                self.has_it(sealed, begin.ready).await;
                out.step(Step::Noted(Noted {})).await
            }
            _ => Err(Status::aborted("the target did not take the state")),
        }
    }

    async fn has_it(&self, sealed: Sealed, ready: bool) {
        let installed = Installed { module: self.module.clone(), id: self.id, of: self.of, sealed, ready };
        // The node may be about to end.
        let _ = self.installed.send(installed).await;
    }

    /// Sends what the module writes.
    async fn section(&self, out: &mut Out, section: Section, hooks: &Arc<dyn Hooks>) -> Result<(), Status> {
        out.step(Step::Begin(section.into())).await?;
        let (mut writer, mut chunks) = SnapshotWriter::new(self.limit.saturating_sub(out.bytes));
        let hooks = Arc::clone(hooks);
        // On a task of its own, so that one core writes while another one sends. Ends with this future.
        let mut writing = JoinSet::new();
        writing.spawn(async move {
            match section {
                Section::Changes => hooks.changes(&mut writer).await,
                _ => hooks.snapshot(&mut writer).await,
            }
        });
        while let Some(chunk) = chunks.recv().await {
            out.chunk(chunk).await?;
        }
        match writing.join_next().await {
            Some(Ok(written)) => written.map_err(|error| failed(&error))?,
            _ => return Err(Status::aborted("the module was dropped while it wrote its state")),
        }
        out.step(Step::End(SectionEnd {})).await
    }
}

fn failed(error: &BoxError) -> Status {
    Status::aborted(with_causes(&**error))
}

/// Why a target has no state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Untaken {
    /// The move is over, as this node's log will show: nothing has failed.
    Over,
    Failed(String),
}

/// What a target takes, and from where.
#[derive(Debug)]
pub(crate) struct Taking {
    pub(crate) cluster: String,
    pub(crate) module: ModuleName,
    pub(crate) id: InstanceId,
    /// Told how far it is.
    pub(crate) events: mpsc::Sender<Event>,
    /// The move.
    pub(crate) of: u64,
    pub(crate) me: Incarnation,
    pub(crate) from: NodeId,
    /// Of the source.
    pub(crate) address: SocketAddr,
    pub(crate) trust: Trust,
    pub(crate) state: Option<Held>,
    pub(crate) replies: Arc<Dedupe>,
    /// The module can serve as soon as it has the state.
    pub(crate) ready: bool,
    /// Bytes that have come so far.
    pub(crate) progress: Arc<AtomicU64>,
    pub(crate) limit: u64,
}

impl Taking {
    /// Takes the state. Tells when all that can be had while the source serves is there; and when all of it is, with the
    /// digest, before the source hears so. If that is not sure to have heard, the digest is returned: it has to be told.
    ///
    /// # Errors
    /// A source that can't be reached or gives it up, a state that does not arrive whole, a module that refuses it.
    /// # Cancel safety
    /// Dropping the future spoils the instance.
    pub(crate) async fn take(&self) -> Result<Option<String>, Untaken> {
        self.try_take().await.map_err(|status| match is_move_over(&status) {
            true => Untaken::Over,
            false => Untaken::Failed(status.message().to_owned()),
        })
    }

    async fn event(&self, event: Event) {
        // The node may be about to end.
        let _ = self.events.send(event).await;
    }

    /// Tells the source that this node has the state, until it has heard.
    pub(crate) async fn tell(&self, digest: Option<String>) {
        let Some(digest) = digest else { return };
        loop {
            match self.try_tell(&digest).await {
                Ok(()) => return,
                Err(status) => {
                    tracing::debug!(module = %self.module, from = %self.from, error = status.message(), "the source was not told");
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn begin(&self, installed: &str) -> TransferRequest {
        let begin = TransferBegin {
            cluster: self.cluster.clone(),
            module: self.module.to_string(),
            r#move: self.of,
            node: self.me.node.to_string(),
            generation: self.me.generation,
            installed: installed.to_owned(),
            ready: self.ready,
        };
        TransferRequest { step: Some(transfer_request::Step::Begin(begin)) }
    }

    async fn open(
        &self,
        installed: &str,
    ) -> Result<(mpsc::Sender<TransferRequest>, Streaming<TransferResponse>), Status> {
        let unreachable = |error: &tonic::transport::Error| {
            let error = with_causes(error);
            Status::unavailable(format!("node `{}` at {} can't be reached: {error}", self.from, self.address))
        };
        let endpoint =
            Endpoint::from_shared(format!("http://{}", self.address)).map_err(|error| unreachable(&error))?;
        let endpoint = endpoint
            .connect_timeout(SILENCE)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(4));
        let connector = self.trust.connector(self.address, Some(self.from.clone()));
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(&error))?;
        let mut client = HandoffClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let (to, requests) = mpsc::channel(2);
        // There is room.
        let _ = to.try_send(self.begin(installed));
        let responses = client.transfer(ReceiverStream::new(requests)).await?.into_inner();
        Ok((to, responses))
    }

    async fn try_take(&self) -> Result<Option<String>, Status> {
        let (to, mut responses) = self.open("").await?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        loop {
            let step = responses.message().await?.and_then(|response| response.step);
            match step.ok_or_else(|| Status::aborted("the source ended in the middle of the state"))? {
                Step::Begin(section) => {
                    let section = Section::try_from(section).unwrap_or_default();
                    bytes += self.section(section, &mut responses, &mut hasher).await?;
                }
                Step::Copied(Copied {}) => {
                    self.event(Event::Copied { module: self.module.clone(), id: self.id }).await;
                }
                Step::Whole(whole) => {
                    let digest = hasher.finalize().to_hex().to_string();
                    if (digest.as_str(), bytes) != (whole.digest.as_str(), whole.bytes) {
                        let text = format!("the state arrived with another digest: {bytes} of {} bytes", whole.bytes);
                        return Err(Status::data_loss(text));
                    }
                    let (module, id, digest) = (self.module.clone(), self.id, digest);
                    self.event(Event::Filled { module, id, digest: digest.clone() }).await;
                    let installed = transfer_request::Step::Installed(digest.clone());
                    let sent = to.send(TransferRequest { step: Some(installed) }).await;
                    let noted = match sent {
                        Ok(()) => responses.message().await,
                        Err(_) => Ok(None),
                    };
                    return Ok(match noted {
                        Ok(Some(TransferResponse { step: Some(Step::Noted(_)) })) => None,
                        _ => Some(digest),
                    });
                }
                Step::Chunk(_) | Step::End(_) | Step::Noted(_) => {
                    return Err(Status::aborted("the source sent something out of turn"));
                }
            }
        }
    }

    /// Has the module read a section. Returns how many bytes it had.
    async fn section(
        &self,
        section: Section,
        responses: &mut Streaming<TransferResponse>,
        hasher: &mut blake3::Hasher,
    ) -> Result<u64, Status> {
        let (to, mut reader) = SnapshotReader::new();
        let hooks = self.state.as_ref().map(|held| Arc::clone(&held.hooks));
        let no_state = || Status::aborted("the module has no state in this node's program");
        let mut reading = JoinSet::new();
        match section {
            Section::Base | Section::State => {
                let hooks = hooks.ok_or_else(no_state)?;
                reading.spawn(async move { hooks.restore(&mut reader).await })
            }
            Section::Changes => {
                let hooks = hooks.ok_or_else(no_state)?;
                reading.spawn(async move { hooks.apply(&mut reader).await })
            }
            Section::Replies => {
                let replies = Arc::clone(&self.replies);
                reading.spawn(async move { Ok(replies.decode(&reader.rest().await?)?) })
            }
            Section::Unspecified => {
                return Err(Status::aborted("the source sent a section that this node does not know"));
            }
        };
        let mut bytes = 0;
        let fed = loop {
            let step = responses.message().await?.and_then(|response| response.step);
            match step.ok_or_else(|| Status::aborted("the source ended in the middle of the state"))? {
                Step::Chunk(chunk) => {
                    bytes += chunk.len() as u64;
                    if self.progress.fetch_add(chunk.len() as u64, Ordering::Relaxed) > self.limit {
                        return Err(Status::resource_exhausted(format!(
                            "the state has more than {} bytes",
                            self.limit
                        )));
                    }
                    hasher.update(&chunk);
                    // One that has failed says why.
                    if to.send(Ok(chunk)).await.is_err() {
                        break Err(Status::aborted("the module does not read its state to the end"));
                    }
                }
                Step::End(SectionEnd {}) => break Ok(bytes),
                _ => return Err(Status::aborted("the source sent something out of turn")),
            }
        };
        drop(to);
        match reading.join_next().await {
            Some(Ok(Ok(()))) => fed,
            Some(Ok(Err(error))) => Err(failed(&error)),
            _ => Err(Status::aborted("the module was dropped while it read its state")),
        }
    }

    async fn try_tell(&self, digest: &str) -> Result<(), Status> {
        let (_to, mut responses) = self.open(digest).await?;
        match responses.message().await?.and_then(|response| response.step) {
            Some(Step::Noted(Noted {})) => Ok(()),
            _ => Err(Status::aborted("the source sent something out of turn")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, pin::pin};

    use outpost_proto::cluster::v1::handoff_server::HandoffServer;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;

    use super::*;
    use crate::call::dedupe::Bounds;

    #[tokio::test]
    async fn that_a_move_is_over_is_no_failure_of_its_target() {
        let [module, me] = ["cart", "b"].map(str::to_owned);
        let (module, node) = (ModuleName::parse(&module).unwrap(), NodeId::parse(&me).unwrap());
        let me = Incarnation { node, generation: 1 };
        let ((installed, _installed), (_empty, empty)) = (mpsc::channel(1), watch::channel(0));
        let offer = Arc::new(Offer {
            module: module.clone(),
            id: 1,
            of: 7,
            to: me.clone(),
            state: None,
            replies: Dedupe::new(module.clone(), Bounds { entries: 1, bytes: 1 << 20 }, 1 << 20),
            empty,
            over: CancellationToken::new(),
            gone: CancellationToken::new(),
            installed,
            limit: 1 << 20,
            sent: Mutex::default(),
        });
        let offers = Arc::new(Offers::default());
        offers.set(BTreeMap::from([(module.clone(), Arc::clone(&offer))]));
        let (_cluster, cluster) = watch::channel("c".to_owned());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(HandoffServer::new(Source::new(offers, cluster)));
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

        let (events, mut told) = mpsc::channel(4);
        let taking = Taking {
            cluster: "c".to_owned(),
            module,
            id: 2,
            events,
            of: 7,
            me,
            from: NodeId::parse("a").unwrap(),
            address,
            trust: Trust::default(),
            state: None,
            replies: Arc::clone(&offer.replies),
            ready: false,
            progress: Arc::default(),
            limit: 1 << 20,
        };
        let mut taken = pin!(taking.take());
        tokio::select! {
            taken = &mut taken => panic!("{taken:?}"),
            event = told.recv() => assert!(matches!(event, Some(Event::Copied { .. })), "{event:?}"),
        }
        offer.over.cancel();
        assert_eq!(taken.await, Err(Untaken::Over));
    }
}
