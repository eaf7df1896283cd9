//! An existing tonic service as a module.

use hello::greeter_server::{Greeter, GreeterServer};
use hello::{HelloReply, HelloRequest};
use tonic::{Request, Response, Status};

struct MyGreeter; // your service, as it is: it knows nothing of Outpost

#[tonic::async_trait]
impl Greeter for MyGreeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: format!("Hello {}!", request.into_inner().name) }))
    }
}

async fn greeter() -> Result<GreeterServer<MyGreeter>, outpost::BoxError> {
    Ok(GreeterServer::new(MyGreeter)) // what you gave to tonic's Server::builder().add_service(..)
}

fn main() -> std::process::ExitCode {
    outpost::App::new("hello", "1.0.0").module("greeter", greeter).main()
}
