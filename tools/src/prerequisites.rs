//! What must be on the machine already: Java to run Kafka, Maven to fetch it, a C compiler to build the client, Go to build Jaeger.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

/// The oldest Java that Kafka runs on.
const JAVA_MAJOR_MIN: u32 = 17;

/// A Java that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Java {
    /// The program.
    pub program: PathBuf,
    /// Its version, such as `17.0.15`.
    pub version: String,
}

/// Finds Java, first where `JAVA_HOME` says.
pub fn java() -> Result<Java> {
    const INSTALL: &str = "Debian: apt install openjdk-17-jre-headless, macOS: brew install openjdk@17 && export JAVA_HOME=$(brew --prefix openjdk@17)";
    let program = std::env::var_os("JAVA_HOME")
        .map(|home| PathBuf::from(home).join("bin/java"))
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from("java"));
    // macOS has a `java` without a Java behind it, which says so and fails.
    let output = Command::new(&program).arg("-version").output();
    let version = output
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| java_version(&String::from_utf8_lossy(&output.stderr)));
    match version {
        None => bail!("Java {JAVA_MAJOR_MIN} or newer is missing (Kafka runs on it); {INSTALL}"),
        Some(version) if java_major(&version) < Some(JAVA_MAJOR_MIN) => {
            bail!("Java {version} is too old, Kafka needs {JAVA_MAJOR_MIN} or newer; {INSTALL}")
        }
        Some(version) => Ok(Java { program, version }),
    }
}

/// Makes sure that Maven is there.
pub fn maven() -> Result<()> {
    if runs("mvn", "-v") {
        return Ok(());
    }
    bail!("Maven is missing (it fetches Kafka, once); Debian: apt install maven, macOS: brew install maven")
}

/// Makes sure that a C compiler and make are there.
pub fn c_compiler() -> Result<()> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    if runs(&compiler, "--version") && runs("make", "--version") {
        return Ok(());
    }
    bail!(
        "a C compiler or make is missing (the Kafka client is built with them); Debian: apt install build-essential, macOS: xcode-select --install"
    )
}

/// Makes sure that Go is there, and new enough.
pub fn go() -> Result<()> {
    const INSTALL: &str = "https://go.dev/doc/install, or macOS: brew install go";
    let output = Command::new("go").args(["env", "GOVERSION"]).output();
    let version = output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match version.as_deref().and_then(go_minor) {
        None => bail!("Go is missing (Jaeger is built with it, once); {INSTALL}"),
        // An older one from 1.21 on fetches what go.mod asks for by itself.
        Some(minor) if minor < 21 => bail!("Go 1.{minor} is too old, Jaeger needs 1.24 or newer; {INSTALL}"),
        Some(_) => Ok(()),
    }
}

/// The second number of `go1.24.6`.
fn go_minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

fn runs(program: &str, flag: &str) -> bool {
    let output = Command::new(program).arg(flag).output();
    output.is_ok_and(|output| output.status.success())
}

/// The version in what `java -version` prints, whose first line is like `openjdk version "17.0.15" 2025-04-15`.
fn java_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(" version \""))?;
    let version = line.split('"').nth(1)?;
    java_major(version).map(|_| version.to_owned())
}

/// The major version of `17.0.15`, `21-ea` or, as it was written once, `1.8.0_392`.
fn java_major(version: &str) -> Option<u32> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    match numbers.next()?.parse().ok()? {
        1 => numbers.next()?.parse().ok(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_java_is_read_from_what_it_prints() {
        let printed = |text: &str| java_version(text);
        let debian = "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6)";
        assert_eq!(printed(debian).as_deref(), Some("17.0.15"));
        let noisy = "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\njava version \"1.8.0_392\"\n";
        assert_eq!(printed(noisy).as_deref(), Some("1.8.0_392"));
        assert_eq!(printed("openjdk version \"21-ea\" 2023-09-19").as_deref(), Some("21-ea"));
        assert_eq!(printed("The operation couldn’t be completed. Unable to locate a Java Runtime."), None);
    }

    #[test]
    fn the_version_of_go_is_read_from_what_it_prints() {
        assert_eq!(
            ["go1.24.6", "go1.26", "go1.9rc1", "", "devel"].map(go_minor),
            [Some(24), Some(26), Some(9), None, None]
        );
    }

    #[test]
    fn the_major_version_of_java_is_the_second_number_of_old_ones() {
        assert_eq!(java_major("17.0.15"), Some(17));
        assert_eq!(java_major("21-ea"), Some(21));
        assert_eq!(java_major("1.8.0_392"), Some(8));
        assert_eq!(java_major("x"), None);
    }
}
