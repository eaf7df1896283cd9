//! A client's connection: closed when it says nothing at first, and watched for whether anything is written to it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// The length of HTTP/2's connection preface; no HTTP/1.1 request with a host is shorter.
const PREFACE: usize = 24;

pin_project! {
    /// A stream whose first 24 bytes must come in time: hyper has no such limit while it finds out which HTTP it is.
    pub(super) struct Watched<S> {
        #[pin]
        stream: S,
        missing: usize,
        limit: Option<Pin<Box<Sleep>>>,
        written: Arc<AtomicUsize>,
    }
}

impl<S> Watched<S> {
    /// `written` counts writes, of all connections together.
    pub(super) fn new(stream: S, limit: Duration, written: Arc<AtomicUsize>) -> Self {
        Self { stream, missing: PREFACE, limit: Some(Box::pin(tokio::time::sleep(limit))), written }
    }
}

fn counted(wrote: Poll<io::Result<usize>>, written: &AtomicUsize) -> Poll<io::Result<usize>> {
    if let Poll::Ready(Ok(1..)) = wrote {
        written.fetch_add(1, Ordering::Relaxed);
    }
    wrote
}

impl<S: AsyncRead> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let read = this.stream.poll_read(cx, buf);
        if let Some(limit) = this.limit {
            *this.missing = this.missing.saturating_sub(buf.filled().len() - before);
            if *this.missing == 0 {
                *this.limit = None;
            } else if read.is_pending() && limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP request came in time")));
            }
        }
        read
    }
}

impl<S: AsyncWrite> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        counted(this.stream.poll_write(cx, buf), this.written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        counted(this.stream.poll_write_vectored(cx, bufs), this.written)
    }
}
