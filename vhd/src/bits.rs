//! Sector bitmaps: one bit per sector, most significant bit first.

/// Whether the bit is set; bits beyond the map are not.
pub fn get(map: &[u8], index: u64) -> bool {
    map.get((index / 8) as usize).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0)
}

/// Sets `count` bits from `start`; bits beyond the map are ignored.
pub fn set(map: &mut [u8], start: u64, count: u64) {
    let mut index = start;
    let end = start.saturating_add(count).min(map.len() as u64 * 8);
    while index < end {
        let byte = (index / 8) as usize;
        if index.is_multiple_of(8) && end - index >= 8 {
            map[byte] = 0xff;
            index += 8;
        } else {
            map[byte] |= 0x80 >> (index % 8);
            index += 1;
        }
    }
}

/// How many bits from `start` (and below `limit`) have the same value as the one at `start`.
pub fn run(map: &[u8], start: u64, limit: u64) -> (bool, u64) {
    let value = get(map, start);
    let whole = if value { 0xff } else { 0x00 };
    let mut index = start;
    while index < limit {
        if index.is_multiple_of(8)
            && limit - index >= 8
            && map.get((index / 8) as usize) == Some(&whole)
        {
            index += 8;
        } else if get(map, index) == value {
            index += 1;
        } else {
            break;
        }
    }
    (value, index - start)
}

/// Whether the first `count` bits are all set.
pub fn all(map: &[u8], count: u64) -> bool {
    run(map, 0, count) == (true, count)
}

#[cfg(test)]
mod tests {
    use super::{all, get, run, set};

    #[test]
    fn bits_are_counted_from_the_most_significant_one() {
        let mut map = [0_u8; 3];
        set(&mut map, 0, 1);
        set(&mut map, 7, 10);
        assert_eq!(map, [0x81, 0xff, 0x80]);
        assert!(get(&map, 16) && !get(&map, 17) && !get(&map, 24));
    }

    #[test]
    fn runs_end_at_the_first_different_bit_or_the_limit() {
        let map = [0xff, 0xf0, 0x00];
        assert_eq!(run(&map, 0, 24), (true, 12));
        assert_eq!(run(&map, 12, 24), (false, 12));
        assert_eq!(run(&map, 3, 9), (true, 6));
        assert!(all(&map, 12) && !all(&map, 13));
    }
}
