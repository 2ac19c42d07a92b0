//! Places that callers share, so that one of them never has them all.
//!
//! A caller may hold three times as many as are free. So one that is alone gets three quarters, two get three sevenths each, and there are always
//! some for one who comes new. Nothing has to be set, and nothing lies idle for callers that may never come.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// How many times as much as is free one caller may hold.
const TIMES_FREE: usize = 3;

/// So many places.
#[derive(Debug)]
pub struct Shares<K> {
    places: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// `places` that are all free.
    #[must_use]
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, held: Mutex::new(Held { total: 0, by_key: HashMap::new() }) })
    }

    /// Takes a place for `key`, unless it has its share of them.
    pub fn take(self: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut held = self.lock();
        let free = self.places.saturating_sub(held.total);
        let own = held.by_key.get(&key).copied().unwrap_or(0);
        if own >= free.saturating_mul(TIMES_FREE) {
            return None;
        }
        held.total += 1;
        held.by_key.insert(key.clone(), own + 1);
        drop(held);
        Some(Share { shares: Arc::clone(self), key })
    }

    /// How many are held.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().total
    }

    fn give_back(&self, key: &K) {
        let mut held = self.lock();
        held.total -= 1;
        if let Some(own) = held.by_key.get_mut(key) {
            *own -= 1;
            // Those who have none are forgotten, or the map would grow with all who ever came.
            if *own == 0 {
                held.by_key.remove(key);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held<K>> {
        // Every change is whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is held until this is dropped.
#[derive(Debug)]
pub struct Share<K: Clone + Eq + Hash> {
    shares: Arc<Shares<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.shares.give_back(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(shares: &Arc<Shares<&'static str>>, key: &'static str) -> Vec<Share<&'static str>> {
        std::iter::from_fn(|| shares.take(key)).collect()
    }

    #[test]
    fn one_caller_alone_gets_most_and_never_all() {
        let shares = Shares::new(100);
        let greedy = take_all(&shares, "greedy");
        assert_eq!(greedy.len(), 75);
        let other = take_all(&shares, "other");
        assert_eq!(other.len(), 19, "three times the six that are left");
        assert!(shares.take("third").is_some());
        assert!(shares.take("greedy").is_none());
        drop((greedy, other));
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().by_key.is_empty(), "nobody is remembered");
    }

    #[test]
    fn few_places_can_all_be_taken() {
        let shares = Shares::new(2);
        assert_eq!(take_all(&shares, "only").len(), 2);
        assert!(Shares::new(0).take("only").is_none());
    }
}
