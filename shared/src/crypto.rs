//! The cryptography of the process.

/// Has rustls use ring, for whatever names no provider of its own: without one, a client for HTTP that is made panics, even if it only
/// speaks plain HTTP. May be asked for again.
pub fn install() {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
