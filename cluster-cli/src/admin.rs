//! The admin API of a node, which answers for its whole cluster.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use outpost_proto::admin::v1::{Cluster, Event, EventsRequest, WatchRequest, admin_client::AdminClient};
use tonic::{Code, Response, Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    args::NodeArgs,
    connect::{self, REQUEST_LIMIT, Shows, Target, not_grpc},
    error::CliError,
    status::Answer,
};

const WHAT_CLUSTER: &str = "the question what the cluster is";

type Client = AdminClient<InterceptedService<Channel, Shows>>;

#[derive(Debug)]
pub(crate) struct Admin {
    node: Target,
    client: Client,
}

impl Admin {
    pub(crate) async fn connect(node: &NodeArgs) -> Result<Self, CliError> {
        Self::at(Target::of(node).await?).await
    }

    pub(crate) async fn at(node: Target) -> Result<Self, CliError> {
        let client = AdminClient::with_interceptor(node.connect().await?, node.shows());
        let client = client.max_decoding_message_size(usize::MAX);
        Ok(Self { node, client })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.node
    }

    /// For one request, which goes through [`Admin::ask`].
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits for an answer for a bounded time, and tells what an error means.
    pub(crate) async fn ask<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CliError> {
        match within(REQUEST_LIMIT, what, request).await? {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.error(&status)),
        }
    }

    /// The cluster as the node sees it now.
    pub(crate) async fn cluster(&self) -> Result<Cluster, CliError> {
        Ok(self.watch().await?.0)
    }

    /// The cluster now, and then each time that it changes.
    pub(crate) async fn watch(&self) -> Result<(Cluster, Streaming<Cluster>), CliError> {
        let mut stream = self.ask(WHAT_CLUSTER, self.client().watch(WatchRequest {})).await?;
        let cluster = self.next(&mut stream).await?;
        Ok((cluster, stream))
    }

    /// The next view of the cluster, where there must be one soon.
    pub(crate) async fn next(&self, stream: &mut Streaming<Cluster>) -> Result<Cluster, CliError> {
        match within(REQUEST_LIMIT, WHAT_CLUSTER, stream.message()).await? {
            Ok(Some(cluster)) => Ok(cluster),
            Ok(None) => Err(CliError::NoCluster { address: self.node.address.clone() }),
            Err(status) => Err(self.error(&status)),
        }
    }

    /// What happened to a module since an entry of the log, that one too, the oldest first.
    pub(crate) async fn events_of(&self, module: &str, since: u64) -> Result<Vec<Event>, CliError> {
        const WHAT: &str = "the question what happened";
        let request = EventsRequest { after: since.saturating_sub(1), follow: false };
        let stream = self.ask(WHAT, self.client().events(request)).await?;
        let events = within(REQUEST_LIMIT, WHAT, stream.try_collect::<Vec<Event>>()).await?;
        let mut events = events.map_err(|status| self.error(&status))?;
        events.retain(|event| event.module == module);
        Ok(events)
    }

    pub(crate) fn error(&self, status: &Status) -> CliError {
        if let Some(unreachable) = not_grpc(&self.node.address, &connect::From::Node, status) {
            return unreachable.into();
        }
        let answer = Answer::new(status, None);
        match answer.code() {
            Code::Unimplemented => CliError::NotAdmin { address: self.node.address.clone(), answer },
            Code::Aborted => CliError::Changed(answer),
            Code::InvalidArgument => CliError::Refused(answer),
            _ => CliError::Answered(answer),
        }
    }
}

async fn within<T>(limit: Duration, what: &'static str, future: impl Future<Output = T>) -> Result<T, CliError> {
    let remedy = "is this a node's admin.listen? set another with --node; a change may have been made even so";
    tokio::time::timeout(limit, future).await.map_err(|_| CliError::TimedOut { what, limit, remedy })
}
