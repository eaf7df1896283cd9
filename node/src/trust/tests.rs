use std::{net::Ipv4Addr, path::Path};

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{realm::Realm, *};
use crate::net::TcpListener;

/// What comes of a connection: at who makes it, and at who accepts it.
async fn meet(client: &Trust, server: &Trust, meant: Option<&str>) -> (io::Result<()>, io::Result<Option<String>>) {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let meant = meant.map(|node| NodeId::parse(node).unwrap());
    let accepting = async {
        let (stream, _) = listener.accept().await?;
        let (_, peer, _) = Acceptor::for_nodes(server).unwrap().accept(stream).await?;
        Ok(peer.map(|accepted| match accepted {
            Accepted::Peer(peer) => peer.0.to_string(),
            Accepted::Client(_) => "a client".to_owned(),
        }))
    };
    let connecting = async { client.connect(address, meant.as_ref()).await.map(drop) };
    tokio::join!(connecting, accepting)
}

#[tokio::test]
async fn whoever_is_not_the_node_that_is_meant_is_refused() {
    let realm = Realm::new();
    let (one, two) = (realm.trust("node-1"), realm.trust("node-2"));
    let (connected, accepted) = meet(&one, &two, Some("node-2")).await;
    connected.unwrap();
    assert_eq!(accepted.unwrap().unwrap(), "spiffe://example.org/outpost/shop/node/node-1");
    // Of a seed, only the address is known.
    meet(&one, &two, None).await.0.unwrap();
    let refused = meet(&one, &two, Some("node-3")).await.0.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    let text = refused.to_string();
    assert!(text.contains("node/node-2") && text.contains("`node-3`"), "{text}");
}

#[tokio::test]
async fn two_realms_do_not_meet() {
    let (ours, theirs) = (Realm::new().trust("node-1"), Realm::new().trust("node-2"));
    let (connected, accepted) = meet(&ours, &theirs, Some("node-2")).await;
    let text = connected.unwrap_err().to_string();
    assert!(text.contains("none of the authorities"), "{text}");
    assert!(accepted.is_err());
}

const A_DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_node_that_is_revoked_is_refused_whoever_connects() {
    let realm = Realm::new();
    realm.revoke(&[], A_DAY);
    let [one, two, three] = ["node-1", "node-2", "node-3"].map(|node| realm.trust(node));
    meet(&one, &two, Some("node-2")).await.0.unwrap();
    realm.revoke(&["node-2"], A_DAY);
    for trust in [&one, &three] {
        realm::follow(trust);
    }
    let refused = meet(&one, &two, Some("node-2")).await.0.unwrap_err().to_string();
    assert!(refused.contains("it has been revoked"), "{refused}");
    let refused = meet(&two, &one, Some("node-1")).await.1.unwrap_err().to_string();
    assert!(refused.contains("it has been revoked"), "{refused}");
    let (connected, accepted) = meet(&one, &three, Some("node-3")).await;
    assert!(connected.is_ok() && accepted.is_ok(), "{connected:?} {accepted:?}");
    // Nor does it put the list in force itself, which would be the end of it.
    let follows = two.follows().unwrap();
    for _look in 0..2 {
        follows.follow();
    }
    let fault = follows.fault().unwrap();
    assert!(fault.contains("`trust.certificate`") && fault.contains("revoked"), "{fault}");
}

#[test]
fn lists_that_are_of_no_use_are_told_and_not_put_in_force() {
    let realm = Realm::new();
    realm.revoke(&["node-2"], A_DAY);
    let trust = realm.trust("node-1");
    let follows = trust.follows().unwrap();
    let stranger = Realm::new();
    stranger.revoke(&[], A_DAY);
    for (lists, part) in [
        (String::new(), "there is no list of revoked certificates"),
        ("garbage".to_owned(), "there is no list of revoked certificates"),
        (stranger.read("revocations.pem"), "none of the authorities"),
    ] {
        let path = realm.write("revocations.pem", &lists).unwrap();
        let before = trust.changes();
        for _look in 0..2 {
            follows.follow();
        }
        let fault = follows.fault().unwrap();
        let file = format!("{} (`trust.revocations`)", path.display());
        assert!(fault.starts_with(&file) && fault.contains(part), "{fault}");
        assert_eq!(trust.changes(), before, "what was in force stays");
    }
}

#[test]
fn a_list_that_is_out_of_date_stays_in_force_and_is_told() {
    let realm = Realm::new();
    realm.revoke(&["node-2"], Duration::ZERO);
    let trust = realm.trust("node-1");
    let followed = [trust.follows().unwrap()];
    let problem = Shown::of(&trust, None, &followed).problem.unwrap();
    assert!(problem.contains("`trust.revocations`") && problem.contains("stays in force"), "{problem}");
    realm.revoke(&["node-2"], A_DAY);
    realm::follow(&trust);
    assert_eq!(Shown::of(&trust, None, &followed).problem, None);
}

/// Whatever it is used for, and though the other end would go on.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_what_was_shown_on_it_is_not_good_any_more() {
    let realm = Realm::new();
    let (one, two) = (realm.trust("node-1"), realm.trust_for("node-2", Duration::from_secs(100)));
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let acceptor = Acceptor::for_nodes(&two).unwrap();
    let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (connected, _accepted) = tokio::join!(one.connect(listener.local_addr().unwrap(), None), accepting);
    let (mut stream, began) = (connected.unwrap().0, Instant::now());
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
    // Calls that are under way have 30 seconds more.
    let lasted = began.elapsed().as_secs_f64();
    assert!((125.0..135.0).contains(&lasted), "{lasted}");
    assert!(stream.write_u8(0).await.is_err() && stream.read_u8().await.is_err(), "it stays over");
}

#[test]
fn a_node_speaks_for_itself() {
    let identity: Identity = "spiffe://example.org/outpost/shop/node/node-1".parse().unwrap();
    let peer = Peer(identity);
    assert!(may_speak_for(Some(&peer), "node-1").is_ok());
    assert!(may_speak_for(Some(&peer), "node-2").is_err());
    // Where nobody shows anything, everybody is believed.
    assert!(may_speak_for(None, "node-2").is_ok());
}

#[test]
fn what_is_shown_is_told_before_it_ends() {
    let shown = Shown { expires: Timestamp(3_000_000), renew: Timestamp(2_000_000), ..Shown::default() };
    let node = NodeId::parse("node-1").unwrap();
    assert_eq!(shown.problems(&node, Timestamp(1_999_999)), Vec::<String>::new());
    assert!(shown.problems(&node, Timestamp(2_000_000))[0].contains("expires in 16m 40s"));
    assert!(shown.problems(&node, Timestamp(3_000_000))[0].contains("has expired"));
    assert_eq!(Shown::default().problems(&node, Timestamp(9)), Vec::<String>::new());
}

#[test]
fn nothing_of_a_key_is_shown() {
    let realm = Realm::new();
    let keys = keyring::render(&[GossipKey::new([9; 32])]);
    let path = realm.write("gossip.keys", &keys).unwrap();
    let settings = TrustSettings { gossip_keys: Some(path), ..TrustSettings::default() };
    let shown = format!("{:?} {:?}", Seal::load(&settings).unwrap(), realm.trust("node-1"));
    assert!(!shown.contains(&GossipKey::new([9; 32]).secret()[..8]), "{shown}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
    assert!(tls::is_open_to_all(Path::new("/etc/passwd")));
}

/// What a client is called, by the names in its certificate.
#[test]
fn a_client_is_called_by_one_name_of_its_certificate() {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let shown = |common: &str, names: Vec<SanType>| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        mutual::shown(&[certificate.der().clone()]).map(|shown| shown.name)
    };
    assert_eq!(shown("c", vec![dns("d.example"), uri("spiffe://example.org/u")]).unwrap(), "spiffe://example.org/u");
    assert_eq!(
        shown("c", vec![uri("spiffe://example.org/1"), uri("spiffe://example.org/2")]).unwrap(),
        "spiffe://example.org/1"
    );
    assert_eq!(shown("c", vec![dns("d.example")]).unwrap(), "d.example");
    assert_eq!(shown("c", vec![]).unwrap(), "c");
    // Who signs may look at URIs, and let common names pass.
    for none in ["spiffe://example.org/u", "", &"c".repeat(2000)] {
        assert!(shown(none, vec![]).is_err(), "{none}");
    }
    assert!(mutual::shown(&[]).is_err());
}
