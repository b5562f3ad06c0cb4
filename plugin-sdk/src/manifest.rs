//! What a driver says of itself, written as a constant and turned into JSON at compile time.
//!
//! The same bytes lie in the ELF section that the loader reads without running any code, and are
//! what the loaded library answers: there is one source, the constant.

use std::marker::PhantomData;

use sm_model::Operation;
use sm_model::manifest::{FieldKind, Isolation, PanicStrategy};
use sm_model::operation::OPERATIONS;

use crate::config::{DeviceConfig, Field};
use crate::driver::Driver;

/// A driver's manifest. Written with [`manifest!`](crate::manifest!), which fills in the version of
/// the driver's crate and its panic strategy.
#[derive(Clone, Copy, Debug)]
pub struct Manifest {
    /// The SR type the driver serves: `file`, `lvmoiscsi`, ...
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// Who made it. Empty unless set.
    pub vendor: &'static str,
    /// Version of the driver.
    pub version: &'static str,
    /// The operations it serves. Any other is refused before the driver sees it, so the manifest
    /// and the code cannot tell different stories.
    pub operations: &'static [Operation],
    /// What it can do beyond operations.
    pub features: &'static [Feature],
    /// Host services it cannot do without: `kv`, `secret`, ... The loader refuses to open the
    /// driver on a host that lacks one.
    pub services: &'static [&'static str],
    /// Where it may run. Anywhere unless set.
    pub isolation: Isolation,
    /// Whether it must run as root. No unless set.
    pub needs_root: bool,
    /// Threads of its runtime. One unless set: a driver waits, it does not compute.
    pub workers: usize,
    /// What a panic does. Filled in by the macro.
    pub panic: PanicStrategy,
}

/// Something a driver can do that is not an operation; [`sm_model::manifest::feature`] names them.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    name: &'static str,
    limit: Option<u64>,
    source: Option<&'static str>,
}

impl Feature {
    /// The driver can do this.
    pub const fn new(name: &'static str) -> Self {
        Self { name, limit: None, source: None }
    }

    /// The driver can do this up to a limit (bytes, a count, a depth: the feature says which).
    /// `source` tells where the limit comes from, such as a page of the array's manual.
    pub const fn limit(name: &'static str, limit: u64, source: &'static str) -> Self {
        Self { name, limit: Some(limit), source: Some(source) }
    }
}

/// Writes a [`Manifest`](crate::Manifest).
///
/// `name`, `title` and `operations` come first, in this order; then any other field of
/// [`Manifest`](crate::Manifest). The operations are spelt as the methods of
/// [`Driver`](crate::Driver); a misspelt one does not compile.
///
/// ```
/// use plugin_sdk::model::manifest::feature;
/// use plugin_sdk::{Feature, Manifest, manifest};
///
/// const MANIFEST: Manifest = manifest! {
///     name: "acme",
///     title: "Acme 9000 series, REST API v3",
///     operations: [sr_probe, sr_attach, sr_detach, sr_scan, sr_stat, vdi_create, vdi_destroy],
///     vendor: "Acme Inc.",
///     features: &[
///         Feature::new(feature::THIN),
///         Feature::limit(feature::MAX_VDI_SIZE, 64 << 40, "REST guide 3.1, p. 44"),
///     ],
///     services: &["secret"],
/// };
/// assert_eq!(MANIFEST.operations.len(), 7);
/// ```
///
/// ```compile_fail
/// const MANIFEST: plugin_sdk::Manifest = plugin_sdk::manifest! {
///     name: "acme", title: "", operations: [vdi_craete],
/// };
/// ```
#[macro_export]
macro_rules! manifest {
    (
        name: $name:expr,
        title: $title:expr,
        operations: [$($operation:ident),* $(,)?]
        $(, $field:ident: $value:expr)* $(,)?
    ) => {
        $crate::Manifest {
            name: $name,
            title: $title,
            operations: {
                const OPERATIONS: &[$crate::model::Operation] =
                    &[$($crate::manifest::operation(stringify!($operation))),*];
                OPERATIONS
            },
            $($field: $value,)*
            ..$crate::manifest::built(env!("CARGO_PKG_VERSION"), cfg!(panic = "abort"))
        }
    };
}

/// What the macro knows of the crate it is used in.
#[doc(hidden)]
pub const fn built(version: &'static str, aborts: bool) -> Manifest {
    Manifest {
        name: "",
        title: "",
        vendor: "",
        version,
        operations: &[],
        features: &[],
        services: &[],
        isolation: Isolation::Any,
        needs_root: false,
        workers: 1,
        panic: if aborts { PanicStrategy::Abort } else { PanicStrategy::Unwind },
    }
}

/// The operation of that name; a compile error if there is none.
#[doc(hidden)]
pub const fn operation(name: &str) -> Operation {
    let mut i = 0;
    while !same(OPERATIONS[i].name, name) {
        i += 1;
        assert!(i < OPERATIONS.len(), "no operation has this name");
    }
    OPERATIONS[i].operation
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Longest manifest, in bytes of JSON.
const CAPACITY: usize = 16 * 1024;

/// The manifest of a driver as JSON.
#[doc(hidden)]
pub struct ManifestText<D>(PhantomData<D>);

impl<D: Driver> ManifestText<D> {
    const WRITTEN: ([u8; CAPACITY], usize) = {
        let mut bytes = [0; CAPACITY];
        let len = write(&D::MANIFEST, D::Config::FIELDS, &mut bytes);
        assert!(len <= CAPACITY, "the manifest is longer than 16 KiB of JSON");
        (bytes, len)
    };

    /// How many bytes it has.
    pub const LEN: usize = Self::WRITTEN.1;

    /// The text.
    pub const TEXT: &'static str = match str::from_utf8(Self::WRITTEN.0.split_at(Self::LEN).0) {
        Ok(text) => text,
        Err(_) => "", // It is made of whole `str`s and ASCII.
    };

    /// The text in an array of its own size, for the section. `N` is [`Self::LEN`].
    pub const fn array<const N: usize>() -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(Self::TEXT.as_bytes());
        bytes
    }
}

/// Writes as much as fits and returns the whole length.
const fn write(manifest: &Manifest, fields: &[Field], out: &mut [u8]) -> usize {
    let mut json = Json { out, len: 0 };
    json.raw("{\"name\":");
    json.text(manifest.name);
    json.raw(",\"title\":");
    json.text(manifest.title);
    json.raw(",\"version\":");
    json.text(manifest.version);
    json.raw(",\"vendor\":");
    json.text(manifest.vendor);
    json.raw(",\"abi\":");
    json.text(sm_abi::ABI);
    json.raw(",\"sdk\":");
    json.text(env!("CARGO_PKG_VERSION"));
    json.raw(",\"panic\":");
    json.text(match manifest.panic {
        PanicStrategy::Unwind => "unwind",
        PanicStrategy::Abort => "abort",
    });
    json.raw(",\"isolation\":");
    json.text(match manifest.isolation {
        Isolation::Any => "any",
        Isolation::Process => "process",
    });
    json.raw(",\"needs_root\":");
    json.boolean(manifest.needs_root);
    json.raw(",\"services\":[");
    let mut i = 0;
    while i < manifest.services.len() {
        json.comma(i);
        json.text(manifest.services[i]);
        i += 1;
    }
    json.raw("],\"capabilities\":[");
    let mut i = 0;
    while i < manifest.operations.len() {
        json.comma(i);
        json.raw("{\"name\":");
        json.text(OPERATIONS[manifest.operations[i] as usize].name);
        json.raw("}");
        i += 1;
    }
    let mut j = 0;
    while j < manifest.features.len() {
        json.comma(i + j);
        json.feature(&manifest.features[j]);
        j += 1;
    }
    json.raw("],\"config\":[");
    let mut i = 0;
    while i < fields.len() {
        json.comma(i);
        json.field(&fields[i]);
        i += 1;
    }
    json.raw("]}");
    json.len
}

/// A JSON writer that runs at compile time.
struct Json<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Json<'_> {
    const fn byte(&mut self, byte: u8) {
        if self.len < self.out.len() {
            self.out[self.len] = byte;
        }
        self.len += 1;
    }

    const fn raw(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            self.byte(bytes[i]);
            i += 1;
        }
    }

    const fn comma(&mut self, index: usize) {
        if index > 0 {
            self.byte(b',');
        }
    }

    const fn boolean(&mut self, value: bool) {
        self.raw(if value { "true" } else { "false" });
    }

    const fn number(&mut self, value: u64) {
        let mut unit = 1;
        while value / unit >= 10 {
            unit *= 10;
        }
        while unit > 0 {
            self.byte(b'0' + (value / unit % 10) as u8);
            unit /= 10;
        }
    }

    /// A string; RFC 8259 section 7 says what must be escaped.
    const fn text(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let bytes = text.as_bytes();
        self.byte(b'"');
        let mut i = 0;
        while i < bytes.len() {
            match bytes[i] {
                byte @ (b'"' | b'\\') => {
                    self.byte(b'\\');
                    self.byte(byte);
                }
                byte @ 0..0x20 => {
                    self.raw("\\u00");
                    self.byte(HEX[(byte >> 4) as usize]);
                    self.byte(HEX[(byte & 15) as usize]);
                }
                byte => self.byte(byte),
            }
            i += 1;
        }
        self.byte(b'"');
    }

    const fn feature(&mut self, feature: &Feature) {
        self.raw("{\"name\":");
        self.text(feature.name);
        if let Some(limit) = feature.limit {
            self.raw(",\"limit\":");
            self.number(limit);
        }
        if let Some(source) = feature.source {
            self.raw(",\"source\":");
            self.text(source);
        }
        self.raw("}");
    }

    const fn field(&mut self, field: &Field) {
        self.raw("{\"name\":");
        self.text(field.name);
        self.raw(",\"type\":");
        self.text(match field.kind {
            FieldKind::Text => "text",
            FieldKind::Path => "path",
            FieldKind::Integer => "integer",
            FieldKind::Boolean => "boolean",
            FieldKind::Size => "size",
        });
        self.raw(",\"required\":");
        self.boolean(field.required);
        self.raw(",\"secret\":");
        self.boolean(field.secret);
        if let Some(default) = field.default {
            self.raw(",\"default\":");
            self.text(default);
        }
        self.raw(",\"help\":");
        self.text(field.help.trim_ascii());
        self.raw("}");
    }
}
