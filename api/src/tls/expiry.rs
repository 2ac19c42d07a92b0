//! When a certificate ends: the one field that we need of it. RFC 5280, section 4.1.

use chrono::{DateTime, NaiveDateTime, Utc};

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Tag of the version, which version 1 leaves out.
const VERSION: u8 = 0xa0;

/// The `notAfter` of a certificate in DER; none if it is not where it should be.
pub(super) fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let (certificate, _) = Element::split(certificate)?;
    let (to_be_signed, _) = Element::split(certificate.contents)?;
    let (first, mut rest) = Element::split(to_be_signed.contents)?;
    if first.tag == VERSION {
        // The serial number.
        (_, rest) = Element::split(rest)?;
    }
    let (_algorithm, rest) = Element::split(rest)?;
    let (_issuer, rest) = Element::split(rest)?;
    let (validity, _) = Element::split(rest)?;
    let (_not_before, rest) = Element::split(validity.contents)?;
    let (not_after, _) = Element::split(rest)?;
    time(&not_after)
}

fn time(element: &Element) -> Option<DateTime<Utc>> {
    let text = std::str::from_utf8(element.contents).ok()?;
    let text = match element.tag {
        // Two digits for the year, of 1950 to 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    Some(NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?.and_utc())
}

/// An element of DER: a tag of one byte, a length, and so many bytes.
struct Element<'a> {
    tag: u8,
    contents: &'a [u8],
}

impl<'a> Element<'a> {
    /// The first element, and what comes behind it.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&tag, rest) = bytes.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            // The length of the length. More than four bytes are no certificate's.
            let (digits, rest) =
                rest.split_at_checked(usize::from(first & 0x7f)).filter(|(digits, _)| digits.len() <= 4)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        Some((Self { tag, contents }, rest))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 3, 4);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_of_its_forms() {
        for (year, expected) in [(2027, "2027-03-04T00:00:00+00:00"), (2051, "2051-03-04T00:00:00+00:00")] {
            assert_eq!(not_after(&certificate(year)).expect("it ends").to_rfc3339(), expected);
        }
    }

    #[test]
    fn what_is_cut_off_has_no_end() {
        let whole = certificate(2027);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length} bytes");
        }
    }
}
