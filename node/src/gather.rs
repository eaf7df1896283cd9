//! A connection that gathers small writes.
//!
//! HTTP/2 writes whenever a call has something to say: the head of a request, then its message; the answer to one call,
//! then that to the next. Each write is a system call here, a packet, and a wake-up of the peer. So a flush waits for
//! one turn: tasks that are ready run first, and what they have to say goes out with the rest.
//!
//! A turn is worth its price only where something is gathered in it. After one in which nothing was, the next flushes go
//! out at once; the more often that happens, the more of them.
//!
//! ```text
//! head ──▶ buffer      flush: wake me again ─▶ others run ─▶ message ──▶ buffer      flush: one write
//! ```

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::together::Turn;

/// What is gathered at the most. A larger write does not gain from it, and would be copied.
const MOST: usize = 16 << 10;
/// How many flushes go out at once, at the most, before it is tried again whether it is worth to wait.
const MOST_SKIPPED: u8 = 31;

pin_project! {
    /// See the module. Nothing is written before a flush, or [`MOST`] bytes. `written` is how much of the buffer was,
    /// `waiting` how full it was when a flush began to wait.
    pub(crate) struct Gathered<S> {
        #[pin]
        stream: S,
        buffer: Vec<u8>,
        written: usize,
        waiting: Option<usize>,
        habit: Habit,
        turn: Option<Turn>,
    }
}

/// Whether the next flush waits.
#[derive(Debug, Default)]
struct Habit {
    /// So many do not.
    skip: u8,
    /// And so many after a wait that is in vain.
    penalty: u8,
}

impl Habit {
    fn waits(&mut self) -> bool {
        let waits = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        waits
    }

    fn waited(&mut self, gained: bool) {
        self.penalty = if gained { 0 } else { (self.penalty * 2 + 1).min(MOST_SKIPPED) };
        self.skip = self.penalty;
    }
}

impl<S> Gathered<S> {
    /// `turn` is of whoever polls the connection, if that has one.
    pub(crate) fn new(stream: S, turn: Option<Turn>) -> Self {
        Self { stream, buffer: Vec::new(), written: 0, waiting: None, habit: Habit::default(), turn }
    }
}

impl<S: AsyncWrite> Gathered<S> {
    /// Takes a copy; `None` when it would be too much.
    fn gather(self: Pin<&mut Self>, parts: &[IoSlice<'_>]) -> Option<usize> {
        let this = self.project();
        let size = parts.iter().map(|part| part.len()).sum::<usize>();
        if this.buffer.len() + size > MOST {
            return None;
        }
        parts.iter().for_each(|part| this.buffer.extend_from_slice(part));
        Some(size)
    }

    /// Writes what was gathered.
    fn poll_empty(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        if let Some(before) = this.waiting.take() {
            this.habit.waited(this.buffer.len() > before);
        }
        while *this.written < this.buffer.len() {
            match ready!(this.stream.as_mut().poll_write(cx, &this.buffer[*this.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                wrote => *this.written += wrote,
            }
        }
        this.buffer.clear();
        *this.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(cx, buf)
    }
}

impl<S: AsyncWrite> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(taken) = self.as_mut().gather(parts) {
            return Poll::Ready(Ok(taken));
        }
        ready!(self.as_mut().poll_empty(cx))?;
        match self.as_mut().gather(parts) {
            Some(taken) => Poll::Ready(Ok(taken)),
            None => self.project().stream.poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.as_mut().project();
        // Once a part of it was written, there is nothing left to wait for.
        if !this.buffer.is_empty() && *this.written == 0 && this.waiting.is_none() && this.habit.waits() {
            let waits = match this.turn {
                Some(turn) => turn.wait(cx),
                None => {
                    cx.waker().wake_by_ref();
                    true
                }
            };
            if waits {
                *this.waiting = Some(this.buffer.len());
                return Poll::Pending;
            }
        } else if this.turn.as_ref().is_some_and(Turn::is_awaited) {
            // It is polled for something else.
            return Poll::Pending;
        }
        ready!(self.as_mut().poll_empty(cx))?;
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_empty(cx))?;
        self.project().stream.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::together::Inward;

    /// Counts writes, and takes so many bytes with each.
    struct Slow {
        wrote: Vec<Vec<u8>>,
        most: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.most);
            self.wrote.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn slow(most: usize) -> Gathered<Slow> {
        Gathered::new(Slow { wrote: Vec::new(), most }, None)
    }

    #[tokio::test]
    async fn what_is_written_until_a_flush_ends_goes_out_at_once() {
        let mut stream = slow(usize::MAX);
        stream.write_all(b"head").await.unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending(), "others have their turn first");
        stream.write_all(b" and message").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.stream.wrote, [b"head and message"]);
    }

    #[tokio::test]
    async fn nothing_is_lost_or_swapped_whatever_the_sizes() {
        for most in [1, 7, 1000, usize::MAX] {
            let mut stream = slow(most);
            let mut all = Vec::new();
            for size in [1, MOST - 1, 1, 3 * MOST, 5, MOST, MOST + 1, 9] {
                let part: Vec<u8> = (0..size).map(|byte| (byte + size) as u8).collect();
                stream.write_all(&part).await.unwrap();
                all.extend(part);
            }
            stream.shutdown().await.unwrap();
            assert!(stream.stream.wrote.concat() == all, "{most} bytes at a time");
        }
    }

    #[tokio::test]
    async fn who_waits_in_vain_waits_seldom() {
        let mut stream = slow(usize::MAX);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut waits = 0;
        for _ in 0..1000 {
            stream.write_all(b"answer").await.unwrap();
            waits += usize::from(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
            stream.flush().await.unwrap();
        }
        assert!(waits < 50, "{waits} of 1000 flushes waited");
        assert_eq!(stream.stream.wrote.len(), 1000);
    }

    #[tokio::test]
    async fn a_flush_waits_for_its_turn_whatever_else_it_is_polled_for() {
        let turn = Turn::default();
        let inward = Inward::with(turn.clone());
        let mut stream = Gathered::new(Slow { wrote: Vec::new(), most: usize::MAX }, Some(turn.clone()));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        stream.write_all(b"one").await.unwrap();
        assert!(inward.poll(&mut cx, |cx| Pin::new(&mut stream).poll_flush(cx)).is_pending());
        stream.write_all(b" and two").await.unwrap();
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_pending());
        assert!(stream.stream.wrote.is_empty());
        assert!(inward.poll(&mut cx, |cx| Pin::new(&mut stream).poll_flush(cx)).is_ready());
        turn.skip();
        stream.write_all(b"three").await.unwrap();
        assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready(), "there is nobody to wait for");
        assert_eq!(stream.stream.wrote, [&b"one and two"[..], b"three"]);
    }

    #[tokio::test]
    async fn a_flush_comes_to_its_end_by_itself() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Gathered::new(near, None);
        stream.write_all(b"word").await.unwrap();
        stream.flush().await.unwrap();
        let mut read = [0; 4];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"word");
    }
}
