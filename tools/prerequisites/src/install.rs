//! How the system's package manager installs what is missing.

use std::process::{Command, Stdio};

use crate::Program;

/// A package manager that is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// Fedora, RHEL.
    Dnf,
    /// macOS.
    Brew,
}

impl Manager {
    /// The one that is here, if we know it.
    #[must_use]
    pub fn find() -> Option<Self> {
        [Self::Apt, Self::Dnf, Self::Brew].into_iter().find(|manager| {
            let output = Command::new(manager.program()).arg("--version").stdin(Stdio::null()).output();
            output.is_ok_and(|output| output.status.success())
        })
    }

    fn program(self) -> &'static str {
        match self {
            Self::Apt => "apt-get",
            Self::Dnf => "dnf",
            Self::Brew => "brew",
        }
    }

    /// The packages that bring a program. For apt each is a dependency as in a control file: it may have alternatives, since no release of
    /// Debian and Ubuntu has the Java of all others.
    fn packages(self, program: Program) -> &'static [&'static str] {
        match (self, program) {
            (Self::Apt, Program::Compiler) => &["build-essential"],
            (Self::Apt, Program::Java) => {
                &["openjdk-17-jre-headless | openjdk-21-jre-headless | openjdk-25-jre-headless"]
            }
            (Self::Apt | Self::Dnf | Self::Brew, Program::Maven) => &["maven"],
            (Self::Apt | Self::Dnf | Self::Brew, Program::PgBouncer) => &["pgbouncer"],
            (Self::Apt, Program::Go) => &["golang-go"],
            (Self::Apt | Self::Brew, Program::Prometheus) => &["prometheus"],
            (Self::Apt, Program::PostgresPrograms) => &["postgresql"],
            (Self::Apt | Self::Dnf, Program::Python) => &["python3-pip"],
            (Self::Apt, Program::Node) => &["nodejs", "npm"],
            (Self::Apt, Program::JavaCompiler) => {
                &["openjdk-17-jdk-headless | openjdk-21-jdk-headless | openjdk-25-jdk-headless"]
            }
            (Self::Dnf, Program::Compiler) => &["gcc", "gcc-c++", "make"],
            (Self::Dnf, Program::Java) => &["java-21-openjdk-headless"],
            (Self::Dnf, Program::Go) => &["golang"],
            (Self::Dnf, Program::Prometheus) => &["golang-github-prometheus"],
            (Self::Dnf, Program::Node) => &["nodejs", "nodejs-npm"],
            (Self::Dnf, Program::JavaCompiler) => &["java-21-openjdk-devel"],
            (Self::Dnf, Program::PostgresPrograms) => {
                &["postgresql-server", "postgresql-contrib", "postgresql-upgrade"]
            }
            // The compilers come with Apple's command line tools, which brew needs itself.
            (Self::Brew, Program::Compiler) => &["make"],
            (Self::Brew, Program::Java | Program::JavaCompiler) => &["openjdk@21"],
            (Self::Brew, Program::Node) => &["node"],
            (Self::Brew, Program::Go) => &["go"],
            (Self::Brew, Program::PostgresPrograms) => &["postgresql@17"],
            (Self::Brew, Program::Python) => &["python"],
        }
    }

    /// The command lines that install all of these, one after the other. `elevated` if they are run by root.
    #[must_use]
    pub fn commands(self, programs: &[Program], elevated: bool) -> Vec<Vec<String>> {
        let packages: Vec<&str> = programs.iter().flat_map(|program| self.packages(*program)).copied().collect();
        let wanted = packages.join(", ");
        let (lines, as_root) = match self {
            Self::Apt => {
                let satisfy = ["apt-get", "satisfy", "--quiet", "--yes", "--no-install-recommends", &wanted];
                (vec![vec!["apt-get", "update", "--quiet"], satisfy.to_vec()], true)
            }
            Self::Dnf => (vec![[vec!["dnf", "install", "--assumeyes"], packages].concat()], true),
            Self::Brew => (vec![[vec!["brew", "install"], packages].concat()], false),
        };
        let sudo = (as_root && !elevated).then_some("sudo");
        lines.into_iter().map(|line| sudo.into_iter().chain(line).map(str::to_owned).collect()).collect()
    }
}

/// A command line as it can be pasted into a shell.
#[must_use]
pub fn pasteable(line: &[String]) -> String {
    let word = |word: &String| if word.contains([' ', '|']) { format!("'{word}'") } else { word.clone() };
    line.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Runs these command lines one after the other, with our own output.
///
/// # Errors
/// Says which one failed.
pub fn run(lines: &[Vec<String>]) -> Result<(), String> {
    for line in lines {
        let Some((program, arguments)) = line.split_first() else { continue };
        eprintln!("$ {}", pasteable(line));
        // Debian's packages would ask questions, and wait for answers.
        let status = Command::new(program).args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("`{}` failed ({status})", pasteable(line))),
            Err(error) => return Err(format!("cannot run {program}: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_is_asked_for_all_at_once_after_an_update() {
        let lines = Manager::Apt.commands(&[Program::Compiler, Program::Java], false);
        let lines: Vec<String> = lines.iter().map(|line| pasteable(line)).collect();
        assert_eq!(
            lines,
            [
                "sudo apt-get update --quiet",
                "sudo apt-get satisfy --quiet --yes --no-install-recommends \
             'build-essential, openjdk-17-jre-headless | openjdk-21-jre-headless | openjdk-25-jre-headless'",
            ]
        );
    }

    #[test]
    fn each_manager_has_a_package_for_each_program() {
        for manager in [Manager::Apt, Manager::Dnf, Manager::Brew] {
            for program in Program::ALL {
                assert!(!manager.packages(program).is_empty(), "{manager:?} {program:?}");
            }
        }
        assert_eq!(Manager::Brew.commands(&[Program::Go], false), [["brew", "install", "go"]]);
        assert_eq!(Manager::Dnf.commands(&[Program::Go], false), [["sudo", "dnf", "install", "--assumeyes", "golang"]]);
        assert_eq!(Manager::Dnf.commands(&[Program::Go], true), [["dnf", "install", "--assumeyes", "golang"]]);
    }
}
