//! Topics and brokers in trouble, under the relay as a process: nothing is settled that no broker has, and one topic's trouble is its own.

mod broken_topic;
mod first_request;
mod new_topics;
mod parked_key;
mod quota;
mod rerouted;
mod restarts;
mod start_together;
mod two_relays;
mod way_to_broker;
