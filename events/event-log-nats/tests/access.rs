//! Servers that ask who comes, and show who they are: credentials of a user, certificates of a private authority.

use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use event_log::{EventLog as _, Position};
use event_log_nats::testing::{NatsServer, server_or_skip};
use event_log_nats::{NatsLog, NatsLogOptions, NatsOpenError};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};

/// A JSON web token as NATS signs it.
fn token(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let head = part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = part(&json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "flotilla", "nats": nats,
    }));
    let text = format!("{head}.{claims}");
    let signature = issuer.sign(text.as_bytes()).expect("a seed");
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

/// A server's configuration with one account, and the credentials of a user of it and of somebody else's.
fn accounts(dir: &Path) -> (String, PathBuf, PathBuf) {
    let (operator, account, system) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    // Of the system account the server asks that it has no JetStream.
    let limits = |streams: i32| {
        json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": streams, "disk_storage": streams, "streams": streams, "consumer": streams,
        })
    };
    let trusted = token(&operator, &operator, &json!({ "type": "operator", "version": 2 }));
    let held = |account: &KeyPair, streams| {
        token(&operator, account, &json!({ "type": "account", "version": 2, "limits": limits(streams) }))
    };
    let credentials = |name: &str, issuer: &KeyPair| {
        let user = KeyPair::new_user();
        let about = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let (jwt, seed) = (token(issuer, &user, &about), user.seed().expect("a seed"));
        let path = dir.join(name);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&path, text).expect("written");
        path
    };
    let (ours, others) =
        (credentials("ours.creds", &account), credentials("others.creds", &KeyPair::new_account()));
    let settings = format!(
        "operator: {trusted}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {account}: {}, {system}: {} }}\n",
        held(&account, -1),
        held(&system, 0),
        account = account.public_key(),
        system = system.public_key()
    );
    (settings, ours, others)
}

/// A server's configuration with a certificate for the loopback address, and its authority's file.
fn certificates(dir: &Path) -> (String, PathBuf) {
    let mut params = CertificateParams::new(vec![]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = || rcgen::KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key()).expect("signed");
    let (key, params) = (key(), CertificateParams::new(vec!["127.0.0.1".into()]).expect("an address"));
    let certificate = params.signed_by(&key, &authority).expect("signed");
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let settings = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n",
        file("server.pem", certificate.pem()),
        file("server-key.pem", key.serialize_pem())
    );
    (settings, file("authority.pem", authority.pem()))
}

fn options(server: &NatsServer) -> NatsLogOptions {
    NatsLogOptions { open_timeout: Duration::from_secs(5), ..NatsLogOptions::new(&server.url()) }
}

async fn refused(options: NatsLogOptions, why: &str) {
    match NatsLog::open(options).await {
        Err(error @ NatsOpenError::Connect { .. }) => {
            assert!(error.to_string().contains(why), "{error} instead of {why}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("let in although {why}"),
    }
}

async fn works(options: NatsLogOptions) {
    let log = NatsLog::open(options).await.expect("opens");
    assert_eq!(log.last_position().await.expect("answered"), Position::ZERO);
    log.vault().await.expect("the bucket of keys too");
    log.close().await;
}

#[tokio::test]
async fn a_user_shows_its_credentials() {
    let Some(program) = server_or_skip("a_user_shows_its_credentials") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (settings, ours, others) = accounts(dir.path());
    let mut server = NatsServer::new(program, dir.path().join("nats")).configured(&settings);
    server.restart().expect("starts");
    refused(options(&server), "authorization").await;
    refused(NatsLogOptions { credentials: Some(others), ..options(&server) }, "authorization").await;
    let absent = dir.path().join("none.creds");
    refused(NatsLogOptions { credentials: Some(absent), ..options(&server) }, "none.creds").await;
    works(NatsLogOptions { credentials: Some(ours), ..options(&server) }).await;
}

#[tokio::test]
async fn a_server_of_a_private_authority_is_known_by_it() {
    let Some(program) = server_or_skip("a_server_of_a_private_authority_is_known_by_it") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (settings, authority) = certificates(dir.path());
    let mut server = NatsServer::new(&program, dir.path().join("nats")).configured(&settings);
    server.restart().expect("starts");
    refused(options(&server), "certificate").await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let (_, foreign) = certificates(elsewhere.path());
    refused(NatsLogOptions { certificate_authority: Some(foreign), ..options(&server) }, "certificate").await;
    works(NatsLogOptions { certificate_authority: Some(authority.clone()), ..options(&server) }).await;
    // And never in plain text where an authority was named.
    let mut plain = NatsServer::new(&program, dir.path().join("plain"));
    plain.restart().expect("starts");
    refused(NatsLogOptions { certificate_authority: Some(authority), ..options(&plain) }, "do not speak TLS")
        .await;
}
