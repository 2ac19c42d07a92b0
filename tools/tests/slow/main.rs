//! Tests that take long: `cargo dev test --slow` runs them, and nothing else does.

#[path = "../harness/harness.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod harness;

mod clients;
mod fresh_starts;
mod http_clients;
mod pooler;
mod quota;
mod soak;

use std::io::Write;

/// Says how a long test goes, past the test runner, which would keep it until the end.
fn tell(line: &str) {
    // With standard error gone, there is no one to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A whole number from the environment.
fn setting(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no whole number: {text}")))
}
