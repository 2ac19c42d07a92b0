//! The handlers that come with Outrider.

pub mod orders;
