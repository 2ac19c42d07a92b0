//! What a client prefers: the header `Prefer`, RFC 7240.

use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Names the preferences that were honoured.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How long the client would wait for its order, and what of that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// At most `secs_max` of what was asked for.
    pub patience: Duration,
    /// For [`PREFERENCE_APPLIED`]: says how long, if that is less than was asked for.
    pub applied: HeaderValue,
}

/// The preference `wait`, in seconds. Of several, the first counts; one that cannot be read is passed over, as preferences are.
#[must_use]
pub fn wait(headers: &HeaderMap, secs_max: u64) -> Option<Wait> {
    let values = headers.get_all(PREFER).filter_map(|value| value.to_str().ok());
    let asked = values.flat_map(|value| value.split(',')).find_map(|preference| {
        // Parameters of a preference follow a semicolon; wait has none.
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    let digits = !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return None;
    }
    // More digits than a number holds are more than any limit.
    let asked = asked.parse().unwrap_or(u64::MAX);
    let secs = asked.min(secs_max);
    if secs == 0 {
        return None;
    }
    let applied = if secs < asked {
        HeaderValue::from_str(&format!("wait={secs}")).ok()?
    } else {
        HeaderValue::from_static("wait")
    };
    Some(Wait { patience: Duration::from_secs(secs), applied })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Option<(u64, String)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PREFER, HeaderValue::from_static(value));
        }
        let wait = wait(&headers, 30)?;
        Some((wait.patience.as_secs(), wait.applied.to_str().expect("text").to_owned()))
    }

    #[test]
    fn the_first_wait_counts_up_to_the_limit() {
        for values in [&["wait=5"][..], &["return=minimal, wait = \"5\""], &["respond-async", "Wait=5; x=1, wait=9"]] {
            assert_eq!(of(values), Some((5, "wait".to_owned())), "{values:?}");
        }
        for value in ["wait=31", "wait=99999999999999999999999"] {
            assert_eq!(of(&[value]), Some((30, "wait=30".to_owned())));
        }
        for value in ["", "wait", "wait=", "wait=-1", "wait=1.5", "wait=0", "await=5", "return=minimal"] {
            assert_eq!(of(&[value]), None, "{value}");
        }
    }
}
