//! Closes connections that say nothing.

use std::{
    io,
    pin::Pin,
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
    /// A stream whose first 24 bytes must come in time. hyper has no such limit while it finds out which HTTP it is.
    pub(super) struct Preface<S> {
        #[pin]
        stream: S,
        missing: usize,
        limit: Option<Pin<Box<Sleep>>>,
    }
}

impl<S> Preface<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, missing: PREFACE, limit: Some(Box::pin(tokio::time::sleep(limit))) }
    }
}

impl<S: AsyncRead> AsyncRead for Preface<S> {
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

impl<S: AsyncWrite> AsyncWrite for Preface<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(cx, buf)
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
        self.project().stream.poll_write_vectored(cx, bufs)
    }
}
