//! Stubs for the imagetasks gateway: the store tasks of AMIs over all accounts and Regions.
//!
//! tonic has no retry policy, so [`retrying`] stands in for one.

mod contract;
mod failure;
mod gateway;

pub use contract::{FINGERPRINT, VERSION};
pub use failure::Failure;
pub use gateway::{Gateway, MAX_MESSAGE, endpoint, retrying, stub, token};

/// The contract's messages and stub, generated.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1 {
    include!("imagetasks.v1.rs");
}
