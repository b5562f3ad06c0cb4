//! A part of all checks, such as the second of three: for machines that share the work, and for a
//! run that must be short and is another one tomorrow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Of so many parts, this one. All parts together are all checks, and none is in two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Part {
    /// From 1.
    number: usize,
    of: usize,
}

impl Part {
    /// Whether a check belongs to it, by its place in the list. Those that stand side by side are much
    /// alike, and take as long: each part gets some of them.
    pub(crate) fn has(self, place: usize) -> bool {
        place % self.of == self.number - 1
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').map(|(number, of)| (number.parse(), of.parse()));
        match numbers {
            Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(format!("{text:?} is no part such as 2/3, the second of three")),
        }
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_in_one_part() {
        for of in 1..6 {
            let parts = (1..=of).map(|number| Part { number, of });
            let parts: Vec<Part> = parts.collect();
            for place in 0..100 {
                assert_eq!(parts.iter().filter(|part| part.has(place)).count(), 1);
            }
        }
    }

    #[test]
    fn a_part_is_written_as_it_is_read() {
        assert_eq!("2/3".parse::<Part>().unwrap().to_string(), "2/3");
        for wrong in ["", "2", "0/3", "4/3", "1/0", "a/b", "1/3/2"] {
            let why = format!("{wrong:?} is no part such as 2/3, the second of three");
            assert_eq!(wrong.parse::<Part>().unwrap_err(), why);
        }
    }
}
