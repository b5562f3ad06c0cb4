// Included by the fixtures that are drivers, after their `NAME`, `VERSION` and `ABI` macros.

/// The manifest's JSON, in the form of interface 1.
macro_rules! manifest_text {
    ($panic:literal) => {
        concat!(
            r#"{"name":""#,
            name!(),
            r#"","title":"A fixture","version":""#,
            version!(),
            r#"","abi":""#,
            abi!(),
            r#"","sdk":"none","panic":""#,
            $panic,
            r#"","needs_root":false,"services":["#,
            services!(),
            r#"],"capabilities":[{"name":"sr_scan"},{"name":"vdi_create"}],"config":[]}"#
        )
    };
}

#[cfg(panic = "unwind")]
const MANIFEST_TEXT: &str = manifest_text!("unwind");
#[cfg(not(panic = "unwind"))]
const MANIFEST_TEXT: &str = manifest_text!("abort");

#[used]
#[unsafe(link_section = ".sm_driver")]
static MANIFEST: [u8; MANIFEST_TEXT.len()] = {
    let mut bytes = [0; MANIFEST_TEXT.len()];
    let mut i = 0;
    while i < MANIFEST_TEXT.len() {
        bytes[i] = MANIFEST_TEXT.as_bytes()[i];
        i += 1;
    }
    bytes
};

extern "C" fn manifest() -> RStr<'static> {
    RStr::from_str(MANIFEST_TEXT)
}

extern "C" fn set_log_level(_: u8) {}

extern "C" fn open(_: Bytes, host: HostBox) -> FfiFuture<OpenResult> {
    async move { RResult::ROk(DriverBox::from(Driver_TO::from_value(Session::new(host), TD_Opaque))) }
        .into_ffi()
}

extern "C" fn constructor() -> RootModuleResult {
    __call_root_module_loader(root)
}

#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
static HEADER: LibHeader =
    // SAFETY: the constructor returns the root module whose type is named here.
    unsafe { LibHeader::from_constructor::<DriverModule_Ref>(constructor, CheckTypeLayout::Yes) };
