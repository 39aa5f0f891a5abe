//! Choices that differ from seed to seed and are the same for the same seed.

/// SplitMix64: tiny, and good enough to spread load.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number of the sequence.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The index of one of `weights`, each as likely as it is heavy; `None` when there are none.
    /// A weight of 0 counts as 1, so that everything can be chosen.
    pub fn weighted(&mut self, weights: impl Iterator<Item = u64> + Clone) -> Option<usize> {
        let total: u128 = weights.clone().map(|weight| u128::from(weight.max(1))).sum();
        if total == 0 {
            return None;
        }
        let wide = (u128::from(self.draw()) << 64) | u128::from(self.draw());
        let mut left = wide % total;
        for (index, weight) in weights.enumerate() {
            let weight = u128::from(weight.max(1));
            if left < weight {
                return Some(index);
            }
            left -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavier_is_chosen_more_often_and_nothing_is_never_chosen() {
        let mut random = Random::new(7);
        let mut hits = [0u32; 3];
        for _ in 0..10_000 {
            hits[random.weighted([0, 100, 300].into_iter()).unwrap()] += 1;
        }
        assert!(hits[0] > 0 && hits[0] < 200, "{hits:?}");
        assert!(hits[2] > 2 * hits[1], "{hits:?}");
        assert_eq!(random.weighted([].into_iter()), None);
    }
}
