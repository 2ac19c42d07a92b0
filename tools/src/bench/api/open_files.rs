//! How many files, and so connections, a process may have open.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process and its future children have `count` files open at once.
///
/// # Errors
/// When the machine does not allow that.
pub fn raise(count: usize) -> Result<()> {
    let wanted = u64::try_from(count)?;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = maximum.map(|maximum| maximum.max(wanted));
    if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_err() {
        bail!(
            "{wanted} files must be open at once, and this machine allows fewer; raise the hard limit (`ulimit -Hn`) first"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_and_never_lowered() -> Result<()> {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        raise(1)?;
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), before);
        // No machine allows that, unless it has no limit at all.
        assert!(before == u64::MAX || raise(usize::MAX / 2).is_err());
        Ok(())
    }
}
