//! The operator's API: `outpost.admin.v1.Admin`, on a listener of its own that only this machine reaches.

use std::sync::Arc;

use outpost_proto::admin::v1::{
    DescribeRequest, DescribeResponse,
    admin_server::{Admin, AdminServer},
};
use tonic::{Request, Response, Status};

use crate::node::Facts;

pub(crate) fn server(facts: Arc<Facts>) -> AdminServer<impl Admin> {
    AdminServer::new(Operators { facts })
}

struct Operators {
    facts: Arc<Facts>,
}

#[tonic::async_trait]
impl Admin for Operators {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.facts.describe()))
    }
}
