//! TLS by hand: who is let in, and a session that is read and written at once.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_host::net::{Network, RealNetwork};
use cairn_host::tls::peer::{Caller, Kind, Peer, Roles, User};
use cairn_host::tls::{Session, Tls, TlsError, TlsNetwork};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(50);

/// An authority, and certificates of it in directories of their own.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key), dir: tempfile::tempdir().unwrap() }
    }

    /// A certificate for so many seconds from now on.
    fn issue(&self, name: &str, kind: Kind, seconds: i64) -> std::path::PathBuf {
        let serves = matches!(kind, Kind::Node(_));
        let peer = Peer { name: name.into(), kind };
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(peer.uri().try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if serves {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let key = KeyPair::generate().unwrap();
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cert.pem"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(dir.join("ca.pem"), &self.pem).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        dir
    }

    fn node(&self) -> Tls {
        let node = Kind::Node(Roles { namenode: true, datanode: true });
        Tls::load(&self.issue("node", node, 3600)).unwrap()
    }
}

fn user() -> Kind {
    Kind::User(User { uid: 1000, gid: 100, groups: vec![], proxy: false })
}

/// A connection between two sockets, tuned as the data plane does it.
fn pair() -> (TcpStream, TcpStream, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ours = TcpStream::connect(&address).unwrap();
    let theirs = listener.accept().unwrap().0;
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(TICK)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (ours, theirs, address)
}

/// What the server makes of a client with this certificate, and what the client hears of it.
fn meet(server: &Tls, client: &Tls) -> (std::io::Result<Option<Peer>>, std::io::Result<usize>) {
    let (ours, theirs, address) = pair();
    let session = Session::accept(server).unwrap();
    let serving = std::thread::spawn(move || {
        let met = session.handshake(&theirs, PATIENCE);
        if met.is_ok() {
            session.write(&theirs, &mut [IoSlice::new(b"hello")], PATIENCE).unwrap();
        }
        met
    });
    let session = Session::connect(client, &address).unwrap();
    let heard = session.handshake(&ours, PATIENCE).and_then(|_| read(&session, &ours, &mut [0; 5]));
    (serving.join().unwrap(), heard)
}

fn read(session: &Session, tcp: &TcpStream, into: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match session.read(tcp, into) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let authority = Authority::new();
    let (met, heard) = meet(&authority.node(), &Tls::load(&authority.issue("anna", user(), 3600)).unwrap());
    assert_eq!(met.unwrap(), Some(Peer { name: "anna".into(), kind: user() }));
    assert_eq!(heard.unwrap(), 5);
}

#[test]
fn whoever_is_refused_hears_the_same_whatever_the_reason() {
    let (ours, other) = (Authority::new(), Authority::new());
    let node = ours.node();
    // One whose time is over while the program runs, one of another authority that knows ours.
    let brief = Tls::load(&ours.issue("brief", user(), 2)).unwrap();
    std::thread::sleep(Duration::from_millis(3100));
    let foreign = other.issue("foreign", user(), 3600);
    fs::write(foreign.join("ca.pem"), [other.pem.as_str(), ours.pem.as_str()].concat()).unwrap();
    let foreign = Tls::load(&foreign).unwrap();
    let mut said = Vec::new();
    for client in [&brief, &foreign] {
        let (met, heard) = meet(&node, client);
        assert!(met.is_err());
        said.push(heard.unwrap_err().to_string());
    }
    assert_eq!(said[0], said[1]);
    assert!(said[0].contains("refuses this certificate"), "{}", said[0]);
    // A user's is no server's, and neither is a node's that is asked under another address.
    let anna = Tls::load(&ours.issue("anna", user(), 3600)).unwrap();
    let (_, heard) = meet(&anna, &node);
    assert!(heard.unwrap_err().to_string().contains("not to be trusted"));
    assert!(Session::connect(&node, "127.0.0.2:1").is_ok());
}

#[test]
fn an_own_certificate_that_is_no_good_is_named_at_the_start() {
    let authority = Authority::new();
    let over = authority.issue("over", user(), -60);
    assert!(matches!(Tls::load(&over).unwrap_err(), TlsError::OutOfDate(..)));
    let foreign = authority.issue("foreign", user(), 60);
    fs::write(foreign.join("ca.pem"), Authority::new().pem).unwrap();
    assert!(matches!(Tls::load(&foreign).unwrap_err(), TlsError::NotTrusted(..)));
    let open = authority.issue("open", user(), 60);
    fs::set_permissions(open.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Tls::load(&open).unwrap_err(), TlsError::Exposed(..)));
    let torn = authority.issue("torn", user(), 60);
    fs::write(torn.join("cert.pem"), "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert!(Tls::load(&torn).is_err());
    let error = Tls::load(Path::new("/nowhere")).unwrap_err();
    assert!(error.to_string().contains("cairn ca"), "{error}");
}

#[test]
fn who_says_nothing_is_given_up_in_time() {
    let node = Authority::new().node();
    let (_ours, theirs, _) = pair();
    let begun = Instant::now();
    let error = Session::accept(&node).unwrap().handshake(&theirs, Duration::from_millis(300)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn one_thread_reads_while_another_writes_and_each_side_can_end_first() {
    const BYTES: usize = 24 << 20;
    let authority = Authority::new();
    let (node, anna) = (authority.node(), Tls::load(&authority.issue("anna", user(), 3600)).unwrap());
    let (ours, theirs, address) = pair();
    let content: Arc<Vec<u8>> = Arc::new((0..BYTES).map(|at| (at * 7 + at / 251) as u8).collect());
    let ends =
        [(Session::accept(&node).unwrap(), theirs), (Session::connect(&anna, &address).unwrap(), ours)];
    let running: Vec<_> = ends
        .into_iter()
        .map(|(session, tcp)| {
            let content = content.clone();
            std::thread::spawn(move || {
                session.handshake(&tcp, PATIENCE).unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        for piece in content.chunks(1 << 20) {
                            let (head, rest) = piece.split_at(1000);
                            session
                                .write(&tcp, &mut [IoSlice::new(head), IoSlice::new(rest)], PATIENCE)
                                .unwrap();
                        }
                        session.close(&tcp);
                        tcp.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut heard = vec![0; BYTES];
                    let mut at = 0;
                    while at < BYTES {
                        let end = BYTES.min(at + 100_000);
                        let received = read(&session, &tcp, &mut heard[at..end]).unwrap();
                        assert!(received > 0, "ended after {at} bytes");
                        at += received;
                    }
                    assert!(heard == *content);
                    assert_eq!(read(&session, &tcp, &mut [0; 10]).unwrap(), 0, "the end");
                });
            })
        })
        .collect();
    running.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test]
async fn a_network_under_tls_takes_in_whom_it_knows() {
    let authority = Authority::new();
    let anna = Tls::load(&authority.issue("anna", user(), 3600)).unwrap();
    let network = TlsNetwork::new(Arc::new(RealNetwork), authority.node());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut listener = network.bind(address).await.unwrap();
    // A stranger that says nothing comes first, one that does not speak TLS second.
    let _silent = TcpStream::connect(address).unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let client = tokio::spawn(async move {
        let network = TlsNetwork::new(Arc::new(RealNetwork), anna);
        let mut stream = network.connect(&address.to_string()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        let mut heard = [0; 2];
        stream.read_exact(&mut heard).await.unwrap();
        heard
    });
    let mut kept = Vec::new();
    let mut callers: Vec<Caller> = Vec::new();
    for number in 0..3 {
        let (mut stream, caller) = std::future::poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        let mut heard = [0; 5];
        match number {
            0 => {}
            1 => assert!(stream.read_exact(&mut heard).await.is_err()),
            _ => {
                assert!(!caller.is_known(), "before the handshake");
                stream.read_exact(&mut heard).await.unwrap();
                stream.write_all(b"ok").await.unwrap();
                stream.flush().await.unwrap();
            }
        }
        callers.push(caller);
        kept.push(stream);
    }
    assert_eq!(&client.await.unwrap(), b"ok");
    assert_eq!(callers.iter().map(Caller::is_known).collect::<Vec<_>>(), [false, false, true]);
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(rest.len() <= 7, "{rest:?}");
}
