//! What must be on the machine for `cargo dev`, found before anything else is built.
//!
//! The program of this package is what `cargo dev` runs: it looks for the programs that the command needs, installs what is missing if it is
//! asked to, builds the workspace, and hands over to `outrider`. `outrider` itself uses the library.

pub mod command;
pub mod install;
pub mod program;
pub mod version;

pub use program::Program;
