//! Pieces of the call path, each by itself, for this project's own benchmarks. Not covered by any promise.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use outpost_proto::cluster::v1::{
    CarriedAnswer, CarriedCall, CarriedOwner, CarryRequest, CarryResponse, carried_answer::Trailers, carry_request,
    carry_response,
};
use prost::Message as _;

use crate::{
    call::{
        chain::{Chain, Sealing},
        counts::Origin,
        frame,
        gate::{Gate, LeaseEnd},
        placed::Arrival,
        slot::{ModuleFacts, Patience, Slot},
        table::Table,
    },
    clock::Coarse,
    config::{CallerSettings, UnmarkedModules},
    id::{Epoch, ModuleName},
    module::Exposed,
    trust::{
        TrustError,
        callers::{CallPolicy, CallingModule},
    },
};

/// A gate that is open while a lease holds.
#[derive(Debug)]
pub struct LeasedGate(Gate);

impl LeasedGate {
    /// Opens one, for an hour.
    #[must_use]
    pub fn open() -> Self {
        let lease = Arc::new(LeaseEnd::default());
        let term = lease.grant(Coarse::now() + Duration::from_secs(3600), lease.revocations());
        let gate = Gate::closed(lease, Arc::new(Sealing::default()));
        gate.open(Epoch(1), term.expect("a new lease is granted"));
        Self(gate)
    }

    /// What the gate does for one call: lets it in, looks whether its answer counts, and counts it out. Whether it did.
    #[inline]
    #[must_use]
    pub fn pass(&self) -> bool {
        let Some(entered) = self.0.enter(Chain::NONE, Origin::Here) else { return false };
        let counts = self.0.may_answer().is_ok();
        self.0.leave(entered);
        counts
    }
}

/// What a policy is asked when a module calls another one.
#[derive(Debug)]
pub struct Policed {
    policy: CallPolicy,
    from: CallingModule,
    to: ModuleName,
}

impl Policed {
    /// Writes a policy on modules `m0` to `m9` into a folder, and reads it.
    ///
    /// # Errors
    /// A file that is none.
    pub fn by_a_file_in(folder: &Path) -> Result<Self, TrustError> {
        let path = folder.join("policy.toml");
        let rules: String = (0..10).map(|number| format!("[m{number}]\nmodules = [\"m0\", \"m1\"]\n")).collect();
        fs::write(&path, rules).expect("a place for a policy");
        let known: BTreeMap<_, _> = (0..10).map(|number| (module(&format!("m{number}")), Vec::new())).collect();
        let settings = CallerSettings { policy: Some(path), ..CallerSettings::default() };
        let policy = CallPolicy::load(&settings, UnmarkedModules::Serve, known, false)?;
        Ok(Self { policy, from: CallingModule::new(module("m0")), to: module("m7") })
    }

    /// Whether `m0` may call `m7`.
    #[inline]
    #[must_use]
    pub fn admits(&self) -> bool {
        self.policy.admits_caller(&self.from, &self.to, "/shop.v1.Orders/Get").is_ok()
    }
}

/// The table in which the path of each call that comes in is looked up.
#[derive(Debug)]
pub struct Routes(Table);

impl Routes {
    /// A table of these services.
    #[must_use]
    pub fn of(services: &[&str]) -> Self {
        let facts = ModuleFacts::new(
            module("m0"),
            false,
            Exposed::Public,
            CallPolicy::default(),
            Patience { wait: Duration::ZERO, most: 0 },
            Arc::default(),
        );
        let slot = |service: &&str| Slot::starting((*service).to_owned(), Arc::clone(&facts), Arc::default());
        Self(Table::new(services.iter().map(slot).map(Arc::new)))
    }

    /// Whether a path is that of a service here.
    #[inline]
    #[must_use]
    pub fn finds(&self, path: &str) -> bool {
        self.0.find(path).is_ok()
    }
}

/// Calls and answers, as they travel in the stream that carries many of them between two nodes.
#[derive(Debug)]
pub struct Frames {
    fields: HeaderMap,
    body: Bytes,
    buffer: BytesMut,
}

impl Frames {
    /// Of messages of so many bytes, with one field of metadata.
    #[must_use]
    pub fn of(bytes: usize) -> Self {
        let id = (HeaderName::from_static("x-request-id"), HeaderValue::from_static("0b5dd2a2-66f8-4f6e-9f0e"));
        Self { fields: HeaderMap::from_iter([id]), body: vec![7u8; bytes].into(), buffer: BytesMut::new() }
    }

    /// Writes a call as the node where it begins does, and reads it as its host does. Whether it has arrived.
    #[must_use]
    pub fn carry_call(&mut self) -> bool {
        let way = Arrival { hops: 1, epoch: Epoch(7), depth: 1, chain: Chain::of("cart"), client: None };
        let call = CarriedCall {
            id: 9,
            path: Bytes::from_static(b"/shop.v1.Cart/Add"),
            fields: frame::fields(&self.fields),
            body: self.body.clone(),
            head: Some(frame::head(way, Some(Duration::from_secs(5)))),
        };
        let sent = CarryRequest { frame: Some(carry_request::Frame::Call(call)) };
        match CarryRequest::decode(written(&mut self.buffer, &sent)) {
            Ok(CarryRequest { frame: Some(carry_request::Frame::Call(call)) }) => frame::request(call).is_ok(),
            _ => false,
        }
    }

    /// The same for an answer, the other way.
    #[must_use]
    pub fn carry_answer(&mut self) -> bool {
        let answer = CarriedAnswer {
            id: 9,
            http_status: 0,
            headers: frame::fields(&self.fields),
            body: self.body.clone(),
            trailers: Some(Trailers::Ok(true)),
            owner: Some(CarriedOwner { epoch: 7, fence: 5 }),
        };
        let sent = CarryResponse { frame: Some(carry_response::Frame::Answer(answer)) };
        match CarryResponse::decode(written(&mut self.buffer, &sent)) {
            Ok(CarryResponse { frame: Some(carry_response::Frame::Answer(answer)) }) => frame::response(answer).is_ok(),
            _ => false,
        }
    }
}

/// A frame as it arrives.
fn written(buffer: &mut BytesMut, frame: &impl prost::Message) -> Bytes {
    frame.encode(buffer).expect("a buffer that grows");
    buffer.split().freeze()
}

fn module(name: &str) -> ModuleName {
    ModuleName::parse(name).expect("a good name")
}
