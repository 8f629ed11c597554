//! Who is kept out, and that keeping them out harms nobody else.

mod support;

use novacron_transport::tls::{
    Acceptor, AcceptorOptions, Connector, CredentialFiles, Credentials, SocketOptions,
};
use novacron_transport::{LaneError, Link, LinkError, Listener, PeerIdentity};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};
use support::{Authority, Bytes, TIMEOUT, Wanted, open, seed, tls_pair};

fn host_b() -> PeerIdentity {
    PeerIdentity::host("host-b").expect("a name")
}

fn bind(credentials: &Credentials, options: AcceptorOptions) -> Acceptor {
    let any_port = "127.0.0.1:0".parse().expect("an address");
    Acceptor::bind(any_port, credentials, options).expect("a listener")
}

fn dial(acceptor: &Acceptor, source: &Credentials, expected: &PeerIdentity) -> String {
    let options = SocketOptions::default();
    let connector =
        Connector::new(acceptor.address(), source, expected, options).expect("a connector");
    match connector.open(b"hello", TIMEOUT) {
        Ok(_) => "opened".to_owned(),
        Err(LinkError::Refused(why)) => why,
        Err(other) => panic!("refused in another way: {other:?}"),
    }
}

/// Refusals are noted by the accepting thread a moment after the peer has read them.
fn refusals(acceptor: &Acceptor) -> String {
    let until = Instant::now() + TIMEOUT;
    loop {
        let all = acceptor.take_refusals();
        if !all.is_empty() || Instant::now() > until {
            return all.into_iter().map(|refusal| refusal.reason).collect::<Vec<_>>().join("; ");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn certificates_that_the_listener_refuses() {
    let ours = Authority::new();
    let strange = Authority::new();
    let target = ours.credentials(&Wanted::host("host-b"));
    let acceptor = bind(&target, AcceptorOptions::default());
    target.revoked().replace("2a").expect("a list");

    let wrong = |change: fn(&mut Wanted)| {
        let mut wanted = Wanted::host("host-a");
        change(&mut wanted);
        ours.credentials(&wanted)
    };
    let issued = strange.issue(&Wanted::host("host-a"));
    let wrong_ca = Credentials::from_pem(
        ours.pem.as_bytes(),
        issued.certificate.as_bytes(),
        issued.key.as_bytes(),
    )
    .expect("credentials");
    let cases = [
        ("wrong CA", wrong_ca, "BadSignature"),
        ("revoked", wrong(|wanted| wanted.serial = 0x2a), "Revoked"),
        ("expired", wrong(|wanted| wanted.expired = true), "certificate expired"),
        (
            "wrong role",
            wrong(|wanted| wanted.uris = vec!["novacron://operator/host-a".to_owned()]),
            "its role is none of",
        ),
    ];
    for (name, source, reason) in cases {
        let told = dial(&acceptor, &source, &host_b());
        assert_ne!(told, "opened", "{name}");
        let noted = refusals(&acceptor);
        assert!(noted.contains(reason), "{name}: noted {noted:?}, told {told:?}");
        assert!(matches!(acceptor.accept(Duration::ZERO), Err(LinkError::Deadline)), "{name}");
    }
    assert_eq!(dial(&acceptor, &wrong(|_| {}), &host_b()), "opened");
}

#[test]
fn certificates_that_the_dialling_side_refuses() {
    let ours = Authority::new();
    let source = ours.credentials(&Wanted::host("host-a"));
    source.revoked().replace("2a").expect("a list");
    let mut revoked = Wanted::host("host-b");
    revoked.serial = 0x2a;
    let mut expired = Wanted::host("host-b").p256();
    expired.expired = true;
    let mut control = Wanted::host("host-b");
    control.uris = vec!["novacron://control/host-b".to_owned()];
    for (target, reason) in [
        (ours.credentials(&revoked), "Revoked"),
        (ours.credentials(&expired), "certificate expired"),
        (ours.credentials(&control), "the peer is novacron://control/host-b"),
        (ours.credentials(&Wanted::host("host-c")), "the peer is novacron://host/host-c"),
        (Authority::new().credentials(&Wanted::host("host-b")), "BadSignature"),
    ] {
        let acceptor = bind(&target, AcceptorOptions::default());
        let told = dial(&acceptor, &source, &host_b());
        assert!(told.contains(reason), "{reason}: {told}");
        assert!(!refusals(&acceptor).is_empty());
    }
}

#[test]
fn credentials_that_do_not_fit_are_refused_at_once() {
    let ours = Authority::new();
    let (one, other) = (ours.issue(&Wanted::host("a")), ours.issue(&Wanted::host("a")));
    let mut two = Wanted::host("a");
    two.uris.push("novacron://host/b".to_owned());
    let mut none = Wanted::host("a");
    none.uris = vec!["http://a".to_owned()];
    let (two, none) = (ours.issue(&two), ours.issue(&none));
    for (certificate, key, reason) in [
        (&one.certificate, &other.key, "keymismatch"),
        (&two.certificate, &two.key, "two identities"),
        (&none.certificate, &none.key, "no identity"),
        (&String::new(), &one.key, "no certificate"),
        (&one.certificate, &String::from("nonsense"), "the key"),
    ] {
        let made =
            Credentials::from_pem(ours.pem.as_bytes(), certificate.as_bytes(), key.as_bytes());
        let Err(LinkError::Credentials(why)) = made else { panic!("{reason}: {made:?}") };
        assert!(why.to_lowercase().contains(reason), "{reason}: {why}");
    }
}

#[test]
fn files_are_loaded_and_open_keys_refused() {
    let ours = Authority::new();
    let issued = ours.issue(&Wanted::host("host-a"));
    let folder = std::env::temp_dir().join(format!("novacron-transport-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let files = CredentialFiles {
        ca: folder.join("ca.pem"),
        certificate: folder.join("host.pem"),
        key: folder.join("host.key"),
        revoked: Some(folder.join("revoked")),
    };
    fs::write(&files.ca, &ours.pem).expect("written");
    fs::write(&files.certificate, &issued.certificate).expect("written");
    fs::write(&files.key, &issued.key).expect("written");
    fs::write(folder.join("revoked"), "# none\n").expect("written");
    fs::set_permissions(&files.key, Permissions::from_mode(0o640)).expect("mode");
    let open_key = Credentials::load(&files).expect_err("others may read the key").to_string();
    assert!(open_key.contains("0600"), "{open_key}");
    fs::set_permissions(&files.key, Permissions::from_mode(0o600)).expect("mode");
    let loaded = Credentials::load(&files).expect("credentials");
    assert_eq!(loaded.identity().to_string(), "novacron://host/host-a");
    fs::write(folder.join("revoked"), "xyz\n").expect("written");
    assert!(Credentials::load(&files).is_err());
    fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn the_hybrid_key_agreement_is_used() {
    let (connector, _acceptor) = tls_pair(AcceptorOptions::default(), SocketOptions::default());
    let (_lane, key_agreement) = connector.open_named(b"", TIMEOUT).expect("opened");
    assert_eq!(key_agreement, "X25519MLKEM768");
}

#[test]
fn plain_text_and_garbage_are_refused_and_harm_nobody() {
    let seed = seed();
    println!("seed {seed}");
    let (connector, acceptor) = tls_pair(AcceptorOptions::default(), SocketOptions::default());
    let mut bytes = Bytes(seed);
    for round in 0..200 {
        let mut stream = TcpStream::connect(acceptor.address()).expect("connected");
        let mut garbage = vec![0; 1 + bytes.below(30_000)];
        match round % 4 {
            0 => bytes.fill(&mut garbage),
            1 => garbage = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            // The start of a real handshake record, then nonsense.
            2 => {
                bytes.fill(&mut garbage);
                let head = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
                let count = head.len().min(garbage.len());
                garbage[..count].copy_from_slice(&head[..count]);
            }
            _ => garbage.clear(),
        }
        // The listener may have closed already.
        let _ = stream.write_all(&garbage);
        if round % 3 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(TIMEOUT)).expect("a time-out");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 100, "strangers are told nothing but an alert");
        }
    }
    let (_lane, incoming) = open(&connector, &acceptor, b"after the garbage");
    assert_eq!(incoming.hello, b"after the garbage");
    assert!(matches!(acceptor.accept(Duration::ZERO), Err(LinkError::Deadline)));
}

#[test]
fn slow_strangers_take_no_places_from_others() {
    let options = AcceptorOptions {
        handshake_timeout: Duration::from_secs(2),
        strangers_max: 8,
        ..AcceptorOptions::default()
    };
    let (connector, acceptor) = tls_pair(options, SocketOptions::default());
    // Three times as many as there are places, each a byte of a record header at a time.
    let mut slow = Vec::new();
    for _ in 0..24 {
        let mut stream = TcpStream::connect(acceptor.address()).expect("connected");
        stream.write_all(&[22]).expect("one byte");
        slow.push(stream);
    }
    let start = Instant::now();
    for _ in 0..10 {
        open(&connector, &acceptor, b"");
    }
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    // Those that are left are sent away when their time is over, drop by drop or not.
    let until = Instant::now() + Duration::from_secs(4);
    while acceptor.refused_count() < 24 && Instant::now() < until {
        for stream in &mut slow {
            let _ = stream.write_all(&[3]);
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(acceptor.refused_count(), 24);
}

#[test]
fn a_peer_that_never_answers_costs_the_time_out_only() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let source = Authority::new().credentials(&Wanted::host("host-a"));
    let address = silent.local_addr().expect("an address");
    let options = SocketOptions::default();
    let connector = Connector::new(address, &source, &host_b(), options).expect("a connector");
    let start = Instant::now();
    let opened = connector.open(b"", Duration::from_millis(300));
    assert!(matches!(opened, Err(LinkError::Deadline)), "{opened:?}");
    assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
    drop(silent);
    let refused = connector.open(b"", TIMEOUT);
    assert!(matches!(refused, Err(LinkError::Unreachable(_))), "{refused:?}");
}

/// A relay between a connector and its listener that changes one byte, or cuts, at a place.
fn relay(to: SocketAddr, flip_at: Option<usize>, cut_at: Option<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a relay");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (mut near, _) = listener.accept().expect("a connection");
        let mut far = TcpStream::connect(to).expect("the listener");
        let (mut back_from, mut back_to) =
            (far.try_clone().expect("a handle"), near.try_clone().expect("a handle"));
        let back = thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let mut passed = 0;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = near.read(&mut buffer) {
            if let Some(place) = flip_at.filter(|place| (passed..passed + count).contains(place)) {
                buffer[place - passed] ^= 1;
            }
            let keep = cut_at.map_or(count, |place| count.min(place.saturating_sub(passed)));
            if far.write_all(&buffer[..keep]).is_err() || keep < count {
                break;
            }
            passed += count;
        }
        let _ = far.shutdown(Shutdown::Both);
        let _ = back.join();
    });
    address
}

#[test]
fn bytes_changed_or_cut_on_the_way_are_noticed() {
    let authority = Authority::new();
    let source = authority.credentials(&Wanted::host("host-a"));
    let acceptor =
        bind(&authority.credentials(&Wanted::host("host-b")), AcceptorOptions::default());
    let mut seen = (0, 0);
    for place in (4000..90_000).step_by(3541) {
        for flips in [true, false] {
            let (flip_at, cut_at) = if flips { (Some(place), None) } else { (None, Some(place)) };
            let address = relay(acceptor.address(), flip_at, cut_at);
            let connector = Connector::new(address, &source, &host_b(), SocketOptions::default())
                .expect("a connector");
            // The handshake itself is about 3 KB from this side; every place lies behind it.
            let mut lane = connector.open(b"", TIMEOUT).expect("opened");
            let mut incoming = acceptor.accept(TIMEOUT).expect("accepted");
            let mut sent = vec![0; 120_000];
            Bytes(place as u64).fill(&mut sent);
            let expected = sent.clone();
            let writer = thread::spawn(move || {
                let _ = lane.writer.write_all(&sent).and_then(|()| lane.writer.finish());
                lane
            });
            let mut received = Vec::new();
            let mut buffer = [0; 5000];
            let error = loop {
                match incoming.lane.reader.read(&mut buffer) {
                    Ok(0) => panic!("the end looked clean at place {place}"),
                    Ok(count) => received.extend_from_slice(&buffer[..count]),
                    Err(error) => break error,
                }
            };
            assert!(expected.starts_with(&received), "place {place}");
            match (flips, &error) {
                (true, LaneError::Protocol(_)) => seen.0 += 1,
                (false, LaneError::Truncated) => seen.1 += 1,
                // A changed length can swallow the end of the stream.
                (true, LaneError::Truncated) => {}
                _ => panic!("place {place}, flip {flips}: {error:?}"),
            }
            incoming.lane.control.shutdown();
            drop(incoming);
            drop(writer.join().expect("the writer"));
        }
    }
    assert!(seen.0 > 10 && seen.1 > 10, "{seen:?}");
}
