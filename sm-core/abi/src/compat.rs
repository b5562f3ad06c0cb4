//! Whether a driver's header fits this process, checked both ways.
//!
//! `abi_stable` accepts a driver that knows at least what the host knows. A toolstack also has to
//! load an older driver. For that the check runs the other way round: if all that the driver
//! knows is a prefix of what we know, its module is sound to use, because fields it lacks read as
//! `None` and trait methods it lacks run their default body.

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{AbiInstabilityErrors, check_layout_compatibility};
use abi_stable::library::{AbiHeaderRef, RootModule};

/// Why a header does not fit. Each is one sentence about both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The driver was built with another release of `abi_stable`.
    Header { theirs: String, ours: String },
    /// The driver was built for another version of the interface.
    Version { theirs: String, ours: String },
    /// A type differs. `path` leads to it from the root module; `errors` counts the differences,
    /// `report` tells them all at length.
    Layout {
        theirs: String,
        path: String,
        there: String,
        here: String,
        errors: usize,
        report: String,
    },
    /// The driver carries no layout to compare.
    NoLayout,
    /// `abi_stable` refuses for a reason of its own.
    Other(String),
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header { theirs, ours } => {
                write!(f, "it was built with abi_stable {theirs}, this host has {ours}")
            }
            Self::Version { theirs, ours } => {
                write!(f, "it was built for driver interface {theirs}, this host has {ours}")
            }
            Self::Layout { theirs, path, there, here, errors, .. } => write!(
                f,
                "it was built for driver interface {theirs}, but `{path}` is {there} there and \
                 {here} here ({errors} layout errors)"
            ),
            Self::NoLayout => f.write_str("it was built without layout information"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// The root module behind a header, if it fits.
///
/// Goes through the header, never through `RootModule::load_from*`: that caches one module per
/// *type*, so the second driver of a process would silently run the first one's code.
pub fn module<M: RootModule>(header: AbiHeaderRef) -> Result<M, Mismatch> {
    if !header.is_valid() {
        return Err(Mismatch::Header {
            theirs: format!("{}.{}", header.abi_major, header.abi_minor),
            ours: format!(
                "{}.{}",
                abi_stable::library::AbiHeader::VALUE.abi_major,
                abi_stable::library::AbiHeader::VALUE.abi_minor
            ),
        });
    }
    let header = header.upgrade().map_err(|error| Mismatch::Other(error.to_string()))?;
    if let Ok(module) = header.init_root_module::<M>() {
        return Ok(module); // The same interface, or a newer driver.
    }
    let ours = <M as StableAbi>::LAYOUT;
    let theirs = header.layout().ok_or(Mismatch::NoLayout)?;
    match check_layout_compatibility(theirs, ours) {
        Ok(()) => {
            // SAFETY: everything the driver knows is a prefix of what this process knows (just
            // checked), so every field that is read through `M` either exists there with the
            // same type or is reported as absent by the prefix type's own field count.
            unsafe { header.init_root_module_with_unchecked_layout::<M>() }.map_err(|error| {
                version_mismatch(
                    &error.to_string(),
                    &header.version_strings().to_string(),
                    &M::VERSION_STRINGS.to_string(),
                )
            })
        }
        Err(_) => Err(match check_layout_compatibility(ours, theirs) {
            Err(why) => explain(
                &why,
                &header.version_strings().to_string(),
                &M::VERSION_STRINGS.to_string(),
            ),
            Ok(()) => version_mismatch(
                "",
                &header.version_strings().to_string(),
                &M::VERSION_STRINGS.to_string(),
            ),
        }),
    }
}

fn version_mismatch(other: &str, theirs: &str, ours: &str) -> Mismatch {
    if theirs == ours {
        return Mismatch::Other(other.to_owned());
    }
    Mismatch::Version { theirs: theirs.to_owned(), ours: ours.to_owned() }
}

/// One sentence out of a report that has hundreds of lines. It reads the report's text, which a
/// frozen wrong fixture guards.
fn explain(errors: &AbiInstabilityErrors, theirs: &str, ours: &str) -> Mismatch {
    let value = |text: String, key: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(key).map(|value| value.trim().to_owned()))
            .unwrap_or_default()
    };
    let deepest = errors
        .errors
        .iter()
        .filter(|error| !error.errs.is_empty())
        .max_by_key(|error| error.stack_trace.len())
        .and_then(|error| Some((error, error.stack_trace.last()?)));
    let Some((deepest, last)) = deepest else {
        return version_mismatch("the layouts differ", theirs, ours);
    };
    let path: Vec<String> = deepest
        .stack_trace
        .iter()
        .map(|frame| value(frame.expected.to_string(), "field_name:"))
        .filter(|name| !name.is_empty() && name != "0")
        .collect();
    let there = value(last.found.to_string(), "type:");
    let here = value(last.expected.to_string(), "type:");
    if there == here {
        // The same names on both sides: what differs is the version of the interface.
        return version_mismatch(&format!("`{}` differs", path.join(".")), theirs, ours);
    }
    Mismatch::Layout {
        theirs: theirs.to_owned(),
        path: path.join("."),
        there,
        here,
        errors: errors.errors.len(),
        report: errors.to_string(),
    }
}
