//! `/log-filter`: what is logged, and changing that while the process runs.
//!
//! Only a client on the same machine may change it (`kubectl exec` and `kubectl port-forward` are), and only one that came by an address: a
//! web page can make a browser send a request to a name of its own that leads here, and then the request names that.

use std::net::IpAddr;

use actix_web::http::header::{self, ContentType};
use actix_web::{HttpRequest, HttpResponse};

use crate::telemetry::filter;

/// What is logged, in the form of `RUST_LOG`.
pub fn read() -> HttpResponse {
    let current = filter::current().unwrap_or_default();
    plain(HttpResponse::Ok(), format!("{current}\n"))
}

/// Changes it, for a client that may.
pub fn change(request: &HttpRequest, directives: &str) -> HttpResponse {
    let is_local = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_local || !is_address(host) {
        let words = "only a client on this machine may change what is logged, by an address such as 127.0.0.1 and not by a name: \
            use kubectl exec or kubectl port-forward, or a shell on the machine\n";
        return plain(HttpResponse::Forbidden(), words.to_owned());
    }
    match filter::change(directives) {
        Ok(()) => read(),
        Err(error) => plain(
            HttpResponse::BadRequest(),
            format!(
                "{error}: send directives in the form of RUST_LOG, for example info,relay=debug, or none for what it was at the start\n"
            ),
        ),
    }
}

/// Whether a Host is an address, with or without a port, or this very machine.
fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

fn plain(mut response: actix_web::HttpResponseBuilder, body: String) -> HttpResponse {
    response.content_type(ContentType::plaintext()).body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_this_machine() {
        for good in ["127.0.0.1", "127.0.0.1:9081", "[::1]:9081", "[::1]", "10.0.0.7:9081", "localhost:9081"] {
            assert!(is_address(good), "{good}");
        }
        for bad in
            ["", "evil.example", "evil.example:9081", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
