//! Work that waits for a disk, where it holds up nobody else.

use tokio::task::JoinError;

/// Runs the work on a thread that may block.
///
/// # Errors
/// When the work panics, or the runtime ends.
/// # Cancel safety
/// The work is done although nobody waits for it any more.
#[cfg(not(feature = "simulation"))]
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// The same in a simulation, where there is one thread, and a disk takes its simulated time.
#[cfg(feature = "simulation")]
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    let machine = crate::simulation::machine();
    let done = work();
    tokio::time::sleep(machine.disk()).await;
    Ok(done)
}
