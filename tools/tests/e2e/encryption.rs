//! Whether what services say to Postgres can be read on its way.

use std::fs;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use shared::testing::{eventually, kafka_brokers};
use tools::stack::{Kind, Service};

use super::command_line::{outrider, said};
use super::doctor::{doctor, examined, has};
use super::harness::surroundings;
use super::private_postgres::{PrivatePostgres, address_of_this_machine, config};

const WARNING: &str = "the connection to Postgres is not encrypted";

/// A certificate of an authority, and one for `name` that it has signed, with its key; as PEM.
fn certificates(name: &str) -> Result<(String, String, String)> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let root = authority.self_signed(&authority_key)?.pem();
    let certificate =
        CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &Issuer::new(authority, authority_key))?;
    Ok((root, certificate.pem(), key.serialize_pem()))
}

/// How often a service that has become ready says that its connection is not encrypted.
async fn warnings(server: &PrivatePostgres, kind: Kind, name: &str, env: &[(&str, &str)]) -> Result<usize> {
    let surroundings = surroundings("", kafka_brokers(), server.folder())?;
    let mut service = Service::start(kind, name, &surroundings, env, &server.supply.reaper)?;
    service.wait_ready().await?;
    service.stop().await?;
    let log = fs::read_to_string(service.process().log_file().context("it has a log")?)?;
    Ok(log.matches(WARNING).count())
}

#[tokio::test]
async fn a_connection_off_the_machine_that_is_not_encrypted_is_said_once() -> Result<()> {
    let address = address_of_this_machine()?;
    let server = PrivatePostgres::listening_on(&[address]).await?;
    server.let_in(address).await?;
    let (password, port) = (server.password()?, server.postgres.port().to_string());
    let at = |host: &str, more: &str| format!("postgres://postgres:{password}@{host}:{port}/shop{more}");
    let host = address.to_string();
    let plain = at(&host, "");
    for kind in [Kind::Relay, Kind::Api] {
        let name = format!("{}-plain", kind.name());
        assert_eq!(warnings(&server, kind, &name, &[("DATABASE_URL", &plain)]).await?, 1, "{name}");
    }
    let findings = examined(&mut doctor(&plain, &kafka_brokers()))?;
    has(&findings, "database.tls", "warning", WARNING)?;
    let local = at("127.0.0.1", "");
    assert_eq!(warnings(&server, Kind::Relay, "local", &[("DATABASE_URL", &local)]).await?, 0);
    for (mode, error) in [("require", "TLS"), ("verify-full", "TLS")] {
        let refused = config([("DATABASE_URL", &at(&host, &format!("?sslmode={mode}")))])?.open().await;
        let said = refused.err().context("the server has no TLS")?.to_string();
        ensure!(said.contains(error) && said.lines().count() == 1, "{said}");
    }

    // From here on it has a certificate.
    let (root, certificate, key) = certificates(&host)?;
    let (root_file, other_file) = (server.folder().join("root.crt"), server.folder().join("other.crt"));
    fs::write(&root_file, root)?;
    fs::write(&other_file, certificates(&host)?.0)?;
    server.write("server.crt", &certificate)?;
    server.write("server.key", &key)?;
    server.set(&[("ssl", "on")]).await?;
    eventually("the server takes TLS", async || {
        config([("DATABASE_URL", &at(&host, "?sslmode=require"))]).ok()?.open().await.ok()
    })
    .await;
    let (root, other) = (root_file.display().to_string(), other_file.display().to_string());
    let verified = at(&host, &format!("?sslmode=verify-full&sslrootcert={root}&target_session_attrs=read-write"));
    let parts = [
        ("DB_HOST", host.as_str()),
        ("DB_PORT", port.as_str()),
        ("DB_USER", "postgres"),
        ("DB_PASSWORD", password.as_str()),
        ("DB_NAME", "shop"),
        ("DB_SSLMODE", "verify-full"),
        ("DB_SSLROOTCERT", root.as_str()),
    ];
    assert_eq!(warnings(&server, Kind::Relay, "verified", &[("DATABASE_URL", &verified)]).await?, 0);
    // A variable that is empty is one that is not set.
    let parts = [&parts[..], &[("DATABASE_URL", "")]].concat();
    assert_eq!(warnings(&server, Kind::Relay, "parts", &parts).await?, 0);
    let disabled = at(&host, "?sslmode=disable");
    assert_eq!(warnings(&server, Kind::Relay, "disabled", &[("DATABASE_URL", &disabled)]).await?, 1);
    // Another authority, and another name than the certificate's.
    let by_other = at(&host, &format!("?sslmode=verify-full&sslrootcert={other}"));
    let by_name = at("127.0.0.1", &format!("?sslmode=verify-full&sslrootcert={root}"));
    for url in [by_other, by_name] {
        let refused = config([("DATABASE_URL", &url)])?.open().await.err().context("it cannot be trusted")?.to_string();
        ensure!(refused.contains("certificate") && refused.lines().count() == 1, "{refused}");
    }
    config([("DATABASE_URL", &at("127.0.0.1", &format!("?sslmode=verify-ca&sslrootcert={root}")))])?.open().await?;
    Ok(())
}

#[test]
fn channel_binding_that_is_required_is_refused_in_one_line_that_says_what_to_set() -> Result<()> {
    // As Neon's console gives it.
    let url = "postgres://u:hunter2@db.example/shop?sslmode=require&channel_binding=require";
    let (code, text) = said(outrider("migrate").env("DATABASE_URL", url))?;
    ensure!(code == Some(64) && text.lines().count() == 1, "{text}");
    ensure!(
        text.contains("channel_binding=require") && text.contains("sslmode=verify-full") && !text.contains("hunter2"),
        "{text}"
    );
    Ok(())
}
