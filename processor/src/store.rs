//! All SQL of the processor itself: positions in [`offsets`], the inbox in [`inbox`], blocked keys in [`blocked`], what waits in
//! [`letters`], what operators ask for in [`requests`]. That of the order handler is in [`orders`].

pub(crate) use inbox::{take_in, take_out};
pub(crate) use offsets::{Share, advance, hold, pass, positions};

pub(crate) mod blocked;
pub(crate) mod inbox;
pub(crate) mod letters;
pub(crate) mod offsets;
pub mod orders;
pub(crate) mod requests;
pub mod status;
