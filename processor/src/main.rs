//! The processor as a service, with the order handler.

use std::process::ExitCode;

// Records are allocated by the consumer and freed by the partitions' workers: with glibc's malloc, whose arenas are made for neither,
// that was two fifths of the processor's CPU time.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    processor::main()
}
