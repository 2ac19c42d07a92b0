//! CPU time of processes with all of their threads and children, and their memory, from `/proc`.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;

use super::ground::Ground;
use crate::report::per_second;

/// Who works: services, Postgres and Kafka.
pub struct Processes(Vec<(&'static str, Pid)>);

impl Processes {
    /// Of services with their names.
    pub fn of(ground: &mut Ground, services: impl IntoIterator<Item = (&'static str, Pid)>) -> Result<Self> {
        let servers = [("Postgres", ground.postgres()?), ("Kafka", ground.kafka()?)];
        Ok(Self(services.into_iter().chain(servers).collect()))
    }

    /// CPU time that each has used so far.
    pub fn used(&self) -> Result<Vec<Duration>> {
        self.0.iter().map(|(_, pid)| of_tree(*pid)).collect()
    }

    /// CPU time that each has used since `before`, for each of so many events.
    pub fn shares(&self, before: &[Duration], events: u64) -> Result<CpuShares> {
        let events = per_second(events, Duration::from_secs(1));
        let spent = self.used()?.into_iter().zip(before).map(|(after, before)| after.saturating_sub(*before));
        let micros = spent.map(|spent| spent.as_secs_f64() * 1e6 / events);
        Ok(CpuShares(self.0.iter().zip(micros).map(|((name, _), micros)| (*name, micros)).collect()))
    }
}

/// CPU time in microseconds an event, of each process.
pub struct CpuShares(Vec<(&'static str, f64)>);

impl CpuShares {
    /// Of all together.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|(_, micros)| micros).sum()
    }
}

impl fmt::Display for CpuShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<String> = self.0.iter().map(|(name, micros)| format!("{name} {micros:.2}")).collect();
        f.write_str(&shares.join(", "))
    }
}

/// CPU time that a process and its children have used: of those that live, to the nanosecond; of those that have ended, to the tick.
pub fn of_tree(root: Pid) -> Result<Duration> {
    let root = root.as_raw_nonzero().get();
    let mut nanos = of_process(root)? + of_ended_children(root)?;
    for entry in fs::read_dir("/proc").context("there is no /proc: CPU time can be measured on Linux only")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that has ended since the folder was listed has no file any more.
        if fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| parent(&stat) == Some(root)) {
            nanos += of_process(pid).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// The most memory that a process has had at once so far, in bytes.
pub fn peak_memory_bytes(pid: Pid) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// The memory that a process has now, in bytes.
pub fn memory_bytes(pid: Pid) -> Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: Pid, field: &str) -> Result<u64> {
    let pid = pid.as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("Linux tells the memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("in kB")?;
    Ok(kib * 1024)
}

/// The first field of `schedstat` is the time on the CPU, for each thread.
fn of_process(pid: i32) -> Result<u64> {
    let mut nanos = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")? {
        let schedstat = fs::read_to_string(entry?.path().join("schedstat")).unwrap_or_default();
        nanos += schedstat.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanos)
}

/// What the children have used that have ended and were waited for: `cutime` and `cstime`. A server's process for one connection ends
/// with it, and what it has used must not vanish between two looks.
fn of_ended_children(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    let ticks = field::<u64>(&stat, CUTIME).zip(field::<u64>(&stat, CUTIME + 1)).context("Linux tells the time")?;
    Ok((ticks.0 + ticks.1) * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// Places in `stat` after the name, which is in brackets and may hold anything (proc(5) counts from 1, with the name as the second).
const PARENT: usize = 4 - 3;
const CUTIME: usize = 16 - 3;

fn field<T: std::str::FromStr>(stat: &str, place: usize) -> Option<T> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(place)?.parse().ok()
}

/// The parent in `stat`.
fn parent(stat: &str) -> Option<i32> {
    field(stat, PARENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_work_is_counted() -> Result<()> {
        let before = of_tree(rustix::process::getpid())?;
        let sum: u64 = (0..20_000_000_u64).map(std::hint::black_box).sum();
        assert!(sum > 0);
        assert!(of_tree(rustix::process::getpid())? > before);
        let now = memory_bytes(rustix::process::getpid())?;
        assert!(now > 1 << 20 && peak_memory_bytes(rustix::process::getpid())? >= now);
        assert_eq!(parent("12 (a (b) c) S 7 1"), Some(7));
        Ok(())
    }

    #[test]
    fn the_work_of_a_child_that_has_ended_is_counted() -> Result<()> {
        let us = rustix::process::getpid();
        let before = of_tree(us)?;
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; cut -d' ' -f14 /proc/$$/stat";
        let output = std::process::Command::new("sh").args(["-c", busy]).output()?;
        let ticks: u64 = String::from_utf8(output.stdout)?.trim().parse().context("its own time")?;
        let used = Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?;
        assert!(!used.is_zero() && of_tree(us)? >= before + used);
        Ok(())
    }
}
