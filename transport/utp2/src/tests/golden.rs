//! One full and one resumed handshake in which nothing is left to chance, for those who implement PROTOCOL.md elsewhere:
//! `protocol_vectors.txt`. Made by the code, compared with the file, and its secrets derived once more here by the
//! formulas of §5.4 and §5.8 as they stand in the text.

use core::fmt::Write;
use core::net::SocketAddr;
use core::time::Duration;
use std::boxed::Box;
use std::string::String;
use std::vec;
use std::vec::Vec;

use timebase::Instant;

use super::pair::{CONTEXT, SECRET, everybody};
use crate::crypto::aead::PacketKey;
use crate::crypto::exchange::Share;
use crate::crypto::kdf::{Secret, hash};
use crate::crypto::srp::{self, EXPONENT, Exponent};
use crate::handshake::initiator::{self, Initiator};
use crate::handshake::responder::{self, Responder};
use crate::handshake::resume::{Opened, Resuming};
use crate::handshake::ticket::Tickets;
use crate::handshake::{Established, Local};
use crate::wire::frame::{Frame, emit_message_head};
use crate::wire::handshake::{COOKIE, Init, RESUME_HEAD, RESUME_TICKET, Reply, Resume};
use crate::wire::header::{ShortNumber, TAG, emit_protected};
use crate::{Config, Identity, PeerIdentity, Resumption};

const FILE: &str = include_str!("protocol_vectors.txt");

/// Hexadecimal digits in a line of the file.
const LINE: usize = 96;

/// The file as it should be.
#[derive(Default)]
struct Vectors(String);

impl Vectors {
    fn title(&mut self, text: &str) {
        writeln!(self.0, "\n# {text}").unwrap();
    }

    fn put(&mut self, name: &str, bytes: &[u8]) {
        let mut hex = String::new();
        bytes.iter().for_each(|b| write!(hex, "{b:02x}").unwrap());
        if hex.len() <= LINE - name.len() {
            writeln!(self.0, "{name} = {hex}").unwrap();
            return;
        }
        writeln!(self.0, "{name} =").unwrap();
        for line in hex.as_bytes().chunks(LINE) {
            writeln!(self.0, "  {}", core::str::from_utf8(line).unwrap()).unwrap();
        }
    }
}

fn exponent(first: u8) -> [u8; EXPONENT] {
    core::array::from_fn(|i| first + i as u8)
}

/// What lies between a header and the tag, opened.
fn opened(key: [u8; 28], datagram: &[u8], header: usize) -> Vec<u8> {
    PacketKey::of_handshake(key).open(0, &mut datagram.to_vec(), header).expect("sealed under it").to_vec()
}

/// HMAC and HKDF are checked by `vectors`; here it is the order of their parts that counts.
#[test]
fn the_vectors_of_the_specification_are_what_the_code_does() {
    let config = Config {
        max_datagram: 1452,
        receive_window: 1 << 24,
        max_message: 1 << 20,
        message_buffer: 4 << 20,
        idle_timeout: Duration::from_secs(120),
        ..Config::default()
    };
    let identities = [Identity::new([0x11; 32], b"a credential".to_vec()), Identity::new([0x22; 32], vec![])];
    let known = [0, 1].map(|i: usize| PeerIdentity {
        public_key: identities[i].public_key(),
        credential: [&b"a credential"[..], b""][i].to_vec(),
    });
    let authorizer = everybody();
    let local = |i: usize| Local {
        config: &config,
        identity: &identities[i],
        authorizer: authorizer.as_ref(),
        reset_token: [[0x31; 16], [0x32; 16]][i],
    };
    let addresses = [SocketAddr::from(([192, 0, 2, 1], 1)), SocketAddr::from(([192, 0, 2, 2], 2))];
    let (now, timeout, salt) = (Instant::ZERO, Duration::from_secs(15), [0x33; 16]);
    let (cid_i, cid_r, nonce_i, nonce_r) = (*b"cid of i", *b"cid of r", [0x34; 32], [0x35; 32]);

    let mut v = Vectors::default();
    v.title("Given");
    v.put("context id", &CONTEXT.0);
    v.put("secret", &SECRET);
    v.put("salt", &salt);
    v.put("a (initiator's exponent)", &exponent(1));
    v.put("b (responder's exponent)", &exponent(0x81));
    v.put("initiator's Ed25519 seed", &[0x11; 32]);
    v.put("responder's Ed25519 seed", &[0x22; 32]);

    let mut initiator =
        Initiator::new(now, CONTEXT, Secret(SECRET), cid_i, nonce_i, Exponent(exponent(1)), timeout, None);
    let init = initiator.outbox.pop_front().unwrap();
    let verifier = Box::new(srp::verifier(&CONTEXT, &SECRET, &salt));
    let secrets = (cid_r, nonce_r, Exponent(exponent(0x81)));
    let parsed = Init::parse(&init).unwrap();
    v.title("Full handshake (5.4, 5.5)");
    v.put("verifier g^x", &verifier[..]);
    let mut responder =
        Responder::new(now, CONTEXT, (addresses[0], &init), &parsed, verifier, salt, secrets, timeout);
    let reply = responder.reply.clone();
    assert!(matches!(initiator.on_reply(now, &reply, &local(0)), initiator::Progress::Wait));
    let prove_i = initiator.outbox.pop_front().unwrap();
    let answer = responder.on_prove(now, addresses[0], &mut prove_i.clone(), &local(1));
    let responder::Progress::Done(at_r, prove_r) = answer else { panic!("{answer:?}") };
    let answer = initiator.on_prove(now, addresses[1], &mut prove_r[0].clone(), &local(0));
    let initiator::Progress::Done(at_i) = answer else { panic!("{answer:?}") };
    assert_eq!((&at_i.peer, &at_r.peer), (&known[1], &known[0]));

    // By the text.
    let b = Reply::parse(&reply).unwrap().b;
    let a = Exponent(exponent(1));
    let s = srp::initiator_premaster(&a, parsed.a, b, &CONTEXT, &SECRET, &salt).unwrap();
    let th2 = hash(&[b"utp2 transcript 2", &init[..326], &reply[..326]]);
    let prk = Secret::extract(&th2, &s[..]);
    let (hs_i, hs_r) = (prk.expand("hs i", &th2), prk.expand("hs r", &th2));
    let (body_i, body_r) = (opened(hs_i, &prove_i, 15), opened(hs_r, &prove_r[0], 15));
    let th3 = hash(&[&th2, &body_i]);
    let th4 = hash(&[&th3, &body_r]);
    for (body, th, label) in [(&body_i, &th2, "cf i"), (&body_r, &th3, "cf r")] {
        let (before, confirmation) = body.split_at(body.len() - 32);
        assert_eq!(prk.derive(label, &th2).mac(&[th, before]), confirmation);
    }
    v.put("INIT, the first 328 bytes; zeros up to 1200", &init[..328]);
    assert!(init.len() == 1200 && init[328..].iter().all(|b| *b == 0));
    v.put("REPLY", &reply);
    v.put("PAD(S)", &s[..]);
    v.put("th2", &th2);
    v.put("PRK", &prk.0);
    v.put("hs i (key, IV)", &hs_i);
    v.put("hs r (key, IV)", &hs_r);
    v.put("cf i", &prk.derive("cf i", &th2).0);
    v.put("cf r", &prk.derive("cf r", &th2).0);
    v.put("initiator's body", &body_i);
    v.put("initiator's PROVE", &prove_i);
    v.put("th3", &th3);
    v.put("responder's body", &body_r);
    v.put("responder's PROVE", &prove_r[0]);
    v.put("th4", &th4);
    let traffic = |v: &mut Vectors, from: &Secret, th4: &[u8; 32], i: &Established, r: &Established| {
        let (ap_i, ap_r) = (from.derive("ap i", th4), from.derive("ap r", th4));
        assert_eq!((i.seal.0, i.open.0), (ap_i.0, ap_r.0), "the initiator's");
        assert_eq!((r.seal.0, r.open.0), (ap_r.0, ap_i.0), "the responder's");
        assert_eq!((i.resumption.0, r.resumption.0), (from.derive("rs", th4).0, from.derive("rs", th4).0));
        v.put("ap i", &ap_i.0);
        v.put("ap r", &ap_r.0);
        v.put("rs (resumption secret)", &i.resumption.0);
    };
    traffic(&mut v, &prk, &th4, &at_i, &at_r);

    v.title("The initiator's packet 0: PING, and the message \"hi\" (3.8, 4, 7.1)");
    let seal = &at_i.seal;
    v.put("key", &seal.expand::<16>("key", b""));
    v.put("IV", &seal.expand::<12>("iv", b""));
    v.put("the traffic secret after a key update", &seal.derive("ku", b"").0);
    let mut packet = vec![];
    emit_protected(&mut packet, &cid_r, false, ShortNumber::of(0, None, 0));
    let header = packet.len();
    Frame::Ping.emit_control(&mut packet);
    emit_message_head(&mut packet, 0, 6);
    packet.extend_from_slice(b"\0\0\0\x02hi");
    v.put("header and frames", &packet);
    let tag = PacketKey::of_traffic(seal).seal(0, &mut packet, header);
    packet.extend_from_slice(&tag);
    v.put("packet", &packet);

    v.title("Resumption (5.8): a ticket under the nonce 77…77, the early message \"early\" taken");
    let nonce = [0x77; 16];
    let ticket_secret = at_r.resumption.derive("tk", &nonce);
    let tickets = Tickets::new(Secret([0x66; 32]), (now, 1_700_000_000), [0x55; 8], 4);
    let issued = tickets.issue(now, nonce, CONTEXT, &known[0], &ticket_secret, 1_700_000_000, None);
    let (ticket, lifetime) = issued.unwrap();
    let (cid_i, cid_r, nonce_i, nonce_r) = (*b"i, again", *b"r, again", [0x36; 32], [0x37; 32]);
    let (x_i, x_r) = ([0x38; 32], [0x39; 32]);
    let resumption = Resumption {
        context: CONTEXT,
        peer: known[1].clone(),
        secret: ticket_secret.clone(),
        ticket: ticket.clone(),
        lifetime: u32::try_from(lifetime).unwrap(),
        memory: None,
    };
    let mine = (cid_i, nonce_i, x_i);
    let early = [b"early".to_vec()];
    let resuming = Resuming::new(&config, resumption, &Secret(SECRET), mine, [0x31; 16], &early);
    let datagram = resuming.datagram(&[]);
    let resume = Resume::parse(&datagram).unwrap();
    let known_ticket = tickets.open(now, resume.ticket).unwrap();
    let inside = Opened::new(&datagram, &resume, &known_ticket, &Secret(SECRET), 100).unwrap();
    assert_eq!(inside.messages, early);
    let theirs = (cid_r, nonce_r, x_r);
    let answer = inside.answer(&resume, known_ticket, &local(1), theirs, addresses[0], true);
    let (at_r, resumed) = answer.unwrap();
    let (at_i, taken) = resuming.on_resumed(addresses[1], &mut resumed.clone()).unwrap();
    assert!(taken);

    // By the text.
    let end = 114 + ticket.len();
    assert_eq!((RESUME_HEAD, RESUME_TICKET), (86, 88 + COOKIE));
    let tr1 = hash(&[b"utp2 resume 2", &datagram[..86], &datagram[112..end]]);
    let es = Secret::extract(&tr1, &[ticket_secret.0, SECRET].concat());
    let sealed = &datagram[end + 2..][..34 + 2 + 5 + TAG];
    assert_eq!(datagram[end..end + 2], [0, 57]);
    let plain = opened(es.expand("early", &tr1), sealed, 0);
    let tr2 = hash(&[&tr1, &hash(&[sealed]), &resumed[..86]]);
    let x25519 = Share::new(x_i).shared(Share::new(x_r).public()).unwrap();
    let derived = es.derive("derived", &tr1);
    let hs = Secret::extract(&tr2, &[derived.0, *x25519.as_bytes()].concat());
    let body = opened(hs.expand("hs r", &tr2), &resumed, 86);
    let th4 = hash(&[&tr2, &body]);
    v.put("ticket secret", &ticket_secret.0);
    v.put("initiator's X25519 secret", &x_i);
    v.put("responder's X25519 secret", &x_r);
    v.put("RESUME up to the end of the sealed part; zeros up to 1200", &datagram[..end + 2 + sealed.len()]);
    v.put("tr1", &tr1);
    v.put("ES", &es.0);
    v.put("early key (key, IV)", &es.expand::<28>("early", &tr1));
    v.put("what is sealed in RESUME", &plain);
    v.put("RESUMED", &resumed);
    v.put("tr2", &tr2);
    v.put("X25519", x25519.as_bytes());
    v.put("HS", &hs.0);
    v.put("hs r (key, IV)", &hs.expand::<28>("hs r", &tr2));
    v.put("what is sealed in RESUMED", &body);
    v.put("th4", &th4);
    traffic(&mut v, &hs, &th4, &at_i, &at_r);

    let file = FILE.split_once("\n\n").map_or("", |(_, rest)| rest);
    let made = v.0.trim_start();
    if file != made {
        std::println!("{made}");
    }
    for (n, (have, want)) in file.lines().zip(made.lines()).enumerate() {
        assert_eq!(have, want, "line {} after the head; all of it as it should be is above", n + 1);
    }
    assert_eq!(file.len(), made.len());
}
