//! A set of aggregates in a fixed amount of memory. It may take an aggregate for a member that is none, and never the other way round. Pure.

/// 8 MiB: of a million aggregates that are no members beside a million that are, ten are taken for members.
const BITS: u64 = 1 << 26;

/// Bits that an aggregate sets.
const BITS_PER_KEY: u64 = 4;

/// A Bloom filter over hashes of 64 bits.
#[derive(Debug)]
pub struct KeyFilter(Box<[u64]>);

impl Default for KeyFilter {
    fn default() -> Self {
        Self(std::iter::repeat_n(0, usize::try_from(BITS / 64).unwrap_or(0)).collect())
    }
}

impl KeyFilter {
    /// Adds the aggregate with this hash.
    pub fn insert(&mut self, key_hash: i64) {
        for (word, mask) in places(key_hash) {
            if let Some(word) = self.0.get_mut(word) {
                *word |= mask;
            }
        }
    }

    /// Whether an aggregate with this hash may have been added.
    #[must_use]
    pub fn may_contain(&self, key_hash: i64) -> bool {
        places(key_hash).all(|(word, mask)| self.0.get(word).is_none_or(|word| word & mask != 0))
    }
}

/// Word and bit of each bit of an aggregate. The hash is mixed, since its lowest bits are the lane's number.
fn places(key_hash: i64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = key_hash.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (first, step) = (mixed >> 32, (mixed & 0xffff_ffff) | 1);
    (0..BITS_PER_KEY).map(move |number| {
        let bit = first.wrapping_add(number.wrapping_mul(step)) % BITS;
        (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As good as random, like the database's.
    fn hash(number: i64) -> i64 {
        let mut state = number.cast_unsigned().wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ 0x1234_5678_9abc_def0;
        state = (state ^ (state >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)).cast_signed()
    }

    #[test]
    fn every_member_is_one_and_few_others_are() {
        let mut filter = KeyFilter::default();
        assert!(!filter.may_contain(0) && !filter.may_contain(-1));
        // Those of one lane: the lowest bits are the same.
        let of_lane = |number| hash(number) & !15 | 3;
        for number in 0..1_000_000 {
            filter.insert(of_lane(number));
        }
        assert!((0..1_000_000).all(|number| filter.may_contain(of_lane(number))));
        let others = (1_000_000..1_200_000).filter(|number| filter.may_contain(of_lane(*number))).count();
        assert!(others < 200, "{others} of 200,000 are taken for members");
    }
}
