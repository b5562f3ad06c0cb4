//! A shared object with a manifest and no header: `export_driver!` half done.

const TEXT: &str = r#"{"name":"no-symbol","title":"A fixture","version":"1.0.0","abi":"1.0","sdk":"none","panic":"unwind","capabilities":[]}"#;

#[used]
#[unsafe(link_section = ".sm_driver")]
static MANIFEST: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    let mut i = 0;
    while i < TEXT.len() {
        bytes[i] = TEXT.as_bytes()[i];
        i += 1;
    }
    bytes
};
