//! `cargo dev` on a machine that lacks something.

use std::env;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

/// A folder with nothing but these programs, as the only one on the path.
struct Machine(PathBuf);

impl Machine {
    fn with(programs: &[&str], name: &str) -> Self {
        let folder = env::temp_dir().join(format!("prerequisites-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for program in programs {
            let path = env::var_os("PATH").expect("a path");
            let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|place| place.is_file());
            symlink(found.unwrap_or_else(|| panic!("{program} is here")), folder.join(program)).expect("a link");
        }
        Self(folder)
    }

    /// What `cargo dev` prints about these arguments; it must fail.
    fn refuses(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prerequisites"));
        // A folder in which nothing was fetched yet, three levels deep as our package is.
        let package = self.0.join("checkout/tools/prerequisites");
        std::fs::create_dir_all(&package).expect("a folder");
        command.args(arguments).env("PATH", &self.0).env("CARGO_MANIFEST_DIR", package);
        for name in ["JAVA_HOME", "CI", "KAFKA_BROKERS", "DATABASE_URL"] {
            command.env_remove(name);
        }
        let output = command.output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn all_that_is_missing_is_named_at_once_before_anything_is_built() {
    let machine = Machine::with(&["cc", "make", "id"], "all");
    let text = machine.refuses(&["up", "--jaeger"]);
    for expected in
        ["C and C++ compilers, make", "(no c++)", "Java 17 or newer", "runs Kafka", "Maven", "Go 1.16 or newer"]
    {
        assert!(text.contains(expected), "{expected} in:\n{text}");
    }
    assert!(!text.contains("Prometheus"), "{text}");
    assert!(text.contains("neither apt-get nor dnf nor brew is here"), "{text}");
}

#[test]
fn nothing_is_installed_without_being_asked_for() {
    // Whatever package manager this machine has, if any.
    let managers: Vec<&str> = ["apt-get", "dnf", "brew"].into_iter().filter(|name| has(name)).collect();
    let machine = Machine::with(&[&managers[..], &["cc", "c++", "make", "id"]].concat(), "asked");
    let text = machine.refuses(&["test"]);
    assert!(text.contains("Java 17 or newer") && !text.contains('$'), "{text}");
    if !managers.is_empty() {
        assert!(text.contains("to install all of it:") && text.contains("cargo dev up --install"), "{text}");
    }
    // Help needs no Java. It goes on to the build, which fails in an empty checkout.
    let text = machine.refuses(&["test", "--help"]);
    assert!(text.contains("the build failed"), "{text}");
}

#[test]
fn a_build_that_fails_on_a_full_disk_says_so() {
    let machine = Machine::with(&["cc", "c++", "make", "id"], "disk");
    let df = "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available Capacity Mounted on'\necho '/dev/sda 9000000 8987712 12288 99% /'\n";
    let path = machine.0.join("df");
    std::fs::write(&path, df).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("made executable");
    let text = machine.refuses(&["test", "--help"]);
    assert!(text.contains("only 12 MB are free for") && text.contains("CARGO_TARGET_DIR"), "{text}");
}

fn has(program: &str) -> bool {
    let path = env::var_os("PATH").expect("a path");
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
