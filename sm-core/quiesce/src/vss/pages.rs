//! What a disk says of itself to a SCSI host, as the guest's driver shows it: the pages that a
//! provider finds a disk's UUID in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sm_model::VdiUuid;

/// The vendor in those pages.
const VENDOR: &[u8; 8] = b"XENSRC  ";

/// The names below `/vss/<vm>/snapshot/<vdi>` with their texts.
pub(super) fn of(vdi: VdiUuid) -> [(&'static str, String); 3] {
    let uuid = vdi.to_string();
    // The serial number of XenServer's synthetic disks has 16 characters and two blanks.
    let mut serial = vec![0x00, 0x80, 0x00, 0x12];
    serial.extend(uuid.bytes().take(16));
    serial.extend(b"  ");
    let mut identity = vec![0x00, 0x83, 0x00, 0x31, 0x02, 0x01, 0x00, 0x2d];
    identity.extend(VENDOR);
    identity.extend(uuid.bytes());
    identity.push(b' ');
    [
        ("scsi/0x12/default", BASE64.encode(VENDOR)),
        ("scsi/0x12/0x80", BASE64.encode(serial)),
        ("scsi/0x12/0x83", BASE64.encode(identity)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_the_pages_are_true() {
        let vdi: VdiUuid = "8d0c9f0e-0a3b-4a8e-b1c5-0d9c6b7a5e4f".parse().unwrap();
        for (name, text) in of(vdi).into_iter().skip(1) {
            let page = BASE64.decode(text).unwrap();
            assert_eq!(usize::from(page[3]), page.len() - 4, "{name}");
            let words = String::from_utf8_lossy(&page).into_owned();
            assert!(words.contains("8d0c9f0e-0a3b-4a"), "{name}");
        }
    }
}
