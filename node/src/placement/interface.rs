//! What a module's services look like, as the log keeps it: their descriptors, packed, under a digest that names them.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    sync::Arc,
};

use data_encoding::{BASE64, HEXLOWER};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use outpost_proto::cluster::v1::{Interface as Unpacked, interface::Service};
use prost::Message as _;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// What an interface may unpack to: far more than any has.
const LARGEST: u64 = 64 << 20;

/// The services of a module in one version of the program. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Compressed, since each service's descriptors hold all that it imports.
    packed: Arc<[u8]>,
}

/// Descriptors that are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the descriptors of `{service}` can't be read: {problem}")]
    Damaged { service: String, problem: String },
    #[error("`{0}` is not in its descriptors")]
    Missing(String),
    #[error(transparent)]
    Packed(#[from] io::Error),
}

impl Interface {
    /// Packs encoded descriptors, each with all that it imports, by the service's name. Equal ones have equal digests.
    pub(crate) fn pack(services: &BTreeMap<&str, &[u8]>) -> (String, Self) {
        let services =
            services.iter().map(|(service, set)| Service { name: (*service).into(), descriptors: set.to_vec() });
        let unpacked = Unpacked { services: services.collect() }.encode_to_vec();
        let digest = HEXLOWER.encode(&Sha256::digest(&unpacked)[..16]);
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
        let written = packed.write_all(&unpacked).and_then(|()| packed.finish());
        let written = written.expect("memory takes all that it is given");
        (digest, Self { packed: written.into() })
    }

    /// How many bytes it takes, packed.
    pub(crate) fn len(&self) -> usize {
        self.packed.len()
    }

    /// The services, to be compared with others.
    ///
    /// # Errors
    /// Descriptors that lack something that they name, or that were never any.
    pub(crate) fn services(&self) -> Result<Vec<ServiceDescriptor>, Unreadable> {
        let mut unpacked = Vec::new();
        ZlibDecoder::new(&*self.packed).take(LARGEST).read_to_end(&mut unpacked)?;
        let Unpacked { services } = Unpacked::decode(&*unpacked).map_err(io::Error::other)?;
        let services = services.into_iter().map(|Service { name, descriptors }| {
            let pool = DescriptorPool::decode(&*descriptors)
                .map_err(|error| Unreadable::Damaged { service: name.clone(), problem: error.to_string() })?;
            pool.get_service_by_name(&name).ok_or(Unreadable::Missing(name))
        });
        services.collect()
    }
}

impl Serialize for Interface {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.packed))
    }
}

impl<'de> Deserialize<'de> for Interface {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let packed = BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
        Ok(Self { packed: packed.into() })
    }
}
