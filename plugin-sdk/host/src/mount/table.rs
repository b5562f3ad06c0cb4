//! What is mounted, as the kernel lists it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use plugin_sdk::{Error, Result};

/// The list of this process' mount namespace; proc_pid_mountinfo(5).
const LIST: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u32,
    /// Number of the mount that it lies in.
    pub parent: u32,
    /// The directory of the file system that is seen here.
    pub root: PathBuf,
    /// Where it is.
    pub target: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// Type of the file system: `nfs4`, `ext4`.
    pub kind: String,
    /// What is mounted: a device, or `server:/path`.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: String,
}

impl Mount {
    /// The value of an option, mount's own first: `vers` of `rw,vers=4.2`. A flag has an empty one.
    pub fn option(&self, name: &str) -> Option<&str> {
        let words = self.options.split(',').chain(self.super_options.split(','));
        words
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// All mounts, in the order of the kernel: of several at one place the last is the one that is
/// seen. Asks no file system.
pub fn table() -> Result<Vec<Mount>> {
    let text = std::fs::read(LIST)
        .map_err(|error| Error::internal(format!("{LIST} cannot be read")).source(&error))?;
    Ok(parse(&text))
}

/// What is mounted at a path, which must have no links in it. The path itself is not looked at.
pub fn at(target: &Path) -> Result<Option<Mount>> {
    Ok(table()?.into_iter().rfind(|mount| mount.target == target))
}

/// What is mounted right in a folder, not at the folder itself.
pub fn below(folder: &Path) -> Result<Vec<Mount>> {
    let mut mounts = table()?;
    mounts.retain(|mount| mount.target.parent() == Some(folder));
    Ok(mounts)
}

/// Reads the kernel's list. A line that is none is left out: the format grows, it does not change.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = PathBuf::from(decoded(fields.next()?));
    let target = PathBuf::from(decoded(fields.next()?));
    let options = text(fields.next()?);
    // Any number of further fields, then a hyphen.
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?);
    let source = decoded(fields.next()?);
    // Some file systems have none.
    let super_options = fields.next().map(text).unwrap_or_default();
    Some(Mount { id, parent, root, target, options, kind, source, super_options })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    decoded(field).to_string_lossy().into_owned()
}

/// Blanks, tabs, line feeds, backslashes and `#` are written as a backslash and three octal digits.
fn decoded(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = after.get(..3).filter(|_| *first == b'\\').and_then(octal);
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.iter().map(|digit| match digit {
        b'0'..=b'7' => Some(u32::from(digit - b'0')),
        _ => None,
    });
    let value = digits.into_iter().try_fold(0, |value, digit| Some(value * 8 + digit?))?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::parse;

    const LIST: &[u8] = b"22 28 0:20 / /proc rw,nosuid shared:12 - proc proc rw\n\
        91 28 0:52 /sub\\040dir /run/sm/nfs/a\\134b\\011c rw,relatime shared:50 master:3 - nfs4 \
        nas:/ex\\040port\\043 rw,vers=4.2,hard,addr=10.9.0.1\n\
        92 28 0:53 / /odd\\9 rw - tmpfs none\n\
        93 28 0:54 / /caf\xc3\xa9 rw shared:1 propagate_from:2 unbindable - fuse.x \\012 ro\n\
        half a line\n\
        94 91 0:55 / /run/sm/nfs/x rw - nfs 10.9.0.1:/srv rw,vers=3\n\
        95 91 0:55 / /run/sm/nfs/x rw - nfs 10.9.0.1:/other rw,vers=3\n";

    #[test]
    fn escapes_optional_fields_and_odd_lines_are_read() {
        let mounts = parse(LIST);
        assert_eq!(mounts.len(), 6);
        let nfs = &mounts[1];
        assert_eq!((nfs.id, nfs.parent, nfs.kind.as_str()), (91, 28, "nfs4"));
        assert_eq!(nfs.root, Path::new("/sub dir"));
        assert_eq!(nfs.target, Path::new("/run/sm/nfs/a\\b\tc"));
        assert_eq!(nfs.source, OsStr::new("nas:/ex port#"));
        assert_eq!(nfs.option("vers"), Some("4.2"));
        assert_eq!(nfs.option("hard"), Some(""));
        assert_eq!(nfs.option("soft"), None);
        assert_eq!(mounts[2].target, Path::new("/odd\\9"), "no escape of the kernel's");
        assert_eq!(mounts[2].super_options, "");
        assert_eq!(
            (mounts[3].target.as_path(), &mounts[3].source),
            (Path::new("/café"), &"\n".into())
        );
        let last = mounts.iter().rfind(|mount| mount.target == Path::new("/run/sm/nfs/x"));
        assert_eq!(last.map(|mount| mount.id), Some(95), "the last one is seen");
    }

    #[test]
    fn this_system_has_a_root() {
        let root = super::at(Path::new("/")).unwrap();
        assert!(root.is_some_and(|root| !root.kind.is_empty()));
        assert_eq!(super::at(Path::new("/nothing is here")).unwrap(), None);
    }
}
