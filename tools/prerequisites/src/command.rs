//! What each command of `outrider` needs.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use crate::Program;
use crate::program::postgres_folders;

/// What `cargo dev` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whether what is missing is to be installed without a question.
    pub install: bool,
    /// What `outrider` gets.
    pub arguments: Vec<OsString>,
}

impl Request {
    /// Takes our own flag out of a command line; what follows two dashes is not for us.
    #[must_use]
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let ours = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        let mut request = Self { install: false, arguments: Vec::with_capacity(arguments.len()) };
        for (place, argument) in arguments.into_iter().enumerate() {
            if place < ours && argument == "--install" {
                request.install = true;
            } else {
                request.arguments.push(argument);
            }
        }
        request
    }

    fn has(&self, flag: &str) -> bool {
        self.arguments.iter().any(|argument| argument == flag)
    }

    /// What this needs in a checkout at `root`: programs that it cannot do without, and those without which some of it is left out.
    #[must_use]
    pub fn needs(&self, root: &Path, given: impl Fn(&str) -> bool) -> Needs {
        let mut needs = Needs { required: vec![Program::Compiler], optional: Vec::new() };
        if self.has("--help") || self.has("-h") {
            return needs;
        }
        let cache = Cache(root.join(".dev"));
        let fetches_kafka = || !cache.has("kafka-");
        let fetches_postgres = || !given("DATABASE_URL") && !cache.has("postgres-") && !has_postgres();
        let mut servers = || {
            let own_kafka = !given("KAFKA_BROKERS");
            needs.required.extend(own_kafka.then_some(Program::Java));
            needs.required.extend((own_kafka && fetches_kafka() || fetches_postgres()).then_some(Program::Maven));
        };
        match self.arguments.first().and_then(|command| command.to_str()) {
            Some("up") => {
                servers();
                if self.has("--jaeger") && !given("OTEL_EXPORTER_OTLP_ENDPOINT") && !cache.has("jaeger-") {
                    needs.required.push(Program::Go);
                }
            }
            Some("test") => {
                servers();
                needs.optional.extend([
                    Program::Prometheus,
                    Program::PostgresPrograms,
                    Program::PgBouncer,
                    Program::Go,
                    Program::Node,
                ]);
                if self.has("--slow") {
                    // Clients of the API are made by all kinds of generators.
                    needs.optional.extend([Program::Python, Program::JavaCompiler]);
                }
            }
            Some("bench") => {
                servers();
                if self.has("api") {
                    needs.required.push(Program::PostgresPrograms);
                }
            }
            Some("conformance") => {
                needs.required.extend(fetches_postgres().then_some(Program::Maven));
                needs.required.push(Program::Python);
            }
            Some("prepare") => needs.required.extend(fetches_postgres().then_some(Program::Maven)),
            _ => {}
        }
        needs
    }
}

/// Programs that a command needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// It cannot do without these.
    pub required: Vec<Program>,
    /// Without these, some of it is left out and named.
    pub optional: Vec<Program>,
}

/// `.dev`, which keeps what was fetched or built once.
struct Cache(std::path::PathBuf);

impl Cache {
    fn has(&self, prefix: &str) -> bool {
        let starts = |name: &OsStr| name.to_string_lossy().starts_with(prefix);
        fs::read_dir(&self.0).is_ok_and(|entries| entries.flatten().any(|entry| starts(&entry.file_name())))
    }
}

/// Whether the system has a server; whether it is new enough is found out when it is started.
fn has_postgres() -> bool {
    postgres_folders().any(|folder| folder.join("initdb").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Request {
        Request::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn our_flag_is_taken_out_wherever_it_stands_before_two_dashes() {
        let taken = request("up --install --no-stay");
        assert_eq!(taken, Request { install: true, arguments: request("up --no-stay").arguments });
        let left = request("test -- --install");
        assert_eq!((left.install, left.arguments.len()), (false, 3));
    }

    #[test]
    fn a_new_checkout_needs_maven_and_one_that_has_all_does_not() {
        let root = std::env::temp_dir().join(format!("prerequisites-{}", std::process::id()));
        let none = |_: &str| false;
        let needs = request("up").needs(&root, none);
        assert_eq!(needs.required, [Program::Compiler, Program::Java, Program::Maven]);
        for folder in ["kafka-4.3.0", "postgres-17.6.0"] {
            fs::create_dir_all(root.join(".dev").join(folder)).unwrap();
        }
        assert_eq!(request("up").needs(&root, none).required, [Program::Compiler, Program::Java]);
        assert_eq!(request("up --jaeger").needs(&root, none).required, [Program::Compiler, Program::Java, Program::Go]);
        let given = |name: &str| name == "OTEL_EXPORTER_OTLP_ENDPOINT";
        assert_eq!(request("up --jaeger").needs(&root, given).required, [Program::Compiler, Program::Java]);
        let given = |name: &str| name == "KAFKA_BROKERS";
        assert_eq!(request("up").needs(&root, given).required, [Program::Compiler]);
        assert_eq!(request("test --help").needs(&root, none).required, [Program::Compiler]);
        assert!(request("test").needs(&root, none).optional.contains(&Program::Go));
        // The clients of the replaced system need it, whether Jaeger is built or not.
        fs::create_dir(root.join(".dev/jaeger-1.76.0")).unwrap();
        assert!(request("test").needs(&root, none).optional.contains(&Program::Go));
        let slow = |line: &str| request(line).needs(&root, none).optional.contains(&Program::JavaCompiler);
        assert!(slow("test --slow") && !slow("test"));
        fs::remove_dir_all(&root).unwrap();
    }
}
