//! Room on the disk. A linker that finds none dies of a bus error, which tells nobody what to do.

use std::path::Path;
use std::process::Command;

/// What the first build writes, and some more, in MB.
pub const FIRST_BUILD_MB: u64 = 2_500;

/// With less than this, in MB, a build has probably failed for want of room.
pub const FULL_MB: u64 = 300;

/// How much is free for whoever writes to `folder`, in MB; none if `df` cannot tell.
#[must_use]
pub fn free_mb(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    free(&String::from_utf8_lossy(&output.stdout))
}

/// From what `df -Pk` prints: a line with names, and one with numbers, of which the fourth are the free KiB.
fn free(text: &str) -> Option<u64> {
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kib / 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_room_is_read_from_what_df_prints() {
        let text =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 264212480 89743088 5919284 94% /\n";
        assert_eq!(free(text), Some(5_780));
        assert_eq!([free(""), free("df: no such folder")], [None, None]);
    }
}
