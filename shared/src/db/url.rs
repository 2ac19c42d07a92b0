//! `DATABASE_URL` as people have it: from libpq's documentation, a cloud's console, or a framework. Pure.

use sqlx::postgres::PgConnectOptions;

/// The servers of a URL, in their order: any of them may be the primary.
///
/// What sqlx does not do by itself is done here: IPv6 addresses, socket folders beside a password, several hosts, and what libpq says of
/// sessions and channels.
///
/// # Errors
/// What is wrong, without any part of the URL that may be secret.
pub(super) fn parse(url: &str) -> Result<Vec<PgConnectOptions>, String> {
    if url.starts_with("jdbc:") {
        return Err(format!(
            "is a JDBC URL, which holds user and password elsewhere: write {FORM}, with neither `jdbc:` in front nor `user=` behind"
        ));
    }
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or_else(|| format!("is not of the form {FORM}"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut hosts: Vec<String> = split(hosts);
    let (mut ports, mut rest) = (Vec::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "host" => hosts = split(value),
            "port" => ports = split(value),
            "target_session_attrs" => check_session(value)?,
            "channel_binding" => check_channel(value)?,
            _ => rest.push(pair),
        }
    }
    if hosts.is_empty() {
        hosts.push("localhost".to_owned());
    }
    let at = if credentials.is_empty() { "" } else { "@" };
    let server = |(place, host): (usize, &String)| {
        // Of one port for all hosts, or one for each.
        let port = ports.get(place).or_else(|| ports.first().filter(|_| ports.len() == 1));
        let host = Host::parse(host, port.map(String::as_str))?;
        let url = format!("postgres://{credentials}{at}{}/{name}?{}", host.in_url(), rest.join("&"));
        let options: PgConnectOptions = url.parse().map_err(|error| format!("is not of the form {FORM} ({error})"))?;
        Ok(host.set(options))
    };
    hosts.iter().enumerate().map(server).collect()
}

const FORM: &str = "postgres://user:password@host:port/name";

fn split(list: &str) -> Vec<String> {
    list.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// We write, so we want the primary, and say so where there are several hosts.
fn check_session(value: &str) -> Result<(), String> {
    match value {
        "read-write" | "primary" | "any" => Ok(()),
        _ => {
            Err(format!("asks for target_session_attrs={}, but only a primary takes what is written", printable(value)))
        }
    }
}

fn check_channel(value: &str) -> Result<(), String> {
    match value {
        "prefer" | "disable" => Ok(()),
        "require" => Err(
            "asks for channel_binding=require, which this client cannot do: take it out, and have the server prove \
            itself by its certificate (sslmode=verify-full)"
                .to_owned(),
        ),
        _ => Err(format!("asks for channel_binding={}: it is one of disable, prefer, require", printable(value))),
    }
}

fn printable(text: &str) -> String {
    text.chars().take(40).filter(|character| !character.is_control()).collect()
}

fn percent_decoded(text: &str) -> Result<String, &'static str> {
    const MALFORMED: &str = "has a host with % that is not followed by two hexadecimal digits of UTF-8";
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(MALFORMED)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        decoded.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or(MALFORMED)?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).map_err(|_| MALFORMED)
}

/// Where a server listens.
enum Host {
    /// A name or an address of version 4, and what is said of the port.
    Name(String),
    /// An address of version 6, without its brackets.
    V6 { address: String, port: String },
    /// A folder with a socket.
    Folder { path: String, port: String },
}

impl Host {
    fn parse(host: &str, port: Option<&str>) -> Result<Self, String> {
        let decoded = percent_decoded(host)?;
        let port_of = |own: Option<&str>| own.or(port).map(|port| format!(":{port}")).unwrap_or_default();
        if decoded.starts_with('/') {
            let (path, own) = decoded
                .rsplit_once(':')
                .filter(|(_, port)| is_number(port))
                .map_or((decoded.as_str(), None), |(path, port)| (path, Some(port)));
            return Ok(Self::Folder { path: path.to_owned(), port: port_of(own) });
        }
        if let Some(rest) = decoded.strip_prefix('[') {
            let (address, own) =
                rest.split_once(']').ok_or("has an address that begins with [ and does not end with ]")?;
            let own = own.strip_prefix(':').filter(|own| !own.is_empty());
            return Ok(Self::V6 { address: address.to_owned(), port: port_of(own) });
        }
        if decoded.matches(':').count() > 1 {
            // From `host=`, where there are no brackets.
            return Ok(Self::V6 { address: decoded, port: port_of(None) });
        }
        Ok(Self::Name(if decoded.contains(':') { decoded } else { format!("{decoded}{}", port_of(None)) }))
    }

    fn in_url(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::V6 { port, .. } | Self::Folder { port, .. } => format!("localhost{port}"),
        }
    }

    fn set(&self, options: PgConnectOptions) -> PgConnectOptions {
        match self {
            Self::Name(_) => options,
            Self::V6 { address, .. } => options.host(address),
            Self::Folder { path, .. } => options.socket(path),
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(url: &str) -> PgConnectOptions {
        let mut servers = parse(url).unwrap_or_else(|error| panic!("{url} {error}"));
        assert_eq!(servers.len(), 1, "{url}");
        servers.remove(0)
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        for (url, host, port, user, name) in [
            ("postgres://u:p@db:5433/n", "db", 5433, "u", Some("n")),
            ("postgresql://u@db/n", "db", 5432, "u", Some("n")),
            ("postgres://u@[::1]:5433/n", "::1", 5433, "u", Some("n")),
            ("postgres://u@[2001:db8::7]/n", "2001:db8::7", 5432, "u", Some("n")),
            ("postgres://u@/n?host=2001:db8::7&port=5433", "2001:db8::7", 5433, "u", Some("n")),
            ("postgres://u@/n?host=db&port=5433", "db", 5433, "u", Some("n")),
            ("postgres://u@127.0.0.1?dbname=n", "127.0.0.1", 5432, "u", Some("n")),
            ("postgres://u%40x@db/n%20m", "db", 5432, "u@x", Some("n m")),
        ] {
            let options = one(url);
            assert_eq!((options.get_host(), options.get_port()), (host, port), "{url}");
            assert_eq!((options.get_username(), options.get_database()), (user, name), "{url}");
            assert_eq!(options.get_socket(), None, "{url}");
        }
    }

    #[test]
    fn a_socket_is_found_wherever_its_folder_is_named() {
        for url in [
            "postgres://user:pw@/db?host=/cloudsql/project:region:instance",
            "postgres://user:pw@localhost/db?host=/cloudsql/project:region:instance",
            "postgres://user:pw@%2Fcloudsql%2Fproject%3Aregion%3Ainstance/db",
            "postgres://user:pw@/db?host=%2fcloudsql%2fproject%3aregion%3ain%73tance",
        ] {
            let options = one(url);
            let socket = options.get_socket().map(|path| path.display().to_string());
            assert_eq!(socket.as_deref(), Some("/cloudsql/project:region:instance"), "{url}");
            assert_eq!((options.get_username(), options.get_database()), ("user", Some("db")), "{url}");
        }
    }

    #[test]
    fn several_hosts_are_several_servers() {
        let places = |url: &str| -> Vec<(String, u16)> {
            let servers = parse(url).unwrap_or_else(|error| panic!("{url} {error}"));
            servers.iter().map(|server| (server.get_host().to_owned(), server.get_port())).collect()
        };
        let (a, b) = (("a".to_owned(), 5433), ("b".to_owned(), 5432));
        assert_eq!(places("postgres://u@a:5433,b/n?target_session_attrs=read-write"), [a.clone(), b]);
        assert_eq!(places("postgres://u@/n?host=a,::1&port=5433"), [a.clone(), ("::1".to_owned(), 5433)]);
        assert_eq!(places("postgres://u@/n?host=a,b&port=5433,5434"), [a, ("b".to_owned(), 5434)]);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (url, said) in [
            ("jdbc:postgresql://db/n?user=u&password=hunter2", "is a JDBC URL"),
            ("mysql://u:hunter2@db/n", "is not of the form postgres://"),
            ("host=db user=u password=hunter2", "is not of the form postgres://"),
            ("postgres://u:hunter2@db/n?target_session_attrs=standby", "only a primary"),
            ("postgres://u:hunter2@db/n?channel_binding=require", "sslmode=verify-full"),
            ("postgres://u:hunter2@db/n?sslmode=maybe", "is not of the form postgres://"),
            ("postgres://u:hunter2@[::1/n", "does not end with ]"),
            ("postgres://u:hunter2@%2Ftmp%2/n", "two hexadecimal digits"),
            ("postgres://u:hunter2@%+2tmp/n", "two hexadecimal digits"),
            ("postgres://u:hunter2@db:port/n", "is not of the form postgres://"),
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.contains(said), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(parse("postgres://u@db/n?channel_binding=prefer&sslmode=require").is_ok());
    }
}
