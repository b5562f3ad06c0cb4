//! Reads what a file says of itself, without running any of its code.
//!
//! Only headers and two sections are read, so the cost does not depend on the file's size. Nothing
//! in the file is believed before it is checked against the file's real length: a shared object
//! that is shorter than its headers say kills the process that maps it with SIGBUS.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, ReadRef};
use sm_model::Manifest;
use sm_model::manifest::SECTION;

use crate::LoadError;

/// Largest manifest or list of steps that is read, in bytes.
const SECTION_LIMIT: u64 = 1 << 20;

/// What a driver's file says of itself.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub size: u64,
    /// Its manifest.
    pub manifest: Manifest,
    /// Names of its crash points, sorted; see `sm_step`.
    pub steps: Vec<String>,
}

/// Reads the manifest of the driver at `path`.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, LoadError> {
    let path = path.as_ref();
    inspect_file(&open_file(path)?, path)
}

/// Opens a driver's file for reading; refuses what is not a regular file.
pub(crate) fn open_file(path: &Path) -> Result<File, LoadError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            LoadError::NotFound { path: path.to_owned() }
        }
        _ => LoadError::Unreadable { path: path.to_owned(), source },
    };
    // The type first: opening a pipe would wait for a writer.
    let kind = std::fs::metadata(path).map_err(fail)?.file_type();
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        return File::open(path).map_err(fail);
    };
    Err(LoadError::NotAFile { path: path.to_owned(), what })
}

/// As [`inspect`], of a file that is open; `path` is for the messages.
pub(crate) fn inspect_file(file: &File, path: &Path) -> Result<Inspection, LoadError> {
    let size = file
        .metadata()
        .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?
        .len();
    check_magic(file, path, size)?;
    let cache = ReadCache::new(file);
    let sections = read_sections(&cache, path, size)?;
    let Some(json) = sections.manifest else {
        return Err(LoadError::NotADriver { path: path.to_owned() });
    };
    let manifest = parse_manifest(&json, path)?;
    Ok(Inspection { path: path.to_owned(), size, manifest, steps: sections.steps })
}

/// Manifest JSON whose interface fits this host.
pub(crate) fn parse_manifest(json: &[u8], path: &Path) -> Result<Manifest, LoadError> {
    let bad = |why: String| LoadError::BadManifest { path: path.to_owned(), why };
    // Another major may have another shape altogether, so its number is looked at first.
    let value: serde_json::Value =
        serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
    let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let abi = text("abi").ok_or_else(|| bad("it states no interface version (abi)".into()))?;
    if abi.split('.').next() != Some(sm_abi::ABI_MAJOR) {
        return Err(LoadError::OtherMajor {
            driver: text("name").unwrap_or_else(|| path.display().to_string()),
            theirs: abi,
            ours: sm_abi::ABI,
        });
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
    // The name becomes part of a file name and of log lines.
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
    };
    for (what, text) in [("name", &manifest.name), ("version", &manifest.version)] {
        if !plain(text) {
            return Err(bad(format!(
                "its {what} {text:?} must be 1 to 64 letters, digits or - _ . +"
            )));
        }
    }
    Ok(manifest)
}

fn check_magic(mut file: &File, path: &Path, size: u64) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let mut magic = Vec::with_capacity(4);
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    file.take(4).read_to_end(&mut magic).map_err(unreadable)?;
    if magic == elf::ELFMAG {
        return Ok(());
    }
    let why = if size == 0 {
        "the file is empty".to_owned()
    } else {
        let shown: String = magic.escape_ascii().to_string();
        format!("it begins with \"{shown}\", not with the ELF mark")
    };
    Err(LoadError::NotAnObject { path: path.to_owned(), why })
}

#[derive(Default)]
struct Sections {
    manifest: Option<Vec<u8>>,
    steps: Vec<String>,
}

fn read_sections(cache: &ReadCache<&File>, path: &Path, size: u64) -> Result<Sections, LoadError> {
    let truncated =
        |expected: u64| LoadError::Truncated { path: path.to_owned(), expected, actual: size };
    let broken = |what: &str| LoadError::NotAnObject { path: path.to_owned(), why: what.into() };

    let header_size = size_of::<FileHeader64<Endianness>>() as u64;
    if size < header_size {
        return Err(truncated(header_size));
    }
    let header = FileHeader64::<Endianness>::parse(cache)
        .map_err(|_| broken("its ELF header is not that of a 64-bit object"))?;
    let endian = header.endian().map_err(|_| broken("its byte order is unknown"))?;
    let machine = header.e_machine(endian);
    if machine != OUR_MACHINE || header.is_big_endian() != cfg!(target_endian = "big") {
        return Err(LoadError::WrongMachine {
            path: path.to_owned(),
            theirs: machine_name(machine),
            ours: std::env::consts::ARCH,
        });
    }
    if header.e_type(endian) != elf::ET_DYN {
        return Err(broken("it is an ELF file of another kind (a program, an object file)"));
    }

    // The two tables, then all that they point at.
    let table = |start: u64, entry: u16, count: u16| {
        start.saturating_add(u64::from(entry) * u64::from(count))
    };
    let tables = table(header.e_phoff(endian), header.e_phentsize(endian), header.e_phnum(endian))
        .max(table(header.e_shoff(endian), header.e_shentsize(endian), header.e_shnum(endian)));
    if tables > size {
        return Err(truncated(tables));
    }
    let programs = header
        .program_headers(endian, cache)
        .map_err(|_| broken("its program headers cannot be read"))?;
    let sections = header
        .section_headers(endian, cache)
        .map_err(|_| broken("its section headers cannot be read"))?;
    let program_ends = programs
        .iter()
        .map(|program| program.p_offset(endian).saturating_add(program.p_filesz(endian)));
    let section_ends = sections
        .iter()
        .filter(|section| section.sh_type(endian) != elf::SHT_NOBITS)
        .map(|section| section.sh_offset(endian).saturating_add(section.sh_size(endian)));
    let end = program_ends.chain(section_ends).max().unwrap_or(0);
    if end > size {
        return Err(truncated(end));
    }

    let sections =
        header.sections(endian, cache).map_err(|_| broken("its section names cannot be read"))?;
    let read = |name: &str| -> Result<Option<Vec<u8>>, LoadError> {
        let Some((_, section)) = sections.section_by_name(endian, name.as_bytes()) else {
            return Ok(None);
        };
        let length = section.sh_size(endian);
        if length > SECTION_LIMIT || section.sh_type(endian) == elf::SHT_NOBITS {
            return Err(LoadError::BadManifest {
                path: path.to_owned(),
                why: format!("its {name} section has {length} bytes, more than {SECTION_LIMIT}"),
            });
        }
        let bytes = cache
            .read_bytes_at(section.sh_offset(endian), length)
            .map_err(|()| broken("a section cannot be read"))?;
        Ok(Some(bytes.to_vec()))
    };
    Ok(Sections {
        manifest: read(SECTION)?,
        steps: read(sm_step::SECTION)?.map(|bytes| sm_step::names(&bytes)).unwrap_or_default(),
    })
}

#[cfg(target_arch = "x86_64")]
const OUR_MACHINE: u16 = elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const OUR_MACHINE: u16 = elf::EM_AARCH64;

fn machine_name(machine: u16) -> String {
    match machine {
        elf::EM_X86_64 => "x86_64".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_386 => "x86".into(),
        elf::EM_ARM => "arm".into(),
        elf::EM_PPC64 => "powerpc64".into(),
        elf::EM_S390 => "s390x".into(),
        elf::EM_RISCV => "riscv".into(),
        other => format!("machine number {other}"),
    }
}
