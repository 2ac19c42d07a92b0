//! Programs that must be on the machine already, for a command that has found out that it needs one.

use anyhow::{Result, anyhow};
use prerequisites::{Program, program};

/// Makes sure that a program is there, and says which one it is.
///
/// # Errors
/// When it is missing or too old, with what installs it.
pub fn need(program: Program) -> Result<String> {
    program.look().map_err(|found| missing(program, &found))
}

/// The Java that runs Kafka.
///
/// # Errors
/// As for [`need`].
pub fn java() -> Result<program::Java> {
    program::java().map_err(|found| missing(Program::Java, &found))
}

fn missing(program: Program, found: &str) -> anyhow::Error {
    let (name, purpose) = (program.name(), program.purpose());
    anyhow!("{name} is missing ({found}): it {purpose}. `cargo dev` installs it with the flag --install")
}
