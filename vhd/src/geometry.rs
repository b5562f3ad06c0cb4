//! Cylinders, heads and sectors: the size as old tools count it.

use crate::SECTOR;

/// A disk's geometry as the footer holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads per cylinder.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry of a disk of `size` bytes by the rule of the VHD specification's appendix.
    /// From 65535 x 16 x 255 sectors (127.5 GiB) on it is pinned there and says nothing.
    pub fn for_size(size: u64) -> Self {
        const MAX: u64 = 65535 * 16 * 255;
        let total = (size / SECTOR).min(MAX);
        let (heads, sectors, tracks): (u64, u64, u64);
        if total >= 65535 * 16 * 63 {
            (heads, sectors) = (16, 255);
            tracks = total / 255;
        } else {
            let by17 = total / 17;
            let wanted = by17.div_ceil(1024).max(4);
            if by17 < wanted * 1024 && wanted <= 16 {
                (heads, sectors, tracks) = (wanted, 17, by17);
            } else if total / 31 < 16 * 1024 {
                (heads, sectors, tracks) = (16, 31, total / 31);
            } else {
                (heads, sectors, tracks) = (16, 63, total / 63);
            }
        }
        // Each fits: tracks / heads is at most 65535 by the cap on the total.
        Self { cylinders: (tracks / heads) as u16, heads: heads as u8, sectors: sectors as u8 }
    }

    /// The size in bytes that this geometry stands for.
    pub fn size(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR
    }
}

#[cfg(test)]
mod tests {
    use super::Geometry;

    #[test]
    fn geometry_never_exceeds_the_size_and_is_pinned_at_the_top() {
        for mib in [2_u64, 64, 512, 1024, 32 << 10, 127 << 10, 2040 << 10] {
            assert!(Geometry::for_size(mib << 20).size() <= mib << 20);
        }
        let top = Geometry { cylinders: 65535, heads: 16, sectors: 255 };
        assert_eq!(Geometry::for_size(2040 << 30), top);
        assert_eq!(top.size(), 136_899_993_600);
    }
}
