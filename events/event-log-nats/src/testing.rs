//! A real `nats-server` for tests: started on a free loopback port with JetStream in a folder of the test's, killed and
//! restarted at will, gone with its handle. For tests only, but not behind a feature, since tests of other crates use it.
//!
//! The program is looked for in `FLOTILLA_NATS_SERVER`, then `target/tools/nats-server` of the workspace, then `PATH`.
//! Without it a test skips itself, loudly; with `CI` or `FLOTILLA_REQUIRE_ALL` set it fails. See [`server_or_skip`].

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the server may take to be ready: it replays its files after a kill.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks for the `nats-server` program.
pub fn find_server() -> Option<PathBuf> {
    if let Some(path) = env::var_os("FLOTILLA_NATS_SERVER").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/nats-server");
    if tools.is_file() {
        return Some(tools);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file())
}

/// The `nats-server` program, or `None` after saying on stderr that `test` is skipped.
///
/// # Panics
/// When there is none and `CI` or `FLOTILLA_REQUIRE_ALL` is set: there a skipped test would be a lie.
pub fn server_or_skip(test: &str) -> Option<PathBuf> {
    let found = find_server();
    if found.is_none() {
        let how = "set FLOTILLA_NATS_SERVER, or put nats-server at target/tools/nats-server or into PATH";
        let required = ["CI", "FLOTILLA_REQUIRE_ALL"].into_iter().find(|name| env::var_os(name).is_some());
        if let Some(name) = required {
            panic!("{test} needs nats-server, and {name} is set: {how}");
        }
        // Past the test harness, which hides what a passing test prints.
        let _ = writeln!(io::stderr(), "\n!!! SKIPPED: {test}: there is no nats-server; {how}\n");
    }
    found
}

/// A running server, or one that was killed and can be started again on the same port and folder.
#[derive(Debug)]
pub struct NatsServer {
    program: PathBuf,
    dir: PathBuf,
    name: String,
    /// What its configuration has besides: the part that makes it a member of a cluster, and what a test wants.
    more: String,
    address: Option<SocketAddr>,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts `program` with its files in `dir`, syncing before every acknowledgement, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start or is not ready within 30 s; the text has the end of the server's log.
    pub fn start(program: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> io::Result<NatsServer> {
        let mut server = NatsServer::new(program, dir);
        server.restart()?;
        Ok(server)
    }

    /// As [`NatsServer::start`], but not started: [`NatsServer::restart`] does.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> NatsServer {
        NatsServer {
            program: program.into(),
            dir: dir.into(),
            name: "flotilla-test".to_owned(),
            more: String::new(),
            address: None,
            child: None,
        }
    }

    /// With more in its configuration, such as `tls { … }`.
    #[must_use]
    pub fn configured(mut self, more: &str) -> NatsServer {
        self.more.push_str(more);
        self
    }

    /// Starts a cluster of `count` servers, each with its files in a folder of its own under `dir`. They may still be
    /// electing when this returns; opening a log waits for that.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub fn start_cluster(program: &Path, dir: &Path, count: usize) -> io::Result<Vec<NatsServer>> {
        let mut servers = NatsServer::cluster(program, dir, count)?;
        servers.iter_mut().try_for_each(NatsServer::restart)?;
        Ok(servers)
    }

    /// The servers of [`NatsServer::start_cluster`], not started. Folders of an earlier cluster are gone on with.
    ///
    /// # Errors
    /// When no ports can be had.
    pub fn cluster(program: &Path, dir: &Path, count: usize) -> io::Result<Vec<NatsServer>> {
        // Members have to know each other's ports before they start: take free ones, all at once so that they differ.
        let listeners =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
        let routes = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        drop(listeners);
        let all: Vec<_> = routes.iter().map(|route| format!("\"nats-route://{route}\"")).collect();
        let mut servers = Vec::new();
        for (nth, route) in routes.iter().enumerate() {
            servers.push(NatsServer {
                program: program.to_path_buf(),
                dir: dir.join(format!("server-{nth}")),
                name: format!("flotilla-test-{nth}"),
                more: format!(
                    "cluster {{\n  name: \"flotilla-test\"\n  listen: \"{route}\"\n  routes: [{}]\n}}\n",
                    all.join(", ")
                ),
                address: None,
                child: None,
            });
        }
        Ok(servers)
    }

    /// What clients connect to.
    pub fn url(&self) -> String {
        self.address.map_or_else(String::new, |address| format!("nats://{address}"))
    }

    /// The address clients connect to, for a proxy in between.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The server's log file.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("nats-server.log")
    }

    /// Its name, as the servers tell it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where JetStream keeps its files.
    pub fn store(&self) -> PathBuf {
        self.dir.join("jetstream")
    }

    /// Stops it cleanly (SIGTERM) and waits until it has ended. Does nothing if it does not run.
    ///
    /// # Errors
    /// When the signal can't be sent, or it has not ended within 30 s; it is killed then.
    pub fn stop(&mut self) -> io::Result<()> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        let told = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status()?.success();
        let deadline = Instant::now() + START_TIMEOUT;
        while told && Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                self.child = None;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        Err(self.failure("did not stop"))
    }

    /// Kills it at once (SIGKILL), without a chance to write anything. Does nothing if it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died by itself; either way it is reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it, after killing it if it runs, on the same port with the same files.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        fs::create_dir_all(&self.dir)?;
        let port = self.address.map_or(-1, |address| i32::from(address.port()));
        let config = self.dir.join("nats-server.conf");
        fs::write(&config, self.config(port))?;
        let output = File::create(self.dir.join("nats-server.out"))?;
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.display())))?;
        let ports = self.dir.join(format!("nats-server_{}.ports", child.id()));
        self.child = Some(child);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_ready(&ports)? {
            if Instant::now() >= deadline {
                return Err(self.failure("not ready in time"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn config(&self, port: i32) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: \"{}\"\nports_file_dir: {}\nlog_file: {}\n\
             jetstream {{\n  store_dir: {}\n  sync_interval: always\n  max_file_store: 4GB\n  max_memory_store: 64MB\n}}\n{}",
            self.name,
            quoted(&self.dir),
            quoted(&self.log_path()),
            quoted(&self.dir.join("jetstream")),
            self.more,
        )
    }

    /// Whether it says that it is there, with JetStream.
    fn is_ready(&mut self, ports: &Path) -> io::Result<bool> {
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            return Err(self.failure(&format!("ended with {status}")));
        }
        if self.address.is_none() {
            self.address = fs::read_to_string(ports).ok().as_deref().and_then(parse_ports);
        }
        let Some(address) = self.address else { return Ok(false) };
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut hello = [0; 4096];
        // The server speaks first; a short or missing greeting means another try.
        let read = stream.read(&mut hello).unwrap_or(0);
        Ok(String::from_utf8_lossy(&hello[..read]).contains("\"jetstream\":true"))
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let out = fs::read_to_string(self.dir.join("nats-server.out")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().chain(out.lines()).collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        io::Error::other(format!("{}: {what}\n{end}", self.program.display()))
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The client address in the file of ports that the server writes (`{"nats":["nats://127.0.0.1:41234"],…}`).
fn parse_ports(text: &str) -> Option<SocketAddr> {
    // With TLS it says `tls://`.
    let urls = &text[text.find("\"nats\"")?..];
    let begin = urls.find("://")? + "://".len();
    let text = urls;
    let end = text[begin..].find('"')?;
    text[begin..begin + end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_ports_is_read() {
        let text = r#"{"nats":["nats://127.0.0.1:41234"],"monitoring":[]}"#;
        assert_eq!(parse_ports(text), Some("127.0.0.1:41234".parse().unwrap()));
        for other in ["", "{}", r#"{"nats":["nats://127"#, r#"{"nats":["nats://nowhere"]}"#] {
            assert_eq!(parse_ports(other), None);
        }
    }
}
