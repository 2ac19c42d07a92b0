//! Configuration by environment variables, one section a prefix (`KAFKA_`, `RELAY_`, ...), read with envy.
//!
//! envy names the bare field in its errors; here every error names the whole variable, so that a bad deployment is mended from
//! one line.

mod env_file;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The variable that names another file than `.env`.
const ENV_FILE: &str = "ENV_FILE";

/// What the names of all settings begin with.
const OURS: [&str; 14] = [
    "ADMIN_",
    "API_",
    "DATABASE_URL",
    "DB_",
    "ENV_FILE",
    "KAFKA_",
    "LOG_",
    "OTEL_",
    "OUTRIDER_",
    "PROCESSOR_",
    "RELAY_",
    "RUST_LOG",
    "SHUTDOWN_",
    "TRACES_",
];

/// Exit code for a bad or missing setting: `EX_USAGE` of BSD's sysexits.h.
pub const EXIT_CONFIG: u8 = 64;

/// A setting that is missing or makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    /// The whole name of the environment variable.
    pub variable: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// An error for `variable`.
    pub fn new(variable: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { variable: variable.into(), problem: problem.into() }
    }
}

/// What may also come from a file: the variable with `_FILE` behind it names the file, as orchestrators hand over what nobody is to see in a
/// container's description.
const SECRETS: [&str; 5] =
    ["DATABASE_URL", "DB_PASSWORD", "KAFKA_SASL_PASSWORD", "KAFKA_SSL_KEY_PASSWORD", "API_JWT_SECRET"];

/// The variables to read from: those of the process, or a test's own.
#[derive(Debug, Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    /// The process's variables, after those of a file `.env` in the working directory, if there is one; the process's own win. `ENV_FILE`
    /// names another file, which must be there. A variable that is set to nothing counts as not set, since compose files and shells set such.
    /// Then the secrets that are in files: `DB_PASSWORD_FILE` for `DB_PASSWORD`, and so for each of them.
    ///
    /// # Errors
    /// When there is a file that cannot be read or parsed or that others may write, when a variable of ours is not UTF-8, and when a secret is given
    /// twice.
    pub fn load() -> Result<Self, ConfigError> {
        let own = own_variables(std::env::vars_os())?;
        let mut variables = HashMap::new();
        let named = own.get(ENV_FILE).filter(|path| !path.is_empty());
        match env_file::read(named.map_or(Path::new(".env"), Path::new))? {
            Some(read) => variables.extend(read),
            None if named.is_some() => return Err(ConfigError::new(ENV_FILE, "there is no such file")),
            None => {}
        }
        variables.extend(own);
        Self::from_pairs(variables).with_secrets_of_files()
    }

    fn with_secrets_of_files(mut self) -> Result<Self, ConfigError> {
        for name in SECRETS {
            let variable = format!("{name}_FILE");
            let Some(path) = self.0.remove(&variable) else { continue };
            if self.0.contains_key(name) {
                return Err(ConfigError::new(variable, format!("is set beside {name}: set one of them")));
            }
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError::new(&variable, format!("'{path}' cannot be read ({error})")))?;
            // Editors and `echo` end a file with a line end, which belongs to no secret.
            let secret = text.trim_end_matches(['\n', '\r']);
            if secret.is_empty() {
                return Err(ConfigError::new(variable, format!("'{path}' is empty")));
            }
            self.0.insert(name.to_owned(), secret.to_owned());
        }
        Ok(self)
    }

    /// Exactly these variables.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(pairs.filter(|(_, value): &(String, String)| !value.is_empty()).collect())
    }

    /// One variable, if it is set.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All variables that start with `prefix`, as a `T` whose fields are named like the rest of them in lower case.
    ///
    /// # Errors
    /// When one is missing that has no default, or cannot be parsed.
    pub fn section<T: DeserializeOwned>(&self, prefix: &str) -> Result<T, ConfigError> {
        let pairs: Vec<(String, String)> = self
            .0
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
            .collect();
        envy::from_iter(pairs.clone()).map_err(|error| named::<T>(prefix, &pairs, &error))
    }

    /// The address of the health and metrics port, `ADMIN_BIND`, or the service's default.
    ///
    /// # Errors
    /// When it is not `host:port`, or the host is unknown.
    pub fn admin_bind(&self, default: &str) -> Result<SocketAddr, ConfigError> {
        self.bind("ADMIN_BIND", default)
    }

    /// The address to listen on in `variable`, as `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// When it is not of that form, or the host is unknown.
    pub fn bind(&self, variable: &str, default: &str) -> Result<SocketAddr, ConfigError> {
        let value = self.var(variable).unwrap_or(default);
        let mut addresses = value.to_socket_addrs().map_err(|error| {
            ConfigError::new(
                variable,
                format!("'{value}' is not a host and port such as 127.0.0.1:8080 or [::]:8080 ({error})"),
            )
        })?;
        addresses.next().ok_or_else(|| ConfigError::new(variable, format!("'{value}' has no address")))
    }
}

/// The variables of the process, as text.
fn own_variables(all: impl Iterator<Item = (OsString, OsString)>) -> Result<HashMap<String, String>, ConfigError> {
    let mut variables = HashMap::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            // Kubernetes and Docker set such for a service that is called `db`, `kafka` and so on: no setting of ours.
            Ok(value) if name.ends_with("_PORT") && value.starts_with("tcp://") => {}
            Ok(value) => drop(variables.insert(name, value)),
            Err(_) if OURS.iter().any(|prefix| name.starts_with(prefix)) => {
                return Err(ConfigError::new(name, "is not UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(variables)
}

/// Finds the variable behind an envy error. envy names it only where a number or boolean could not be parsed; otherwise the
/// culprit is the one without which the error changes.
fn named<T: DeserializeOwned>(prefix: &str, pairs: &[(String, String)], error: &envy::Error) -> ConfigError {
    let full = |field: &str| format!("{prefix}{}", field.to_uppercase());
    let text = match error {
        envy::Error::MissingValue(field) => return ConfigError::new(full(field), "is not set and has no default"),
        envy::Error::Custom(text) => text,
    };
    let culprit = pairs.iter().find(|(name, _)| {
        let others = pairs.iter().filter(|(other, _)| other != name).cloned();
        envy::from_iter::<_, T>(others).err().as_ref() != Some(error)
    });
    let problem = text.split(" while parsing value").next().unwrap_or(text);
    match culprit {
        Some((name, value)) if looks_secret(name) => {
            ConfigError::new(full(name), format!("{problem} ({} characters given)", value.len()))
        }
        Some((name, value)) => ConfigError::new(full(name), format!("{problem} ('{value}' given)")),
        None => ConfigError::new(format!("{prefix}*"), problem),
    }
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_uppercase();
    ["PASSWORD", "SECRET", "TOKEN", "KEY"].iter().any(|word| name.contains(word))
}

/// A value that is never shown: not in logs, not in errors, not by `{:?}`.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// Refuses a file setting whose file is not there, before a library says so less clearly.
///
/// # Errors
/// When there is no such file.
pub fn check_file(variable: &str, path: Option<&Path>) -> Result<(), ConfigError> {
    match path {
        Some(path) if !path.is_file() => {
            Err(ConfigError::new(variable, format!("there is no file '{}'", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Section {
        #[serde(default = "twelve")]
        rows_max: u32,
        owner: String,
        bind: Option<SocketAddr>,
    }

    fn twelve() -> u32 {
        12
    }

    fn section(pairs: &[(&str, &str)]) -> Result<Section, ConfigError> {
        Env::from_pairs(pairs.iter().copied()).section("RELAY_")
    }

    #[test]
    fn a_section_takes_its_defaults_and_ignores_other_prefixes() {
        let read = section(&[("RELAY_OWNER", "a"), ("OWNER", "b"), ("API_OWNER", "c"), ("RELAY_ROWS_MAX", "")]);
        assert_eq!(read, Ok(Section { rows_max: 12, owner: "a".into(), bind: None }));
    }

    #[test]
    fn a_missing_variable_is_named_whole() {
        let error = section(&[]).unwrap_err().to_string();
        assert_eq!(error, "RELAY_OWNER: is not set and has no default");
    }

    #[test]
    fn a_bad_number_is_named_whole_with_its_value() {
        let error = section(&[("RELAY_OWNER", "a"), ("RELAY_ROWS_MAX", "many")]).unwrap_err().to_string();
        assert_eq!(error, "RELAY_ROWS_MAX: invalid digit found in string ('many' given)");
    }

    #[test]
    fn a_bad_value_that_envy_does_not_name_is_named_all_the_same() {
        let error = section(&[("RELAY_OWNER", "a"), ("RELAY_BIND", "here")]).unwrap_err();
        assert_eq!(error.variable, "RELAY_BIND");
        assert!(error.problem.contains("'here' given"), "{error}");
    }

    #[test]
    fn a_secret_is_read_from_the_file_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).display().to_string()
        };
        let (file, empty) = (write("file", " p w\n"), write("empty", "\n"));
        let load = |pairs: &[(&str, &str)]| Env::from_pairs(pairs.iter().copied()).with_secrets_of_files();
        let read = load(&[("DB_PASSWORD_FILE", &file), ("API_JWT_JWKS_FILE", "keys")]).unwrap();
        assert_eq!(read.var("DB_PASSWORD"), Some(" p w"));
        assert_eq!(read.var("API_JWT_JWKS_FILE"), Some("keys"), "which is no secret");
        for (pairs, said) in [
            (&[("DB_PASSWORD_FILE", file.as_str()), ("DB_PASSWORD", "hunter2")][..], "is set beside DB_PASSWORD"),
            (&[("DB_PASSWORD_FILE", &empty)], "is empty"),
            (&[("DB_PASSWORD_FILE", "/nowhere")], "'/nowhere' cannot be read"),
        ] {
            let error = load(pairs).unwrap_err();
            assert_eq!(error.variable, "DB_PASSWORD_FILE");
            assert!(error.problem.contains(said) && !error.problem.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(..)");
    }

    #[test]
    fn variables_that_are_not_text_or_not_ours() {
        use std::os::unix::ffi::OsStringExt as _;
        let of = |name: &str, value: &[u8]| {
            own_variables(std::iter::once((OsString::from(name), OsString::from_vec(value.to_vec()))))
        };
        assert_eq!(of("RELAY_OWNER", b"\xff").unwrap_err().to_string(), "RELAY_OWNER: is not UTF-8");
        assert_eq!(of("LESSOPEN", b"\xff"), Ok(HashMap::new()));
        // Of a Kubernetes service that is called `db`.
        assert_eq!(of("DB_PORT", b"tcp://10.0.0.1:5432"), Ok(HashMap::new()));
        assert_eq!(of("DB_PORT", b"5433").map(|read| read.len()), Ok(1));
    }

    #[test]
    fn a_bad_bind_address_is_named() {
        let error = Env::from_pairs([("ADMIN_BIND", "localhost")]).admin_bind("127.0.0.1:9090").unwrap_err();
        assert!(error.to_string().starts_with("ADMIN_BIND: 'localhost' is not a host and port"), "{error}");
    }
}
