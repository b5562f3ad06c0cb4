//! Whether to try something that works with some disks only.

/// One that has not worked is tried less and less often: that the answer changes is rare, and to
/// try takes time.
#[derive(Default)]
pub(super) struct Chance {
    /// Requests until it is tried again, and how many it was the last time.
    pause: u32,
    last: u32,
}

impl Chance {
    pub(super) fn is_now(&mut self) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        self.last = (self.last * 2).clamp(1, 32);
        self.pause = self.last;
        true
    }

    /// It has worked.
    pub(super) fn was_good(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::Chance;

    #[test]
    fn what_does_not_work_is_tried_less_often_and_what_works_always() {
        let mut chance = Chance::default();
        let tries = (0..200).filter(|_| chance.is_now()).count();
        assert!((5..12).contains(&tries), "{tries}");
        chance.was_good();
        for _ in 0..10 {
            assert!(chance.is_now());
            chance.was_good();
        }
    }
}
