//! Gets a driver's root module out of its file.

use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sm_abi::DriverModule_Ref;
use sm_abi::abi_stable::library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use sm_model::Manifest;

use crate::LoadError;
use crate::error::chain;
use crate::inspect::parse_manifest;

/// Linux's `RTLD_NODELETE`: the library stays mapped for good. Threads, thread-local destructors
/// and function pointers into it outlive any handle; with this flag they stay valid.
const RTLD_NODELETE: i32 = 0x1000;

/// Loads the file and checks that its interface fits; its constructors run. `path` must not be
/// one that other content was loaded from before, see [`crate::stage`].
///
/// `inspected` is what the file's section says; the code must say the same.
pub fn load(path: &Path, inspected: &Manifest) -> Result<DriverModule_Ref, LoadError> {
    let driver = || inspected.name.clone();
    // SAFETY: loading runs the file's constructors. The file was inspected and verified, it is a
    // driver its owner installed, and running it is what was asked for.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }
        .map_err(|error| LoadError::Dlopen { driver: driver(), why: chain(&error) })?;
    let symbol = ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes();
    // SAFETY: whoever exports this name exports abi_stable's header behind it; the header begins
    // with a mark and its version, which are checked before anything else of it is used.
    let header: AbiHeaderRef = *unsafe { library.get::<AbiHeaderRef>(symbol) }
        .map_err(|error| LoadError::NoHeader { driver: driver(), why: chain(&error) })?;
    // The header is a static of the library, so the library is never closed.
    std::mem::forget(library);
    let module = sm_abi::compat::module::<DriverModule_Ref>(header).map_err(|mismatch| {
        LoadError::Mismatch { driver: driver(), mismatch: Box::new(mismatch) }
    })?;

    let said = parse_manifest(module.manifest()().as_str().as_bytes(), path)?;
    if said != *inspected {
        let name = |manifest: &Manifest| format!("{} {}", manifest.name, manifest.version);
        return Err(LoadError::OtherManifest {
            path: path.to_owned(),
            section: name(inspected),
            code: name(&said),
        });
    }
    Ok(module)
}
