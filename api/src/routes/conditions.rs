//! Conditional requests: an order's `ETag` is its version. RFC 9110, sections 8.8.3 and 13.1.

use actix_web::http::header::{self, HeaderMap, HeaderName};

/// The `ETag` of an order at this version.
pub fn etag(version: i64) -> String {
    format!("\"{version}\"")
}

/// Whether `If-None-Match` names this version: then the caller has what it asks for. Compared weakly, as for reads.
pub fn has_already(headers: &HeaderMap, version: i64) -> bool {
    tags(headers, header::IF_NONE_MATCH)
        .is_some_and(|mut tags| tags.any(|tag| tag == "*" || self::version(tag) == Some(version)))
}

/// The versions that `If-Match` names: none if any will do. A tag that is none of ours is of no version.
///
/// `If-Match` takes strong tags only, and ours are. Proxies that compress answers change them all the same, nginx to `W/"2"` and Apache to
/// `"2-gzip"`; the client has no other to send. The version in it is what we compare, so these are read as the tags that they were.
pub fn expected(headers: &HeaderMap) -> Option<Vec<i64>> {
    let tags: Vec<&str> = tags(headers, header::IF_MATCH)?.collect();
    if tags.contains(&"*") {
        return None;
    }
    Some(tags.iter().filter_map(|tag| version(tag)).collect())
}

/// The version of a tag of ours, also one that a proxy has changed.
fn version(tag: &str) -> Option<i64> {
    let tag = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
    ["-gzip", "-br", "-zstd", "-deflate"].iter().find_map(|suffix| tag.strip_suffix(suffix)).unwrap_or(tag).parse().ok()
}

/// The members of a list header, if it is there. No `ETag` of ours holds a comma.
fn tags(headers: &HeaderMap, name: HeaderName) -> Option<impl Iterator<Item = &str>> {
    headers.contains_key(&name).then(|| {
        let values = headers.get_all(name).filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim)
    })
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_read_is_answered_briefly_when_one_of_the_tags_is_the_orders() {
        for values in [&["\"2\""][..], &["\"1\", W/\"2\""], &["\"1\"", "\"2\""], &["*"]] {
            assert!(has_already(&headers(&header::IF_NONE_MATCH, values), 2), "{values:?}");
        }
        for values in [&["\"1\""][..], &["2"], &[""], &[]] {
            assert!(!has_already(&headers(&header::IF_NONE_MATCH, values), 2), "{values:?}");
        }
    }

    #[test]
    fn a_change_goes_by_the_versions_that_are_named() {
        let of = |values: &[&'static str]| expected(&headers(&header::IF_MATCH, values));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["*"]), None);
        assert_eq!(of(&["\"1\", \"3\"", "\"7\""]), Some(vec![1, 3, 7]));
        assert_eq!(of(&["W/\"1\", \"2-gzip\", W/\"3-br\""]), Some(vec![1, 2, 3]), "changed by proxies");
        assert_eq!(
            of(&["1, \"x\", w/\"1\", \"1-\", \"-gzip\", \"1-gzip-gzip\", W/1"]),
            Some(vec![]),
            "none of these is a version"
        );
    }
}
