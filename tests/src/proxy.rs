//! What stands before a node and loses what others should hear of it.
//!
//! ```text
//! other nodes ══ TCP, UDP ══▶ proxy ═════▶ node
//!             ◀═════════════ (lost) ◀═════
//! ```

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket, tcp},
    sync::watch,
    task::JoinSet,
};

/// See the module. Dropping it ends all connections.
#[derive(Debug)]
pub struct Proxy {
    /// Where others connect.
    pub address: SocketAddr,
    /// Connections made at this count of cuts, or before, lose answers.
    losing: Arc<AtomicU64>,
    /// How often connections were cut; begins at 1.
    cut: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Stands before a node, which need not be there yet.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn before(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let datagrams = UdpSocket::bind(address).await.expect("the same port for datagrams");
        let (losing, cut) = (Arc::default(), watch::Sender::new(1));
        let mut tasks = JoinSet::new();
        tasks.spawn(streams(listener, node, Arc::clone(&losing), cut.clone()));
        tasks.spawn(gossip(Arc::new(datagrams), node));
        Self { address, losing, cut, _tasks: tasks }
    }

    /// From now on, what the node sends on connections that others made is lost, until they are cut.
    pub fn lose_answers(&self) {
        self.losing.store(*self.cut.borrow(), Ordering::SeqCst);
    }

    /// Ends all connections; those made later lose nothing.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

async fn streams(listener: TcpListener, node: SocketAddr, losing: Arc<AtomicU64>, cut: watch::Sender<u64>) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (losing, mut cut) = (Arc::clone(&losing), cut.subscribe());
        open.spawn(async move {
            let Ok(server) = TcpStream::connect(node).await else { return };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let made_at = *cut.borrow_and_update();
            tokio::select! {
                () = pass_on(from_client, to_server, || false) => {}
                () = pass_on(from_server, to_client, || losing.load(Ordering::SeqCst) >= made_at) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn pass_on(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, loses: impl Fn() -> bool) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if loses() => {}
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Each sender has a socket of its own at the node, so that answers find back.
async fn gossip(datagrams: Arc<UdpSocket>, node: SocketAddr) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok((count, from)) = datagrams.recv_from(&mut buffer).await {
        let socket = match senders.get(&from) {
            Some(socket) => Arc::clone(socket),
            None => {
                let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { return };
                let (socket, back) = (Arc::new(socket), Arc::clone(&datagrams));
                answers.spawn(give_back(Arc::clone(&socket), back, from));
                senders.insert(from, Arc::clone(&socket));
                socket
            }
        };
        // A datagram may be lost.
        let _ = socket.send_to(&buffer[..count], node).await;
    }
}

async fn give_back(answers: Arc<UdpSocket>, back: Arc<UdpSocket>, to: SocketAddr) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = answers.recv(&mut buffer).await {
        let _ = back.send_to(&buffer[..count], to).await;
    }
}
