//! For how long a connection may be used: what was shown on it may expire, or be replaced, or not be believed any more.

use std::{fmt, future::pending, sync::Arc, time::Duration};

use outpost_proto::mutual::{self, Credentials};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{files::FromFiles, tls::ForClients};
use crate::clock;

/// Connections that have to be made anew, since a certificate was replaced, are not all made at once: within this.
const SPREAD: Duration = Duration::from_secs(5);
/// How soon the first of them may be: not before it has lasted for as long as one that works.
const FIRST: Duration = Duration::from_secs(2);
/// How long calls have to end that are under way when a certificate expires, or is not believed any more.
const GRACE: Duration = Duration::from_secs(30);

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    /// This end has something else to show: there should be another connection.
    Renew,
    /// There are to be no more calls on it: what was shown is not good any more. Those that are under way go on.
    NoMore,
    /// Nothing goes on.
    Over,
}

/// See the module. For ever, unless something is known of its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Until {
    /// When what comes, unless it was told.
    renew: Option<Instant>,
    no_more: Option<Instant>,
    over: Option<Instant>,
    between: Option<Between>,
}

/// Whom files say that is believed now.
trait Believes: fmt::Debug + Send + Sync {
    /// At a time since 1970.
    fn believes(&self, shown: &[CertificateDer<'_>], now: Duration) -> bool;
}

impl Believes for FromFiles<Credentials> {
    fn believes(&self, shown: &[CertificateDer<'_>], now: Duration) -> bool {
        self.now().believes(shown, now)
    }
}

impl Believes for FromFiles<ForClients> {
    fn believes(&self, shown: &[CertificateDer<'_>], now: Duration) -> bool {
        self.now().clients.as_ref().is_some_and(|clients| clients.believes(shown, now))
    }
}

/// What the other end is to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// There is a connection from it or to it; another one is made once this end has something else to show.
    Node,
    /// Its connections come and go.
    Client,
    /// It is to be gone at once, whatever is under way.
    Operator,
}

/// A connection on which the other end has shown something.
#[derive(Debug, Clone)]
struct Between {
    files: Arc<dyn Believes>,
    changes: watch::Receiver<()>,
    shown: Vec<CertificateDer<'static>>,
    other: Other,
}

impl Between {
    fn new(
        files: Arc<dyn Believes>,
        changes: watch::Receiver<()>,
        shown: Option<&[CertificateDer<'_>]>,
        other: Other,
    ) -> Option<Self> {
        let shown = shown.unwrap_or_default().iter().map(|certificate| certificate.clone().into_owned()).collect();
        Some(Self { files, changes, shown, other })
    }
}

impl Until {
    /// No more calls of a client from when its certificate `expires` (since 1970), or when it is not believed any more.
    pub(super) fn client(
        config: &Arc<FromFiles<ForClients>>,
        changes: watch::Receiver<()>,
        shown: &[CertificateDer<'_>],
        expires: Duration,
    ) -> Self {
        let between = Between::new(config.clone(), changes, Some(shown), Other::Client);
        Self { no_more: Some(instant(expires)), between, ..Self::default() }
    }

    /// Nothing once an operator's certificate has expired, or is not believed any more.
    pub(super) fn shown(
        credentials: &Arc<FromFiles<Credentials>>,
        changes: watch::Receiver<()>,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> Self {
        let between = Between::new(credentials.clone(), changes, shown, Other::Operator);
        Self { over: mutual::expires(shown).map(instant), between, ..Self::default() }
    }

    /// For as long as the certificates of both ends are good, and this one's is not replaced. `now` is what this end has shown,
    /// of what changes in `credentials`.
    pub(super) fn between(
        credentials: &Arc<FromFiles<Credentials>>,
        changes: watch::Receiver<()>,
        now: &Credentials,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> Self {
        let expires = mutual::expires(shown).map_or(now.expires, |theirs| theirs.min(now.expires));
        let no_more = instant(expires);
        let between = Between::new(credentials.clone(), changes, shown, Other::Node);
        Self { renew: None, no_more: Some(no_more), over: Some(no_more + GRACE), between }
    }

    /// Waits for what comes next. Each is told once, but the end again and again.
    ///
    /// # Cancel safety
    /// Safe: nothing is missed.
    pub(crate) async fn passes(&mut self) -> Passes {
        loop {
            let all = [(self.renew, Passes::Renew), (self.no_more, Passes::NoMore), (self.over, Passes::Over)];
            let next = all.into_iter().filter_map(|(at, passes)| Some((at?, passes))).min_by_key(|(at, _)| *at);
            let (next, passes) = next.map_or((None, Passes::Over), |(at, passes)| (Some(at), passes));
            let reached = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            let replaced = async {
                let Some(between) = &mut self.between else { return pending().await };
                if between.changes.changed().await.is_err() {
                    pending().await
                }
            };
            tokio::select! {
                () = reached => {
                    match passes {
                        Passes::Renew => self.renew = None,
                        Passes::NoMore => (self.renew, self.no_more) = (None, None),
                        Passes::Over => {}
                    }
                    return passes;
                }
                () = replaced => self.look(),
            }
        }
    }

    /// This node's certificate was replaced, or what it believes.
    fn look(&mut self) {
        let Some(between) = &self.between else { return };
        let by = Instant::now() + FIRST + (SPREAD - FIRST).mul_f64(rand::random());
        let now = Duration::from_millis(clock::wall().0);
        let told = self.no_more.is_none();
        if between.other == Other::Client && told {
            // What has begun before its certificate expired may end, whatever changes here.
            return;
        }
        if !between.files.believes(&between.shown, now) {
            let over = if between.other == Other::Operator { Instant::now() } else { by + GRACE };
            // Unless that was told already.
            self.no_more = (!told).then(Instant::now);
            self.over = Some(self.over.map_or(over, |at| at.min(over)));
        } else if between.other == Other::Node && !told {
            self.renew = Some(self.renew.map_or(by, |at| at.min(by)));
        }
    }
}

/// A moment since 1970, as this process counts. What has passed is now.
fn instant(at: Duration) -> Instant {
    Instant::now() + at.saturating_sub(Duration::from_millis(clock::wall().0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since_1970(ahead: u64) -> Duration {
        Duration::from_millis(clock::wall().0) + Duration::from_secs(ahead)
    }

    /// What passes, and after how many seconds; nothing for an hour is nothing at all.
    async fn passing(mut until: Until) -> Vec<(u64, Passes)> {
        let (began, mut all) = (Instant::now(), Vec::new());
        while all.last().is_none_or(|(_, passes)| *passes != Passes::Over)
            && let Ok(passes) = tokio::time::timeout(Duration::from_secs(3600), until.passes()).await
        {
            all.push(((began.elapsed() + Duration::from_millis(500)).as_secs(), passes));
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_comes_once_and_in_order() {
        assert_eq!(passing(Until::default()).await, []);
        let no_more = |at| Until { no_more: Some(instant(at)), ..Until::default() };
        assert_eq!(passing(no_more(since_1970(60))).await, [(60, Passes::NoMore)]);
        let at = Instant::now() + Duration::from_secs(10);
        let soon = at - Duration::from_secs(5);
        let all = Until { renew: Some(soon), no_more: Some(at), over: Some(at + GRACE), between: None };
        assert_eq!(passing(all).await, [(5, Passes::Renew), (10, Passes::NoMore), (40, Passes::Over)]);
        let over = Until { over: Some(at), ..Until::default() };
        assert_eq!(passing(over).await, [(0, Passes::Over)], "what has passed is now");
        assert_eq!(passing(no_more(Duration::ZERO)).await, [(0, Passes::NoMore)]);
    }
}
