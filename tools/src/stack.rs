//! What a pipeline stands on, started privately: Postgres, Kafka, Jaeger and the three services, each as a child process.
//!
//! `outrider up`, `outrider test`, the end-to-end tests and the benchmarks are built from these parts. Every child is
//! known to a [`reaper::Reaper`], so that none of them outlives whoever started it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::RngExt;

pub mod go;
pub mod jaeger;
pub mod kafka;
pub mod maven;
pub mod pipeline;
pub mod postgres;
pub mod process;
pub mod reaper;
pub mod service;
pub mod throwaway;

pub use jaeger::Jaeger;
pub use kafka::Kafka;
pub use pipeline::Pipeline;
pub use postgres::Postgres;
pub use process::{Launch, Process};
pub use reaper::Reaper;
pub use service::{Kind, Service};

use process::User;

/// Ports to choose from: below those that the kernel gives to outgoing connections, which could take a chosen port
/// between our look and the server's bind.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How many ports are tried before giving up.
const PORT_ATTEMPTS: u32 = 200;

/// How long a connection on loopback may take; it is accepted or refused at once unless the machine is overloaded.
const CONNECT_PATIENCE: Duration = Duration::from_millis(200);

/// Finds a port on loopback that nobody listens on.
pub fn free_port() -> Result<u16> {
    let mut rng = rand::rng();
    (0..PORT_ATTEMPTS)
        .map(|_| rng.random_range(PORTS))
        .find(|port| is_free(*port))
        .context("no free port found on 127.0.0.1")
}

/// Whether a server could listen on this port of loopback now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Where somebody listens on all addresses, some systems let us listen on this one, and he gets nothing any more.
    TcpStream::connect_timeout(&address, CONNECT_PATIENCE).is_err() && TcpListener::bind(address).is_ok()
}

/// The user to run a server as that refuses to run as root: `nobody` when we are root, else `None`, ourselves.
pub fn unprivileged_user() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let id = |flag: &str| -> Result<u32> {
        let output = Command::new("id").args([flag, "nobody"]).output().context("cannot run id")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().context("there is no user nobody to run Postgres as, which refuses to run as root")
    };
    Ok(Some(User { uid: id("-u")?, gid: id("-g")? }))
}

/// Where the folder `wanted` has to be, so that `user` can reach it: there, or, when one of the folders above it is
/// closed to others (as root's home is), at a fixed place of its own under the system's temporary files.
pub fn reachable(wanted: &Path, user: Option<User>) -> Result<PathBuf> {
    let wanted = std::path::absolute(wanted).with_context(|| format!("{} is no usable path", wanted.display()))?;
    if user.is_none() || wanted.ancestors().skip(1).all(is_open_to_all) {
        return Ok(wanted);
    }
    let name = format!("outrider-{:016x}", fnv1a(wanted.as_os_str().as_encoded_bytes()));
    let moved = Path::new("/var/tmp").join(name);
    check_ours(&moved)?;
    Ok(moved)
}

/// Fails when something of somebody else's is where everybody may put things: programs in there are run by us.
fn check_ours(folder: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::symlink_metadata(folder) {
        Ok(metadata) if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() => {
            bail!("{} is somebody else's; remove it", folder.display())
        }
        _ => Ok(()),
    }
}

fn is_open_to_all(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    // One that does not exist yet is made by us, open.
    std::fs::metadata(folder).map_or(true, |metadata| metadata.permissions().mode() & 0o001 != 0)
}

/// Makes a folder that others can pass through but not list.
pub fn make_passable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("cannot set the permissions of {}", folder.display()))
}

/// The 64-bit FNV-1a hash; it is the same in every build, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_is_then_no_longer_free() -> Result<()> {
        let port = free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        assert!(!is_free(port));
        drop(listener);
        Ok(())
    }

    #[test]
    fn the_hash_is_that_of_the_published_examples() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_folder_below_a_closed_one_is_moved_for_another_user() -> Result<()> {
        let closed = tempfile::tempdir()?;
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700))?;
        let wanted = closed.path().join("postgres");
        let other = Some(User { uid: 65_534, gid: 65_534 });
        assert_eq!(reachable(&wanted, None)?, wanted);
        let moved = reachable(&wanted, other)?;
        assert!(moved.starts_with("/var/tmp"), "{}", moved.display());
        assert_eq!(moved, reachable(&wanted, other)?);
        make_passable(closed.path())?;
        if closed.path().ancestors().all(is_open_to_all) {
            assert_eq!(reachable(&wanted, other)?, wanted);
        }
        Ok(())
    }
}
