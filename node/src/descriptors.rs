//! What the services of this program look like, as compiled into it: known before any of its code runs.

/// The descriptors of a service. Generated code submits them, one for each service.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "generated code makes it, in a constant")]
pub struct Described {
    /// The full name of the service.
    pub service: &'static str,
    /// An encoded `FileDescriptorSet`: its file and all that this imports.
    pub descriptors: &'static [u8],
}

inventory::collect!(Described);

/// The descriptors of a service whose code `outpost-build` generated.
pub(crate) fn of(service: &str) -> Option<&'static [u8]> {
    inventory::iter::<Described>().find(|described| described.service == service).map(|described| described.descriptors)
}
