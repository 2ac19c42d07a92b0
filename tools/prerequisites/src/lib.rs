//! What must be on the machine for `cargo dev`, found before anything else is built.
//!
//! The program of this package is what `cargo dev` runs: it looks for the programs that the command needs, installs what is missing if it is
//! asked to, builds the workspace, and hands over to `outrider`. `outrider` itself uses the library.

pub mod command;
pub mod disk;
pub mod install;
pub mod program;
pub mod version;

pub use program::Program;

/// Cargo's arguments for the one build of the workspace, whatever is asked for: a part of it would want its dependencies with other features,
/// and build them again. Without the services' default features, which are for releases.
pub const BUILD: [&str; 4] = ["build", "--workspace", "--bins", "--no-default-features"];
