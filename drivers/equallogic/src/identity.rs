//! Which LUN a volume is.
//!
//! The group gives each volume a NAA identifier of 16 bytes, `6090a0...`. The target's name is the
//! same bytes from behind, in pieces: of `iqn.2001-05.com.equallogic:0-8a0906-83bcb3401-16e0002fd0a46f3d-web`
//! the digits `16e0002fd0a46f3d 83bcb3401 8a0906 0` are the bytes `16 e0 00 ... a0 90 60`, and from
//! behind `6090a018 40b3bc83 3d6fa4d0 2f00e016`. That explains why public examples of such identifiers
//! begin with `6090a0` and one digit that varies: it is the last of the second piece.

/// What `scsi_id` prints for the LUN of a target; `None` where the name is not of this form.
pub fn scsi_id(iqn: &str) -> Option<String> {
    let (_, rest) =
        iqn.to_ascii_lowercase().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    let mut parts = rest.splitn(5, '-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let hex = part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| part.to_owned())
    };
    let (first, second, third, fourth) = (part(1)?, part(6)?, part(9)?, part(16)?);
    let digits = format!("{fourth}{third}{second}{first}");
    let pairs = digits.as_bytes().chunks_exact(2).rev();
    let turned: String = pairs.flat_map(|pair| pair.iter().map(|b| char::from(*b))).collect();
    (turned.len() == 32 && turned.starts_with('6')).then(|| format!("3{turned}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_follows_from_the_targets_name() {
        let iqn = "iqn.2001-05.com.equallogic:0-8a0906-83bcb3401-16e0002fd0a46f3d-web-1";
        assert_eq!(scsi_id(iqn).as_deref(), Some("36090a01840b3bc833d6fa4d02f00e016"));
        // The bytes of the public example naa.6090a038f0cd4e5bdaa8248e6856d4fe, turned around.
        let iqn = "iqn.2001-05.com.equallogic:0-8a0906-5b4ecdf03-fed456688e24a8da-x";
        assert_eq!(scsi_id(iqn).as_deref(), Some("36090a038f0cd4e5bdaa8248e6856d4fe"));
        for other in ["", "iqn.2004-01.example:disk", "iqn.a:0-8a0906-5b4e-fed4-x", "iqn.a:0-☃☃-x"]
        {
            assert_eq!(scsi_id(other), None, "{other}");
        }
    }
}
