//! A text in pieces, for arrays that keep it in several short ones, such as tags.
//!
//! The first piece begins with a digit, how many there are: what a longer text left behind is of no
//! matter.

use std::collections::BTreeMap;

/// The pieces of a text, of as many characters each (and one more in the first); nine at most.
pub fn cut(text: &str, length: usize) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    let pieces = all.chunks(length.max(1)).map(|piece| piece.iter().collect());
    let mut pieces: Vec<String> = pieces.collect();
    pieces.resize(pieces.len().max(1), String::new());
    let count = pieces.len();
    if let Some(first) = pieces.first_mut() {
        first.insert_str(0, &count.to_string());
    }
    pieces
}

/// The text of these pieces, by number from 0. Where one is missing, or none is ours, it is a text that
/// cannot be read.
pub fn join(pieces: &BTreeMap<usize, String>) -> String {
    let first = pieces.get(&0).map_or("", String::as_str);
    let (count, rest) = first.split_at_checked(1).unwrap_or(("", ""));
    let count: usize = count.parse().unwrap_or(0);
    let more = (1..count).map(|n| pieces.get(&n).map_or("", String::as_str));
    std::iter::once(rest).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_characters_and_put_together_again() {
        let long: String = "é☃x".chars().cycle().take(255 * 4).collect();
        for text in ["", "short", &long] {
            let pieces = cut(text, 255);
            assert!(pieces.len() <= 4 && pieces.iter().all(|one| one.chars().count() <= 256));
            let mut found: BTreeMap<usize, String> = pieces.into_iter().enumerate().collect();
            assert_eq!(join(&found), text);
            found.insert(9, "left over".to_owned());
            assert_eq!(join(&found), text);
        }
        assert_eq!(join(&BTreeMap::new()), "");
        assert_eq!(join(&[(0, "☃".to_owned())].into()), "");
    }
}
