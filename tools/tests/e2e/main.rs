//! Tests on real processes: the stack itself, and the command line as its users call it.

mod addresses;
mod alerts;
mod api_keys;
mod audit;
mod clients;
mod cluster_rights;
mod clusters;
mod command_line;
mod compose;
mod dead_letters;
mod dependencies;
mod doctor;
mod encryption;
mod environment;
mod failover;
#[path = "../harness/harness.rs"]
mod harness;
mod lost_output;
mod metrics;
mod migrating;
mod odd_rows;
mod offsets;
mod outages;
mod parked;
mod pipeline;
mod pooler;
mod private_postgres;
mod processes;
mod producer_grants;
mod producers;
mod proxy;
mod replaced_system;
mod replay;
mod servers;
mod settings;
mod status;
mod timeline;
mod top;
mod topic_faults;
mod traces;
mod up;

use harness::{OUTRIDER, reaper, supply};
