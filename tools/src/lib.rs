//! The `outrider` command line: for developers (`up`, `seed`, `test`, `bench`, `conformance`, `prepare`, `deny`, `notices`) and operators (`migrate`, `doctor`, `status`, `top`,
//! `parked`, `offsets`, `replay`, `dead-letters`, `api-keys`, `trace`).
//!
//! `stack` is of use to tests and benchmarks as well: it starts the pipeline's parts as child processes.

pub mod api_keys;
pub mod bench;
pub mod cli;
pub mod conformance;
pub mod connection;
pub mod console;
pub mod dead_letters;
pub mod deny;
pub mod doctor;
pub mod http;
pub mod jaeger;
pub mod migrate;
pub mod notices;
pub mod offsets;
pub mod output;
pub mod packages;
pub mod parked;
pub mod prepare;
pub mod producers;
pub mod replay;
pub mod report;
pub mod required;
pub mod seed;
pub mod signals;
pub mod stack;
pub mod status;
pub mod test;
pub mod top;
pub mod trace;
pub mod up;
pub mod workload;
pub mod workspace;
