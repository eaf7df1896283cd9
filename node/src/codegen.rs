//! What generated code names. Not for people: it changes with `outpost-build`, whose output must be made by the
//! version of this crate that it is compiled with.

pub use bytes::Bytes;
pub use inventory;

pub use crate::{
    call::{BoxStream, CallFuture, CarriedFuture, Carries, Direct, Route, box_stream, carry, carry_nothing},
    descriptors::Described,
    module::{Limits, Reach, built},
};
