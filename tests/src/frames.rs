//! HTTP/2 by the byte, for clients that no library would be.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub mod kind {
    #![allow(missing_docs, reason = "named as in RFC 9113")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

/// On a SETTINGS or PING frame: this answers one.
pub const ACK: u8 = 1;
/// On a HEADERS or DATA frame: the last of its stream.
pub const END_STREAM: u8 = 1;
/// On a HEADERS frame: no CONTINUATION follows.
pub const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// 0 is the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The value of a setting, in a SETTINGS frame.
    #[must_use]
    pub fn setting(&self, id: u16) -> Option<u32> {
        let entry = self.payload.chunks_exact(6).find(|entry| entry[..2] == id.to_be_bytes())?;
        Some(u32::from_be_bytes(entry[2..].try_into().expect("six bytes")))
    }

    /// The error code, in an RST_STREAM or GOAWAY frame.
    #[must_use]
    pub fn error_code(&self) -> Option<u32> {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().expect("four bytes")))
    }
}

/// A frame to send.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a gRPC call, in HPACK without compression.
#[must_use]
pub fn grpc_headers(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0); // literal, not indexed, with its name
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|len| *len < 127).expect("a short text"));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A connection that said its preface and settings, and does nothing by itself.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects, and waits for the server's settings: then it is served.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn connect(address: std::net::SocketAddr) -> io::Result<(Self, Frame)> {
        let mut raw = Self { stream: TcpStream::connect(address).await? };
        raw.send(PREFACE).await?;
        raw.send(&frame(kind::SETTINGS, 0, 0, &[])).await?;
        let settings = raw.next().await?;
        assert_eq!(settings.kind, kind::SETTINGS, "{settings:?}");
        raw.send(&frame(kind::SETTINGS, ACK, 0, &[])).await?;
        Ok((raw, settings))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next frame.
    ///
    /// # Errors
    /// Those of the socket, and its end.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame that is wanted; others are passed over.
    ///
    /// # Errors
    /// Those of the socket, and its end.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Ok(frame);
            }
        }
    }

    /// Whether the server still answers.
    ///
    /// # Errors
    /// Those of the socket, and its end.
    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(&frame(kind::PING, 0, 0, b"are you?")).await?;
        self.find(|frame| frame.kind == kind::PING && frame.flags == ACK).await.map(|_| ())
    }

    /// Reads until the server closes the connection, and gives the error code of its GOAWAY, if it sent one.
    pub async fn closed(&mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(frame) = self.next().await {
            if frame.kind == kind::GOAWAY {
                code = frame.error_code();
            }
        }
        code
    }

    /// The socket.
    pub fn into_inner(self) -> TcpStream {
        self.stream
    }
}
