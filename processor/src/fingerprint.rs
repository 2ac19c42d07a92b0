//! Telling failures of one kind from those of another: a hash of what is alike in them. Pure.

/// Hash of an event type and a reason, without what differs from one event to the next: numbers, ids, whatever is in quotation
/// marks. 16 hexadecimal digits, the same in every version of the processor.
pub(crate) fn fingerprint(event_type: &str, reason: &str) -> String {
    let kind =
        reason.split(|letter: char| !letter.is_alphanumeric() && letter != '-' && letter != '"' && letter != '\'');
    let mut hash = Fnv::new();
    hash.add(event_type.as_bytes());
    let (mut quoted, mut differed) = (false, false);
    for word in kind.filter(|word| !word.is_empty()) {
        let marks = word.chars().filter(|letter| matches!(letter, '"' | '\'')).count();
        let differs = quoted || marks > 0 || word.bytes().any(|byte| byte.is_ascii_digit());
        quoted ^= marks % 2 == 1;
        // However many words differ, they are one gap.
        if !(differs && differed) {
            hash.add(b" ");
            hash.add(if differs { b"#" } else { word.as_bytes() });
        }
        differed = differs;
    }
    format!("{:016x}", hash.0)
}

/// FNV-1a, 64 bits: the standard library's hashes may differ between its versions.
pub(crate) struct Fnv(pub(crate) u64);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_differ_in_numbers_ids_and_quotations_are_of_one_kind() {
        let of = |reason| fingerprint("order.created", reason);
        assert_eq!(of("the order 7 is not there"), of("the order 1234 is not there"));
        assert_eq!(of("no user 'a'"), of("no user 'b and c'"));
        assert_eq!(
            of("id 01890a5d-ac96-774b-bcce-b302099a8057 twice"),
            of("id 01890a5d-0000-774b-bcce-b302099a8057 twice")
        );
        assert_eq!(of("value too long at line 1 column 20"), of("value too long at line 3 column 7"));
    }

    #[test]
    fn other_words_or_another_type_are_another_kind() {
        assert_ne!(fingerprint("a", "no user"), fingerprint("a", "no order"));
        assert_ne!(fingerprint("a", "no user"), fingerprint("b", "no user"));
    }
}
