//! A DNS server that answers as CoreDNS does for a headless Service: an address for each of its pods, each time in
//! another order; no such name while there are none; and, by UDP, that there is more than fits.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
};
use rand::seq::SliceRandom as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

/// The only name there is.
pub const NAME: &str = "shop-nodes.shop.svc.cluster.local";
/// In seconds.
const TTL: u32 = 5;
/// What a client takes by UDP that does not say that it takes more.
const PLAIN_UDP: usize = 512;

/// See the module. It ends with this.
#[derive(Debug)]
pub struct NameServer {
    address: Ipv4Addr,
    zone: watch::Sender<Zone>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Zone {
    pods: BTreeSet<IpAddr>,
    /// How often there was no answer but that there is no such name.
    unknown: usize,
    /// How often a client came by TCP.
    by_tcp: usize,
}

impl NameServer {
    /// Listens where resolvers ask: on port 53, of an address of loopback that nobody else has.
    ///
    /// # Errors
    /// That of the system, where this needs rights that the process does not have.
    pub async fn start() -> io::Result<Self> {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low);
        let udp = UdpSocket::bind((address, 53)).await?;
        let tcp = TcpListener::bind((address, 53)).await?;
        let zone = watch::Sender::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, zone.clone()));
        tasks.spawn(serve_tcp(tcp, zone.clone()));
        Ok(Self { address, zone, _tasks: tasks })
    }

    /// What a pod's `/etc/resolv.conf` says.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let search = "shop.svc.cluster.local svc.cluster.local cluster.local";
        format!("nameserver {}\nsearch {search}\noptions ndots:5 timeout:1 attempts:1\n", self.address)
    }

    /// Says which pods there are.
    pub fn publish(&self, pods: impl IntoIterator<Item = IpAddr>) {
        self.zone.send_modify(|zone| zone.pods = pods.into_iter().collect());
    }

    /// Waits until somebody was told that there is no such name.
    pub async fn told_nobody(&self) {
        self.until("somebody to ask in vain", |zone| zone.unknown > 0).await;
    }

    /// Waits until somebody asked by TCP.
    pub async fn asked_by_tcp(&self) {
        self.until("a question by TCP", |zone| zone.by_tcp > 0).await;
    }

    async fn until(&self, reason: &str, fact: impl FnMut(&Zone) -> bool) {
        let mut zone = self.zone.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), zone.wait_for(fact)).await;
        assert!(waited.is_ok(), "waited for {reason}");
    }
}

async fn serve_udp(socket: UdpSocket, zone: watch::Sender<Zone>) {
    let mut buffer = [0; 4096];
    // An error is of the client before: its port is closed.
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((answer, most)) = answer(&zone, &buffer[..length]) else { continue };
        let bytes = answer.to_vec().expect("a message");
        let bytes = if bytes.len() > most { answer.truncate().to_vec().expect("a message") } else { bytes };
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(listener: TcpListener, zone: watch::Sender<Zone>) {
    let mut clients = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        zone.send_modify(|zone| zone.by_tcp += 1);
        clients.spawn(serve_client(stream, zone.clone()));
    }
}

async fn serve_client(mut stream: TcpStream, zone: watch::Sender<Zone>) {
    while let Ok(length) = stream.read_u16().await {
        let mut question = vec![0; length.into()];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        let Some((answer, _)) = answer(&zone, &question) else { return };
        let bytes = answer.to_vec().expect("a message");
        let length = u16::try_from(bytes.len()).expect("few pods");
        if stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat()).await.is_err() {
            return;
        }
    }
}

/// An answer, and how long it may be by UDP.
fn answer(zone: &watch::Sender<Zone>, question: &[u8]) -> Option<(Message, usize)> {
    let question = Message::from_vec(question).ok()?;
    let most = question.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().into());
    let query = question.queries.first()?.clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.authoritative = true;
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    if let Some(edns) = question.edns {
        answer.set_edns(edns);
    }

    let name = query.name().to_ascii().to_lowercase();
    let mut pods: Vec<IpAddr> = zone.borrow().pods.iter().copied().collect();
    let known = name.trim_end_matches('.') == NAME && !pods.is_empty();
    pods.shuffle(&mut rand::rng());
    let records = pods.into_iter().filter_map(|pod| match (pod, query.query_type()) {
        (IpAddr::V4(pod), RecordType::A) => Some(RData::A(pod.into())),
        (IpAddr::V6(pod), RecordType::AAAA) => Some(RData::AAAA(pod.into())),
        _ => None,
    });
    if known {
        answer.add_answers(records.map(|data| Record::from_rdata(query.name().clone(), TTL, data)));
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
        zone.send_modify(|zone| zone.unknown += 1);
    }
    // There is the name, and no such record; or no such name, for so long.
    if answer.answers.is_empty() {
        let zone = Name::from_ascii("cluster.local.").expect("a name");
        let server = Name::from_ascii("ns.dns.cluster.local.").expect("a name");
        let soa = SOA::new(server.clone(), server, 1, 7200, 1800, 86400, TTL);
        answer.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
    Some((answer, most))
}
