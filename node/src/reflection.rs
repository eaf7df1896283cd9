//! Server reflection on all modules, wherever they are: every node has the whole program.

use std::{collections::BTreeMap, sync::Arc};

use outpost_proto::options::deliveries;

use crate::{
    call::{Tonic, slot::Slot},
    descriptors,
    status::StartError,
    trust::callers::CallPolicy,
};

/// The names of the two services, of which clients use the one or the other.
pub(crate) const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// What the program has of its services' descriptors.
#[derive(Debug)]
pub(crate) struct Reflection {
    /// Every service.
    services: Vec<Arc<Slot>>,
    /// Which of them clients hear of.
    callers: CallPolicy,
    /// Registered by hand, and those of the node's own services.
    given: Vec<&'static [u8]>,
    /// Of each service of which something is known.
    known: BTreeMap<String, &'static [u8]>,
}

impl Reflection {
    /// Tells of these services; `given` are encoded descriptors that a registration names.
    pub(crate) fn new(services: Vec<Arc<Slot>>, callers: CallPolicy, given: Vec<&'static [u8]>) -> Self {
        let mut known = BTreeMap::new();
        for slot in &services {
            let service = slot.service();
            let says = |set: &&&[u8]| deliveries(set, service).is_ok_and(|methods| !methods.is_empty());
            if let Some(set) = given.iter().find(says) {
                slot.deliveries.learn(service, set);
                known.insert(service.to_owned(), *set);
            } else if let Some(set) = descriptors::of(service) {
                known.insert(service.to_owned(), set);
            }
        }
        Self { services, callers, given, known }
    }

    /// The encoded descriptors of those services of which something is known, with all that they import.
    pub(crate) fn descriptors_of<'a>(&self, services: &'a [String]) -> BTreeMap<&'a str, &'static [u8]> {
        services.iter().filter_map(|service| Some((service.as_str(), *self.known.get(service)?))).collect()
    }

    /// The slots of the two services, which tell clients of what they may call.
    ///
    /// # Errors
    /// Descriptors that contradict each other.
    pub(crate) fn slots(&self) -> Result<[Arc<Slot>; 2], StartError> {
        let mut sets: Vec<&[u8]> = Vec::new();
        for set in self.given.iter().chain(self.known.values()) {
            if !sets.contains(set) {
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
        Ok([
            Arc::new(Slot::built_in(SERVICES[0], Box::new(Tonic(v1)))),
            Arc::new(Slot::built_in(SERVICES[1], Box::new(Tonic(v1alpha)))),
        ])
    }
}
