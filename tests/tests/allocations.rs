//! A handle's call of a local module allocates what the call of the trait allocates, and nothing more.

use std::{alloc::System, sync::Arc};

use futures_util::FutureExt as _;
use outpost::{App, BoxError, Sources};
use outpost_tests::v1::{
    Answer, Ask, RelayHandle,
    relay_server::{Relay, RelayServer},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tonic::{Request, Response, Status};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

struct Echo;

#[tonic::async_trait]
impl Relay for Echo {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        Ok(Response::new(Answer { payload: request.into_inner().payload, ..Answer::default() }))
    }
}

fn ask() -> Request<Ask> {
    Request::new(Ask { payload: vec![0; 100], ..Ask::default() })
}

/// Allocations and bytes of a thousand calls. Each is over at its first poll, so that no other task can run. Threads of the
/// node's own can, such as the one that watches its clocks, and are counted too: the least of several counts is the calls'.
fn allocated<F: Future<Output = Result<Response<Answer>, Status>>>(call: impl Fn() -> F) -> (usize, usize) {
    let run = || call().now_or_never().expect("an echo does not wait").expect("an echo does not fail");
    run();
    let counted = (0..10).map(|_| {
        let region = Region::new(ALLOCATOR);
        (0..1000).for_each(|_| drop(run()));
        let change = region.change();
        (change.allocations + change.reallocations, change.bytes_allocated)
    });
    counted.min().expect("there are some")
}

#[test]
fn a_local_call_allocates_what_the_trait_call_does() {
    // One thread, which runs only when it is told to: no task allocates during the count.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let factory = || async { Ok::<_, BoxError>(RelayServer::new(Echo)) };
    let app = App::new("echo", "1").module("echo", factory);
    let node = runtime.block_on(app.start(&Sources::on_free_ports())).unwrap();
    let handle: RelayHandle = node.handle().unwrap();
    let plain: Arc<dyn Relay> = Arc::new(Echo);

    let _context = runtime.enter();
    let (plain, local) = (allocated(|| plain.unary(ask())), allocated(|| handle.unary(ask())));
    assert_eq!(plain.0, 2000, "the payload, and the future that tonic's trait boxes");
    assert_eq!(local, plain, "(allocations, bytes) of 1,000 calls by a handle and of the trait");
}
