//! `DATABASE_URL` in the forms in which people have it, on a real server.

use std::net::{IpAddr, Ipv6Addr, TcpListener};

use anyhow::{Context, Result, ensure};
use shared::db::DatabaseConfig;
use sqlx::AssertSqlSafe;

use super::command_line::{outrider, said};
use super::private_postgres::{PrivatePostgres, config};

/// A role whose name and password have every character that means something in a URL.
const ROLE: &str = "a@b:c/d%e?f#g";
const PASSWORD: &str = "p@ss:w/rd%20?#&=+ ä";

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded + &char::from(byte).to_string(),
        _ => encoded + &format!("%{byte:02X}"),
    })
}

/// Whom and where a service is at with these settings.
async fn found(config: &DatabaseConfig) -> Result<(String, String)> {
    let database = config.open().await?;
    let who_and_where = sqlx::query_as("SELECT session_user::text, current_database()::text");
    let found = who_and_where.fetch_one(&mut *database.acquire().await?).await?;
    database.close().await;
    Ok(found)
}

#[tokio::test]
async fn each_form_of_a_url_leads_to_the_server() -> Result<()> {
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let addresses = if v6 { vec![IpAddr::V6(Ipv6Addr::LOCALHOST)] } else { Vec::new() };
    let server = PrivatePostgres::listening_on(&addresses).await?;
    let sql = format!("CREATE ROLE \"{ROLE}\" LOGIN SUPERUSER PASSWORD '{PASSWORD}'");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server.connect().await?).await?;
    let (user, password, port) = (percent_encoded(ROLE), percent_encoded(PASSWORD), server.postgres.port());
    let folder = server.sockets().display().to_string();
    let in_host = percent_encoded(&folder);
    let mut forms = vec![
        format!("postgres://{user}:{password}@127.0.0.1:{port}/shop"),
        format!("postgresql://{user}:{password}@localhost:{port}/shop?sslmode=prefer&connect_timeout=10"),
        format!("postgres://{user}:{password}@127.0.0.1:{port}/sh%6Fp?application_name=mine&options=-c%20geqo%3Doff"),
        format!("postgres://{user}:{password}@/shop?host={folder}&port={port}"),
        format!("postgres://{user}:{password}@localhost/shop?port={port}&host={folder}"),
        format!("postgres://{user}:{password}@{in_host}:{port}/shop"),
        format!("postgres:///shop?host=127.0.0.1&port={port}&user={user}&password={password}"),
        format!("postgres://{user}:{password}@127.0.0.1:1,127.0.0.1:{port}/shop?target_session_attrs=read-write"),
        format!(
            "postgres://{user}:{password}@/shop?host=127.0.0.1,{folder}&port=1,{port}&target_session_attrs=primary"
        ),
        format!("postgres://{user}:{password}@127.0.0.1:{port}/shop?channel_binding=prefer&target_session_attrs=any"),
    ];
    if v6 {
        forms.extend([
            format!("postgres://{user}:{password}@[::1]:{port}/shop"),
            format!("postgres://{user}:{password}@/shop?host=::1&port={port}"),
            format!("postgres://{user}:{password}@127.0.0.1:1,[::1]:{port}/shop"),
        ]);
    } else {
        eprintln!("this machine has no IPv6: its addresses are not tried");
    }
    let expected = (ROLE.to_owned(), "shop".to_owned());
    for url in &forms {
        let config = config([("DATABASE_URL", url)]).with_context(|| url.clone())?;
        assert_eq!(found(&config).await.with_context(|| url.clone())?, expected, "{url}");
    }
    // The same in parts, where nothing is encoded.
    let port = port.to_string();
    let hosts = ["127.0.0.1", folder.as_str(), "localhost"].into_iter().chain(v6.then_some("::1"));
    for host in hosts {
        let parts = [
            ("DB_HOST", host),
            ("DB_PORT", port.as_str()),
            ("DB_USER", ROLE),
            ("DB_PASSWORD", PASSWORD),
            ("DB_NAME", "shop"),
        ];
        assert_eq!(found(&config(parts)?).await.with_context(|| host.to_owned())?, expected, "{host}");
    }
    Ok(())
}

#[test]
fn a_url_that_leads_nowhere_is_one_line_that_says_what_is_wrong_with_it() -> Result<()> {
    for (url, expected) in [
        ("jdbc:postgresql://db:5432/shop?user=u&password=hunter2", "is a JDBC URL"),
        ("postgres://u:hunter2@[::1/shop", "does not end with ]"),
        ("postgres://u:hunter2@db/shop?target_session_attrs=standby", "only a primary takes what is written"),
        (
            "Host=db;Username=u;Password=hunter2;Database=shop",
            "is not of the form postgres://user:password@host:port/name",
        ),
    ] {
        let (code, text) = said(outrider("migrate").env("DATABASE_URL", url))?;
        ensure!(code == Some(64) && text.lines().count() == 1, "{url}: {code:?} {text}");
        ensure!(text.starts_with("outrider: DATABASE_URL: ") && text.contains(expected), "{url}: {text}");
        ensure!(!text.contains("hunter2"), "{text}");
    }
    Ok(())
}
