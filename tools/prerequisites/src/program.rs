//! The programs that may be missing, and how each is looked for.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::version;

/// The oldest Java that Kafka runs on.
const JAVA_MAJOR_MIN: u32 = 17;

/// The oldest Go that can fetch the one that Jaeger asks for.
const GO_MINOR_MIN: u32 = 16;

/// The oldest Node.js that generators of TypeScript clients run on.
const NODE_MAJOR_MIN: u32 = 18;

/// The oldest Python 3 that schemathesis runs on.
const PYTHON_MINOR_MIN: u32 = 11;

/// Something that a command needs and that cargo does not bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Compilers for C and C++, and make: librdkafka is built with them.
    Compiler,
    /// The JVM that Kafka runs on.
    Java,
    /// Fetches Kafka, and Postgres where the system has none.
    Maven,
    /// Builds Jaeger.
    Go,
    /// Evaluates the alerts.
    Prometheus,
    /// `pg_upgrade`, `pg_dump` and `pgbench`, which the fetched Postgres lacks.
    PostgresPrograms,
    /// Stands between a service and its database.
    PgBouncer,
    /// Runs schemathesis.
    Python,
    /// Generates and runs TypeScript clients of the API.
    Node,
    /// Builds a Java client of the API.
    JavaCompiler,
}

/// What came of a look.
pub type Found = Result<String, String>;

impl Program {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Compiler,
        Self::Java,
        Self::Maven,
        Self::Go,
        Self::Prometheus,
        Self::PostgresPrograms,
        Self::PgBouncer,
        Self::Python,
        Self::Node,
        Self::JavaCompiler,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compiler => "C and C++ compilers, make",
            Self::Java => "Java 17 or newer",
            Self::Maven => "Maven",
            Self::Go => "Go 1.16 or newer",
            Self::Prometheus => "Prometheus",
            Self::PostgresPrograms => "pg_upgrade, pg_dump, pgbench",
            Self::PgBouncer => "PgBouncer",
            Self::Python => "Python 3.11 or newer, with pip",
            Self::Node => "Node.js 18 or newer, with npm",
            Self::JavaCompiler => "javac",
        }
    }

    /// What it is for.
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Compiler => "build the Kafka client",
            Self::Java => "runs Kafka",
            Self::Maven => "fetches Kafka and Postgres, once",
            Self::Go => "builds Jaeger, once",
            Self::Prometheus => "evaluates the alerts",
            Self::PostgresPrograms => "move a database, and are compared with",
            Self::PgBouncer => "stands between a service and its database",
            Self::Python => "runs schemathesis",
            Self::Node => "makes TypeScript clients",
            Self::JavaCompiler => "builds a Java client",
        }
    }

    /// Looks for it. The error says what is wrong with what was found, if anything was.
    ///
    /// # Errors
    /// When it is missing, or too old.
    pub fn look(self) -> Found {
        match self {
            Self::Compiler => compilers(),
            Self::Java => java().map(|java| java.version),
            Self::Maven => runs("mvn", &["-v"], "Maven"),
            Self::Go => go(),
            Self::Prometheus => ["prometheus", "promtool"].iter().try_fold(String::new(), |_, program| {
                on_path(program).map(|_| "Prometheus".to_owned()).ok_or_else(|| format!("no {program}"))
            }),
            Self::PostgresPrograms => {
                ["pg_upgrade", "pg_dump", "pgbench"].iter().try_fold(String::new(), |_, program| {
                    postgres_program(program)
                        .map(|_| "Postgres's programs".to_owned())
                        .ok_or_else(|| format!("no {program}"))
                })
            }
            Self::PgBouncer => {
                on_path("pgbouncer").map(|_| "PgBouncer".to_owned()).ok_or_else(|| "no pgbouncer".to_owned())
            }
            Self::Python => python(),
            Self::Node => node(),
            Self::JavaCompiler => runs("javac", &["-version"], "javac"),
        }
    }
}

/// A Java that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Java {
    /// The program.
    pub program: PathBuf,
    /// Its version, such as `17.0.15`.
    pub version: String,
}

/// Finds Java, first where `JAVA_HOME` says.
///
/// # Errors
/// When no Java is found, or only one that is too old.
pub fn java() -> Result<Java, String> {
    let program = env::var_os("JAVA_HOME")
        .map(|home| PathBuf::from(home).join("bin/java"))
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from("java"));
    // macOS has a `java` without a Java behind it, which says so and fails.
    let output = Command::new(&program).arg("-version").output().ok().filter(|output| output.status.success());
    match output.and_then(|output| version::java(&String::from_utf8_lossy(&output.stderr))) {
        None => Err("no java".to_owned()),
        Some(version) if version::java_major(&version) < Some(JAVA_MAJOR_MIN) => Err(format!("only Java {version}")),
        Some(version) => Ok(Java { program, version }),
    }
}

/// One of Postgres's programs: beside the system's servers, or on the path.
#[must_use]
pub fn postgres_program(name: &str) -> Option<PathBuf> {
    // The path comes last: Debian's has a script there that looks for the program itself.
    let in_folders = postgres_folders().map(|folder| folder.join(name)).find(|program| program.is_file());
    in_folders.or_else(|| on_path(name))
}

/// Folders that may hold the servers' programs, the best first.
pub fn postgres_folders() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let with_server: Vec<PathBuf> = env::split_paths(&path).filter(|folder| folder.join("postgres").exists()).collect();
    let by_config = Command::new("pg_config").arg("--bindir").output().ok();
    let by_config = by_config.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    with_server
        .into_iter()
        .chain(versioned("/usr/lib/postgresql", "", "bin"))
        .chain(versioned("/usr", "pgsql-", "bin"))
        .chain(by_config)
        .chain(versioned("/opt/homebrew/opt", "postgresql@", "bin"))
        .chain(versioned("/usr/local/opt", "postgresql@", "bin"))
        .chain(versioned("/Applications/Postgres.app/Contents/Versions", "", "bin"))
}

/// The folders `folder/PREFIX15/below`, the newest version first.
fn versioned(folder: &str, prefix: &str, below: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(below)))
        })
        .collect();
    found.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
    found.into_iter().map(|(_, path)| path).collect()
}

fn compilers() -> Found {
    let compiler = |variable: &str, default: &str| env::var(variable).unwrap_or_else(|_| default.to_owned());
    for program in [compiler("CC", "cc"), compiler("CXX", "c++"), "make".to_owned()] {
        runs(&program, &["--version"], "")?;
    }
    Ok("C and C++ compilers".to_owned())
}

fn go() -> Found {
    let output = Command::new("go").args(["env", "GOVERSION"]).output().map_err(|_| "no go".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match version::minor(&text, "go1") {
        Some(minor) if minor >= GO_MINOR_MIN => Ok(text),
        _ => Err(format!("only {text}")),
    }
}

fn python() -> Found {
    let output = Command::new("python3").arg("--version").output().map_err(|_| "no python3".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if version::minor(&text, "Python 3") < Some(PYTHON_MINOR_MIN) {
        return Err(format!("only {text}"));
    }
    runs("python3", &["-m", "pip", "--version"], "").map_err(|_| format!("{text} has no pip"))?;
    Ok(text)
}

fn node() -> Found {
    let output = Command::new("node").arg("--version").output().map_err(|_| "no node".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = text.strip_prefix('v').and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major < Some(NODE_MAJOR_MIN) {
        return Err(format!("only Node.js {text}"));
    }
    runs("npm", &["--version"], "")?;
    Ok(format!("Node.js {text}"))
}

fn runs(program: &str, arguments: &[&str], name: &str) -> Found {
    let output = Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => Ok(name.to_owned()),
        _ => Err(format!("no {program}")),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(program)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["postgresql@9", "postgresql@17", "postgresql@16", "postgresql", "mysql@8"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names = versioned(folder.path().to_str().unwrap(), "postgresql@", "bin");
        let expected = ["17", "16", "9"].map(|version| folder.path().join(format!("postgresql@{version}/bin")));
        assert_eq!(names, expected);
    }
}
