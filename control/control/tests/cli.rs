//! The real `flotilla` binary: start, operate, kill, start again, and what it says when things are wrong.

mod support;

use std::sync::Arc;

use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;
use support::program::{FLOTILLA, Serve, error_of, failure, json, run, text};

#[test]
fn started_operated_killed_and_started_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let serve = Serve::start(&data);
    for key in ["http", "gateway", "data", "ca_fingerprint"] {
        assert!(serve.ready[key].is_string(), "{key}");
    }
    let api: Value =
        serde_json::from_slice(&std::fs::read(data.join("api.json")).expect("api.json")).expect("JSON");
    assert_eq!(api["url"], serve.ready["http"]);
    #[cfg(unix)]
    for file in ["api.json", "api-token"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(data.join(file)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let file = dir.path().join("agent.json");
    let made = serve.json(&[
        "token",
        "create",
        "--tag",
        "AGENT_NAME=x",
        "--uses",
        "2",
        "--expires",
        "1h",
        "--storage-path",
        "/srv",
        "--out",
        file.to_str().expect("UTF-8"),
    ]);
    let text = std::fs::read_to_string(&file).expect("written");
    let bootstrap: agent_proto::Bootstrap = serde_json::from_str(&text).expect("a bootstrap file");
    assert_eq!(bootstrap.management_server.host, serve.ready["gateway"].as_str().expect("an address"));
    assert_eq!(bootstrap.folders_storage_path.as_deref(), Some("/srv"));
    let printed = serve.run(&["token", "create"]);
    assert!(serde_json::from_slice::<agent_proto::Bootstrap>(&printed.stdout).is_ok());
    assert_eq!(serve.json(&["token", "list"])["tokens"].as_array().map(Vec::len), Some(2));
    let revoked = serve.json(&["token", "revoke", made["id"].as_str().expect("an id")]);
    assert_eq!(revoked["state"], "revoked");
    assert_eq!(serve.json(&["groups", "create", "all"])["name"], "all");
    assert_eq!(serve.json(&["agents", "list"])["agents"].as_array().map(Vec::len), Some(0));
    let log = serve.run(&["log", "show"]);
    let log = String::from_utf8(log.stdout).expect("text");
    let told = [
        "fleet.founded",
        "schema.raised",
        "token.created",
        "subject.opened",
        "token.created",
        "token.revoked",
        "group.created",
    ];
    let kinds: Vec<&str> = log.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(kinds, told);
    let before = serve.json(&["status"]);

    drop(serve); // SIGKILL
    assert!(data.join("api.json").exists());
    let gone = run(&data, &["status"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(error_of(&gone).contains("does not answer"), "{}", error_of(&gone));

    let serve = Serve::start(&data);
    let after = serve.json(&["status"]);
    assert_eq!((&after["position"], &after["state_hash"]), (&before["position"], &before["state_hash"]));
    assert_eq!(serve.terminate(), 0);
    let gone = run(&data, &["status"]);
    assert!(error_of(&gone).contains("flotilla serve --data"), "{}", error_of(&gone));
}

#[test]
fn mistakes_are_told_apart_from_failures() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let serve = Serve::start(&data);
    let cases: Vec<(&[&str], i32, &str)> = vec![
        (&["agents", "lst"], 2, "lst"),
        (&["jobs", "create", "distribution", "--name", "x"], 2, "--source"),
        (
            &["jobs", "create", "distribution", "--name", "x", "--source", "a", "--destination", "b:c"],
            2,
            "AGENT:PATH",
        ),
        (
            &["jobs", "create", "distribution", "--name", "x", "--source", "a:b", "--destination", "c:d"],
            1,
            "no agent a",
        ),
        (&["token", "create", "--expires", "soon"], 2, "soon"),
        (&["token", "create", "--uses", "0"], 1, "uses"),
        (&["token", "create", "--tag", "x"], 2, "NAME=VALUE"),
        (&["token", "create", "--out", "/nonexistent/x"], 1, "cannot write"),
        (&["agents", "show", "nobody"], 1, "nobody"),
        (&["agents", "tag", "x"], 2, "NAME=VALUE"),
        (&["runs", "watch"], 1, "no runs"),
        (&["runs", "show", "latest"], 1, "no runs"),
        (&["status", "--server", "http://127.0.0.1:1"], 2, "--token"),
        (&["status", "--server", "127.0.0.1:1", "--token", "x"], 2, "http://"),
        (&["serve", "--http", "0.0.0.0:0"], 2, "--http-plaintext"),
        (&["serve", "--tracker", "nonsense"], 2, "HOST:PORT"),
        (&["serve", "--config", "/nonexistent"], 1, "/nonexistent"),
        (&["serve", "--http", "127.0.0.1:0"], 1, "another `flotilla serve`"),
    ];
    for (line, code, says) in cases {
        let output = serve.run(line);
        assert_eq!(output.status.code(), Some(code), "{line:?}: {}", error_of(&output));
        assert!(error_of(&output).contains(says), "{line:?}: {}", error_of(&output));
        assert!(output.stdout.is_empty(), "{line:?} says something on stdout");
    }
    // A wrong token.
    let url = serve.ready["http"].as_str().expect("a URL");
    let refused = serve.run(&["status", "--server", url, "--token", "wrong"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error_of(&refused).contains("does not know this token"));
    let token = std::fs::read_to_string(data.join("api-token")).expect("a token");
    assert!(serve.run(&["status", "--server", url, "--token", &token]).status.success());
    // Help is no failure.
    let help = serve.run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Example"));
    assert_eq!(serve.terminate(), 0);
}

/// A TLS proxy in front of a service, as docs/operations.md asks for. Returns its port and its authority's certificate.
fn tls_proxy(to: String) -> (u16, String) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let authority = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("a certificate").pem();
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .expect("a name")
        .signed_by(&key, &Issuer::new(params, authority))
        .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("fits");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("set");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("taken");
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((near, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    let Ok(mut near) = acceptor.accept(near).await else { return };
                    let mut far = tokio::net::TcpStream::connect(to).await.expect("the service");
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
    });
    (port, root)
}

#[test]
fn over_tls_and_with_the_place_from_the_environment() {
    let dir = tempfile::tempdir().expect("a folder");
    let serve = Serve::start(dir.path().join("data"));
    serve.json(&["groups", "create", "seen"]);
    let (port, root) = tls_proxy(serve.place().trim_start_matches("http://").into());
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, root).expect("written");
    let (server, token) = (format!("https://localhost:{port}"), serve.token());
    let place = ["--server", &server, "--token", &token, "--ca", text(&ca)];
    let groups = json(&[&place[..], &["groups", "list"]].concat());
    assert_eq!(groups["groups"][0]["name"], "seen");
    let out = dir.path().join("history");
    json(&[&place[..], &["audit", "export", "--out", text(&out)]].concat());

    // Somebody else's certificate, a file that is none, and no token.
    let (_, other) = tls_proxy("127.0.0.1:1".into());
    std::fs::write(&ca, other).expect("written");
    assert!(failure(1, &[&place[..], &["status"]].concat()).contains("does not answer"));
    std::fs::write(&ca, "none").expect("written");
    assert!(failure(2, &[&place[..], &["status"]].concat()).contains("no certificate"));
    assert!(failure(2, &["--server", &server, "status"]).contains("--token"));
    assert!(failure(2, &["--server", "localhost:1", "--token", "t", "status"]).contains("https://"));

    // From the environment: a folder that was typed counts more, and what works on files needs no token.
    let with = |line: &[&str]| {
        let mut command = std::process::Command::new(FLOTILLA);
        command.env("FLOTILLA_SERVER", "http://127.0.0.1:1").env_remove("FLOTILLA_TOKEN").args(line);
        command.output().expect("runs")
    };
    for line in [
        &["groups", "list", "--data", text(serve.data())][..],
        &["audit", "verify", text(&out)],
        &["log", "check", "--data", text(serve.data())],
    ] {
        let output = with(line);
        assert!(output.status.success(), "{line:?}: {}", error_of(&output));
    }
    assert_eq!(with(&["groups", "list"]).status.code(), Some(2));
}
