use super::*;
use event_schema::AgentId;
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_795_000_000_000);

fn names() -> Vec<String> {
    vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]
}

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

#[test]
fn keys_are_made_once_and_loaded_ever_after() {
    let data = tempfile::tempdir().expect("a folder");
    // What a crash in the middle of the first start leaves.
    fs::create_dir(data.path().join("keys.new")).expect("a folder");
    fs::write(data.path().join("keys.new/root.key"), b"flotilla key v1 ro").expect("written");
    let first = Pki::open(data.path(), &names(), NOW).expect("founded");
    let again = Pki::open(data.path(), &names(), NOW.after(days(1))).expect("loaded");
    assert_eq!(first.ca_fingerprint(), again.ca_fingerprint());
    assert_eq!(first.root_key(), again.root_key());
    assert_eq!(first.trust(), again.trust());
    assert_eq!(first.command_key().to_bytes(), again.command_key().to_bytes());
    let run = RunId([3; 16]);
    assert_eq!(first.run_secret(run), again.run_secret(run));
    assert_eq!(
        agent_proto::parse_fingerprint(&first.ca_fingerprint_text()),
        Some(Sha256::digest(first.ca_certificate()).into())
    );
    let shown = |pki: &Pki| pki.resolver.certificate().expect("a certificate").cert[0].clone();
    assert_eq!(shown(&first), shown(&again));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&data.path().join("keys")), 0o700);
        for entry in fs::read_dir(data.path().join("keys")).expect("there") {
            let path = entry.expect("there").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

#[test]
fn the_gateway_certificate_follows_time_and_names() {
    let data = tempfile::tempdir().expect("a folder");
    let pki = Pki::open(data.path(), &names(), NOW).expect("founded");
    let shown = |pki: &Pki| pki.resolver.certificate().expect("a certificate").cert[0].clone();
    let first = shown(&pki);
    assert!(!pki.renew_gateway_certificate(NOW.after(days(200))).expect("no need"));
    assert_eq!(shown(&pki), first);
    assert!(pki.renew_gateway_certificate(NOW.after(days(260))).expect("renewed"));
    let second = shown(&pki);
    assert_ne!(second, first);
    let more = [names(), vec!["gateway.example".into()]].concat();
    let renamed = Pki::open(data.path(), &more, NOW.after(days(261))).expect("loaded");
    assert_ne!(shown(&renamed), second);
    assert!(certificates::names_are(&shown(&renamed), &more));
    assert!(matches!(Pki::open(data.path(), &[], NOW), Err(PkiError::Name(_))));
    assert!(matches!(Pki::open(data.path(), &["no name".into()], NOW), Err(PkiError::Name(_))));
}

#[test]
fn agents_get_what_they_can_check() {
    let data = tempfile::tempdir().expect("a folder");
    let pki = Pki::open(data.path(), &names(), NOW).expect("founded");
    let agent = SigningKey::from_bytes(&[7; 32]);
    let public = agent.verifying_key().to_bytes();
    let enrolled = pki.issue(&public, "camera 7", NOW).expect("issued");
    let trust = TrustBundle::open(&enrolled.trust, &pki.root_key()).expect("signed by the root");
    let credential =
        Credential::open(&enrolled.credential, &trust.credential_keys, &pki.root_key(), &public, NOW)
            .expect("a credential");
    assert_eq!((credential.name.as_str(), credential.agent()), ("camera 7", AgentId::of_key(&public)));
    let facts = Facts::of(&enrolled.certificate).expect("a certificate");
    assert_eq!(facts.public_key, public);
    assert!(!facts.due(NOW.after(days(200))));
    assert!(facts.due(NOW.after(days(250))));
    assert!(certificates::signed_by(&enrolled.certificate, &pki.root.verifying_key()));
    assert!(matches!(pki.issue(&[0; 32], "weak", NOW), Err(PkiError::AgentKey)));
    assert!(pki.gateway_tls().is_ok());
}

#[test]
fn damaged_files_stop_the_start_and_say_which() {
    let data = tempfile::tempdir().expect("a folder");
    drop(Pki::open(data.path(), &names(), NOW).expect("founded"));
    let keys = data.path().join("keys");
    let files =
        [name::ROOT, name::COMMAND, name::CREDENTIAL, name::GATEWAY, name::RUN_MASTER, name::CA, name::TRUST];
    for file in files {
        let path = keys.join(file);
        let whole = fs::read(&path).expect("there");
        let refused = |what: &str| {
            let error = Pki::open(data.path(), &names(), NOW).expect_err(what);
            assert!(error.to_string().contains(file), "{file}, {what}: {error}");
        };
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).expect("written");
            if file.ends_with(".pem") && cut == whole.len() - 1 {
                continue; // only the last line break is gone: the same certificate
            }
            refused(&format!("cut at {cut}"));
        }
        for at in [20, whole.len() / 2, whole.len() - 30] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).expect("written");
            refused(&format!("byte {at} flipped"));
        }
        fs::remove_file(&path).expect("removed");
        refused("missing");
        fs::write(&path, &whole).expect("written");
    }
    // Two keys swapped are two good files in the wrong places.
    fs::rename(keys.join(name::COMMAND), keys.join("x")).expect("renamed");
    fs::rename(keys.join(name::CREDENTIAL), keys.join(name::COMMAND)).expect("renamed");
    fs::rename(keys.join("x"), keys.join(name::CREDENTIAL)).expect("renamed");
    let error = Pki::open(data.path(), &names(), NOW).expect_err("swapped");
    assert!(error.to_string().contains("another purpose"), "{error}");
}
