//! Server reflection on all modules, wherever they are.
//!
//! A service's descriptors are known where one was built in this process. For modules that never were here, they are
//! asked of a node that has them, as gossip shows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outpost_proto::options::deliveries;
use sha2::{Digest as _, Sha256};

use crate::{
    call::{
        Tonic,
        slot::{Local, Slot, Target},
    },
    module::descriptors_of,
    status::StartError,
    trust::callers::CallPolicy,
};

/// The names of the two services, of which clients use the one or the other.
pub(crate) const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// The descriptors that a node knows, and the slots of the services that tell them.
#[derive(Debug)]
pub(crate) struct Reflection {
    /// Every service.
    services: Vec<Arc<Slot>>,
    /// Which of them clients hear of.
    callers: CallPolicy,
    /// Registered by hand, and those of the node's own services.
    given: Vec<&'static [u8]>,
    learned: Mutex<BTreeMap<String, Vec<u8>>>,
    slots: [Arc<Slot>; 2],
}

impl Reflection {
    /// Tells of these services; `given` are encoded descriptors that are known without a server.
    pub(crate) fn new(services: Vec<Arc<Slot>>, callers: CallPolicy, given: Vec<&'static [u8]>) -> Self {
        for slot in &services {
            let said = |set: &&&[u8]| deliveries(set, slot.service()).is_ok_and(|methods| !methods.is_empty());
            if let Some(set) = given.iter().find(said) {
                slot.deliveries.learn(slot.service(), set);
            }
        }
        let slots = SERVICES.map(|service| Arc::new(Slot::built_in_later(service)));
        Self { services, callers, given, learned: Mutex::default(), slots }
    }

    pub(crate) fn slots(&self) -> &[Arc<Slot>; 2] {
        &self.slots
    }

    /// A digest for each service whose descriptors are known: equal digests are equal descriptors.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let digest = |service: &str| Some((service.to_owned(), digest(&self.descriptors(service)?)));
        self.names().filter_map(digest).collect()
    }

    /// The encoded descriptors of a service, with all that they import.
    pub(crate) fn descriptors(&self, service: &str) -> Option<Vec<u8>> {
        let built = descriptors_of(service).map(<[u8]>::to_vec);
        built.or_else(|| self.learned().get(service).cloned())
    }

    /// The services that nothing is known of.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.names().filter(|service| self.descriptors(service).is_none()).map(str::to_owned).collect()
    }

    /// Takes in what another node has told.
    pub(crate) fn learn(&self, service: String, descriptors: Vec<u8>) {
        self.learned().insert(service, descriptors);
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|slot| slot.service())
    }

    /// Lets clients see all that is known now, and calls be made as their methods say.
    ///
    /// # Errors
    /// Descriptors that contradict each other; clients see what they saw before.
    pub(crate) fn publish(&self) -> Result<(), StartError> {
        let mut sets: Vec<Vec<u8>> = Vec::new();
        for slot in &self.services {
            if let Some(descriptors) = self.descriptors(slot.service()) {
                slot.deliveries.learn(slot.service(), &descriptors);
            }
        }
        let known = self.names().filter_map(|service| self.descriptors(service));
        for set in self.given.iter().map(|given| given.to_vec()).chain(known) {
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure();
            let builder = sets.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
            let told = self.services.iter().filter(|slot| self.callers.exposes(slot.module(), slot.exposed()));
            told.fold(builder, |builder, slot| builder.with_service_name(slot.service()))
        };
        let fault = |error: tonic_reflection::server::Error| StartError::Descriptors(error.to_string());
        let v1 = builder().with_service_name(SERVICES[0]).build_v1().map_err(fault)?;
        let v1alpha = builder().with_service_name(SERVICES[1]).build_v1alpha().map_err(fault)?;
        self.slots[0].set(Target::Local(Local::new(None, Box::new(Tonic(v1)))));
        self.slots[1].set(Target::Local(Local::new(None, Box::new(Tonic(v1alpha)))));
        Ok(())
    }

    fn learned(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(descriptors: &[u8]) -> String {
    // Half of it is enough to tell two versions apart, and gossip has little room.
    Sha256::digest(descriptors).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
