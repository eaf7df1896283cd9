//! Waiting for facts: with a reason, and with what was last seen when the wait is given up.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Far more than anything here takes; a wait that is this long has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// Looks again and again until `look` finds what it looks for; its error tells what it saw instead.
///
/// # Panics
/// After 20 seconds, with the reason and what was last seen.
pub async fn until<T>(reason: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let given_up_at = Instant::now() + LIMIT;
    loop {
        match timeout(LIMIT, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(seen)) if Instant::now() > given_up_at => panic!("waited for {reason}; last seen: {seen}"),
            Ok(Err(_)) => sleep(Duration::from_millis(10)).await,
            Err(_) => panic!("waited for {reason}; a look at it does not end"),
        }
    }
}

/// Waits for a future that must end.
///
/// # Panics
/// After 20 seconds, with the reason.
pub async fn within<T>(reason: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("waited for {reason}; it did not come"))
}
