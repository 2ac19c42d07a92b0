//! Orders from a seed: the same seed and the same ranges give the same orders, on every machine.

use std::ops::RangeInclusive;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::http::NewOrder;

/// Where the numbers of an order come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// Users.
    pub users: RangeInclusive<u64>,
    /// Products.
    pub products: RangeInclusive<u64>,
    /// Quantities.
    pub quantities: RangeInclusive<u64>,
}

/// An endless row of orders.
#[derive(Debug, Clone)]
pub struct Workload {
    ranges: Ranges,
    rng: ChaCha8Rng,
}

impl Workload {
    /// The row that belongs to a seed. No range may be empty.
    #[must_use]
    pub fn new(ranges: Ranges, seed: u64) -> Self {
        Self { ranges, rng: ChaCha8Rng::seed_from_u64(seed) }
    }
}

impl Iterator for Workload {
    type Item = NewOrder;

    fn next(&mut self) -> Option<NewOrder> {
        Some(NewOrder {
            user_id: self.rng.random_range(self.ranges.users.clone()),
            product_id: self.rng.random_range(self.ranges.products.clone()),
            quantity: self.rng.random_range(self.ranges.quantities.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(seed: u64) -> Vec<NewOrder> {
        let ranges = Ranges { users: 1..=1000, products: 1..=100, quantities: 1..=10 };
        Workload::new(ranges, seed).take(1000).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_orders() {
        assert_eq!(orders(7), orders(7));
        assert_ne!(orders(7), orders(8));
    }

    #[test]
    fn a_seed_keeps_its_orders_from_build_to_build() {
        assert_eq!(
            orders(7)[..2],
            [
                NewOrder { user_id: 158, product_id: 17, quantity: 8 },
                NewOrder { user_id: 727, product_id: 61, quantity: 4 },
            ]
        );
    }

    #[test]
    fn the_numbers_fill_their_ranges() {
        let orders = orders(1);
        let quantities = || orders.iter().map(|order| order.quantity);
        assert_eq!(quantities().min(), Some(1));
        assert_eq!(quantities().max(), Some(10));
        assert!(orders.iter().all(|order| (1..=1000).contains(&order.user_id)));
        assert!(orders.iter().all(|order| (1..=100).contains(&order.product_id)));
    }

    #[test]
    fn a_range_may_hold_one_number() {
        let ranges = Ranges { users: 5..=5, products: u64::MAX..=u64::MAX, quantities: 1..=1 };
        let order = NewOrder { user_id: 5, product_id: u64::MAX, quantity: 1 };
        assert_eq!(Workload::new(ranges, 0).next(), Some(order));
    }
}
