//! A connection that ends by itself once what was shown on it is not good any more, whatever it is used for, and whether or
//! not the other end would go on.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::until::{Passes, Until};

pin_project! {
    /// See the module. `going_on` is ready when it ends, and is there until then.
    pub(crate) struct Bounded<S> {
        #[pin]
        stream: S,
        going_on: Option<BoxFuture<'static, ()>>,
    }
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, mut until: Until) -> Self {
        let ends = async move { while until.passes().await != Passes::Over {} };
        Self { stream, going_on: Some(ends.boxed()) }
    }
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "a certificate that was shown is not good any more")
}

impl<S: AsyncRead> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let Some(going_on) = this.going_on else { return Poll::Ready(Err(over())) };
        match this.stream.poll_read(cx, buf) {
            // Whoever has a connection always waits for what comes next on it, so here is the place to look.
            Poll::Pending if going_on.poll_unpin(cx).is_ready() => {
                *this.going_on = None;
                Poll::Ready(Err(over()))
            }
            read => read,
        }
    }
}

impl<S: AsyncWrite> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.going_on.is_none() {
            return Poll::Ready(Err(over()));
        }
        self.project().stream.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.going_on.is_none() {
            return Poll::Ready(Err(over()));
        }
        self.project().stream.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }
}
