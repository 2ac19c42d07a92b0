//! TLS: its versions, HTTP/2, certificates that change, and clients that take their time.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use api::tls::Files;
use reqwest::Version;
use reqwest::header::CONTENT_TYPE;
use reqwest::tls::Version as TlsVersion;
use shared::testing::{PATIENCE, TestDatabase, eventually, eventually_within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificates::{Pair, client, edge, url};
use crate::http::{request, send};
use crate::process::program;
use crate::service::{Api, ORDER, hold, statement_held, written};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// An API over TLS.
async fn start(database: &TestDatabase, pair: &Pair, folder: &Path) -> Api {
    Api::at(database.config("outrider_api"), edge(pair.write(folder)), |_| ()).await
}

#[tokio::test]
async fn orders_are_taken_over_http_2_and_over_both_versions_of_tls() {
    let database = TestDatabase::create("over_tls").await;
    let (pair, folder) = (Pair::new(), folder());
    let api = start(&database, &pair, folder.path()).await;
    let newest = client(&[&pair], api.address, |builder| builder);
    let old_tls = client(&[&pair], api.address, |builder| builder.tls_version_max(TlsVersion::TLS_1_2));
    let new_tls = client(&[&pair], api.address, |builder| builder.tls_version_min(TlsVersion::TLS_1_3));
    let old_http = client(&[&pair], api.address, reqwest::ClientBuilder::http1_only);
    let clients = [
        (newest, Version::HTTP_2),
        (old_tls, Version::HTTP_2),
        (new_tls, Version::HTTP_2),
        (old_http, Version::HTTP_11),
    ];
    for (client, version) in clients {
        let posted = client.post(url(api.address, "/orders")).header(CONTENT_TYPE, "application/json").body(ORDER);
        let posted = posted.send().await.expect("an answer");
        assert_eq!((posted.status().as_u16(), posted.version()), (201, version));
        assert_eq!(posted.headers()["strict-transport-security"], "max-age=31536000");
        assert!(posted.headers().contains_key("x-request-id"));
        let missing = client.get(url(api.address, "/orders/9999")).send().await.expect("an answer");
        assert_eq!(missing.status(), 404);
        assert_eq!(missing.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(written(&database).await, (4, 4, 4));
    // Whoever speaks without TLS there is not served, and the admin port has none.
    let mut plain = TcpStream::connect(api.address).await.expect("a connection");
    plain.write_all(&request("GET", "/livez", "", b"")).await.expect("it is sent");
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(send(api.admin, request("GET", "/readyz", "", b"")).await.status, 200);
    let expiry = api.metric("api_tls_certificate_expiry_timestamp_seconds").await;
    assert!(expiry > 60_000_000_000, "rcgen's certificates end in the year 4096: {expiry}");
    api.stop().await;
}

#[tokio::test]
async fn an_event_stream_goes_over_http_2_beside_other_requests() {
    let database = TestDatabase::create("stream_over_http_2").await;
    let (pair, folder) = (Pair::new(), folder());
    let api = start(&database, &pair, folder.path()).await;
    let client = client(&[&pair], api.address, |builder| builder);
    let mut stream = client.get(url(api.address, "/orders/events")).send().await.expect("an answer");
    assert_eq!((stream.status().as_u16(), stream.version()), (200, Version::HTTP_2));
    let posted = client.post(url(api.address, "/orders")).header(CONTENT_TYPE, "application/json").body(ORDER);
    assert_eq!(posted.send().await.expect("an answer").status(), 201);
    let told = async {
        let mut text = String::new();
        while !text.contains("event: order.created") {
            let chunk = stream.chunk().await.expect("no error").expect("it goes on");
            text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    };
    timeout(PATIENCE, told).await.expect("the order is told of");
    // The stream ends with the shutdown, and the connection with its client.
    api.shutdown.request();
    let ended = async { while stream.chunk().await.is_ok_and(|chunk| chunk.is_some()) {} };
    timeout(PATIENCE, ended).await.expect("the stream ends");
    drop((stream, client));
    api.stop().await;
}

/// Kubernetes mounts a secret as links to `..data/`, itself a link to a folder, and swaps that link.
fn mount(pair: &Pair, volume: &Path, version: &str) -> Files {
    let data = volume.join(version);
    std::fs::create_dir(&data).expect("a folder");
    pair.write(&data);
    symlink(version, volume.join("..data_tmp")).expect("a link");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("it takes the place of the old one");
    let files = Files { cert: volume.join("tls.crt"), key: volume.join("tls.key") };
    for name in ["tls.crt", "tls.key"] {
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
    files
}

#[tokio::test]
async fn a_new_certificate_is_taken_while_connections_stay_open() {
    let database = TestDatabase::create("new_certificate").await;
    let (old, new, folder) = (Pair::new(), Pair::new(), folder());
    let files = mount(&old, folder.path(), "..1");
    let api = Api::at(database.config("outrider_api"), edge(files), |_| ()).await;
    let livez = url(api.address, "/livez");
    let kept = client(&[&old, &new], api.address, |builder| builder);
    assert!(old.is_of(&kept.get(&livez).send().await.expect("an answer")));
    mount(&new, folder.path(), "..2");
    eventually("new connections get the new certificate", async || {
        let answer = client(&[&old, &new], api.address, |builder| builder).get(&livez).send().await;
        new.is_of(&answer.expect("it is never without one")).then_some(())
    })
    .await;
    let answer = kept.get(&livez).send().await.expect("the connection is open still");
    assert!(old.is_of(&answer), "it goes on with what it began with");
    api.stop().await;
}

#[tokio::test]
async fn a_pair_that_does_not_fit_changes_nothing_and_is_logged_once() {
    let database = TestDatabase::create("pair_does_not_fit").await;
    let (old, other, folder) = (Pair::new(), Pair::new(), folder());
    let files = old.write(folder.path());
    let (cert, key) = (files.cert.to_str().expect("text"), files.key.to_str().expect("text"));
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("DB_ROLE", "outrider_api"),
        ("API_BIND", "127.0.0.1:0"),
        ("ADMIN_BIND", "127.0.0.1:0"),
        ("API_TLS_CERT", cert),
        ("API_TLS_KEY", key),
        ("LOG_FORMAT", "json"),
    ];
    let mut child = program(&variables).spawn().expect("it runs");
    let mut log = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line_with = async |what: &str| loop {
        let line = timeout(PATIENCE, log.next_line()).await.unwrap_or_else(|_| panic!("not logged: {what}"));
        let line = line.expect("a log").unwrap_or_else(|| panic!("the log ended without {what}"));
        if line.contains(what) {
            return line;
        }
        assert!(!line.contains("TLS certificate"), "said more than once, or too early: {line}");
    };
    let line = line_with("server.address").await;
    let entry: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let address = entry["server.address"].as_str().expect("text").parse().expect("an address");
    let served = async || {
        let answer = client(&[&old, &other], address, |builder| builder).get(url(address, "/livez")).send().await;
        answer.expect("an answer")
    };

    std::fs::write(&files.key, &other.key).expect("written");
    let line = line_with("stays as it was").await;
    assert!(line.contains(&format!("'{key}' is not the key of the certificate in '{cert}'")), "{line}");
    assert!(line.contains("WARN"), "{line}");
    assert!(old.is_of(&served().await));
    // Another fault is another line, and the first one has not been said again meanwhile.
    std::fs::write(&files.cert, &other.cert[..other.cert.len() / 2]).expect("written");
    let line = line_with("stays as it was").await;
    assert!(line.contains(&format!("'{cert}' is not whole")) || line.contains(&format!("'{cert}' holds")), "{line}");
    assert!(old.is_of(&served().await));
    std::fs::write(&files.cert, &other.cert).expect("written");
    line_with("a new TLS certificate is in use").await;
    assert!(other.is_of(&served().await));
}

#[tokio::test]
async fn bad_files_are_one_line_that_names_the_variable_and_exit_code_64() {
    let (pair, other, folder) = (Pair::new(), Pair::new(), folder());
    let files = pair.write(folder.path());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let (cert, key) = (files.cert.to_str().expect("text"), files.key.to_str().expect("text"));
    let (other_key, text) = (write("other.key", &other.key), write("text", "no PEM"));
    let half = write("half.crt", &pair.cert[..pair.cert.len() / 2]);
    let cases = [
        ("/nowhere/tls.crt", key, "API_TLS_CERT: '/nowhere/tls.crt' cannot be read: No such file".to_owned()),
        (cert, "/nowhere/tls.key", "API_TLS_KEY: '/nowhere/tls.key' cannot be read: No such file".to_owned()),
        (&text, key, format!("API_TLS_CERT: '{text}' holds no certificate")),
        (&half, key, format!("API_TLS_CERT: '{half}' ")),
        (cert, &text, format!("API_TLS_KEY: '{text}' holds no private key")),
        (cert, &other_key, format!("API_TLS_KEY: '{other_key}' is not the key of the certificate in '{cert}'")),
        (cert, "", "API_TLS_KEY: is needed with API_TLS_CERT".to_owned()),
    ];
    for (cert, key, expected) in cases {
        let url = "postgres://nobody@127.0.0.1:1/none";
        let variables = [("DATABASE_URL", url), ("API_TLS_CERT", cert), ("API_TLS_KEY", key)];
        let output = program(&variables).output().await.expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(&expected) && text.lines().count() == 1, "{expected}: {text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

#[tokio::test]
async fn a_handshake_that_is_not_made_is_given_up_and_keeps_nobody_out() {
    let database = TestDatabase::create("slow_handshake").await;
    let (pair, folder) = (Pair::new(), folder());
    let api = Api::at(database.config("outrider_api"), edge(pair.write(folder.path())), |limits| {
        limits.tls_handshake_timeout_ms = 2_000;
    })
    .await;
    let start = Instant::now();
    let mut silent = Vec::new();
    // More than the handshakes that actix would have at once by default.
    for _ in 0..300 {
        silent.push(TcpStream::connect(api.address).await.expect("a connection"));
    }
    let answer = client(&[&pair], api.address, |builder| builder).get(url(api.address, "/livez")).send().await;
    assert_eq!(answer.expect("an answer").status(), 200);
    assert!(start.elapsed() < Duration::from_secs(2), "it did not wait for one of them to be given up");
    for mut connection in silent {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, connection.read_to_end(&mut rest)).await.expect("it is closed");
        assert!(rest.is_empty());
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "each had its time");
    api.stop().await;
}

#[tokio::test]
async fn one_connection_brings_no_more_requests_at_once_than_there_may_be_connections() {
    let database = TestDatabase::create("many_streams").await;
    let (pair, folder) = (Pair::new(), folder());
    let api = Api::at(database.config("outrider_api"), edge(pair.write(folder.path())), |limits| {
        limits.connections_max = 2;
        limits.statements_max = 1;
    })
    .await;
    let client = client(&[&pair], api.address, |builder| builder);
    // So that there is a connection, which all that follows shares.
    assert_eq!(client.get(url(api.address, "/livez")).send().await.expect("an answer").version(), Version::HTTP_2);
    let held = hold(&database.pool).await;
    let post = || client.post(url(api.address, "/orders")).header(CONTENT_TYPE, "application/json").body(ORDER).send();
    let served = [tokio::spawn(post()), tokio::spawn(post())];
    statement_held(&database).await;
    eventually("both are being served", async || (api.metric("http_server_active_requests").await == 2).then_some(()))
        .await;
    let refused = post().await.expect("an answer");
    assert_eq!((refused.status().as_u16(), refused.version()), (503, Version::HTTP_2));
    assert!(refused.text().await.expect("a body").contains("/problems/overloaded"));
    drop(held);
    for answer in served {
        assert_eq!(answer.await.expect("no panic").expect("an answer").status(), 201);
    }
    assert_eq!(post().await.expect("an answer").status(), 201);
    assert_eq!(written(&database).await, (3, 3, 3));
    api.stop().await;
}

#[tokio::test]
async fn an_idle_connection_of_http_2_holds_the_shutdown_up_no_longer_than_requests_may() {
    let database = TestDatabase::create("idle_http_2").await;
    let (pair, folder) = (Pair::new(), folder());
    let api =
        Api::at(database.config("outrider_api"), edge(pair.write(folder.path())), |limits| limits.drain_secs = 2).await;
    let client = client(&[&pair], api.address, |builder| builder);
    assert_eq!(client.get(url(api.address, "/livez")).send().await.expect("an answer").status(), 200);
    let start = Instant::now();
    api.shutdown.request();
    eventually_within(Duration::from_secs(20), "it ends", async || api.running.is_finished().then_some(())).await;
    println!("the shutdown took {:?}", start.elapsed());
    api.running.await.expect("no panic").expect("it ends in order");
}
