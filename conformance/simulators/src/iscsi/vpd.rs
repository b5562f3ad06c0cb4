//! What a unit says of itself: INQUIRY and its pages (SPC-4, SBC-3).

use crate::core::Identity;

/// Fills with spaces, or cuts.
fn padded(text: &str, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.bytes().take(length).collect();
    bytes.resize(length, b' ');
    bytes
}

/// The standard data. Without a unit: qualifier 3, nothing is here.
pub(super) fn standard(identity: Option<&Identity>) -> Vec<u8> {
    let nothing = Identity {
        vendor: String::new(),
        product: String::new(),
        revision: String::new(),
        serial: String::new(),
        naa: String::new(),
    };
    let device = if identity.is_some() { 0x00 } else { 0x7f };
    let identity = identity.unwrap_or(&nothing);
    let mut data = vec![device, 0, 0x06, 0x12, 0, 0, 0, 0x02];
    data.extend(padded(&identity.vendor, 8));
    data.extend(padded(&identity.product, 16));
    data.extend(padded(&identity.revision, 4));
    data.resize(74, 0);
    // SPC-4, SBC-3, iSCSI.
    for (at, version) in [(58, 0x0460_u16), (60, 0x04c0), (62, 0x0960)] {
        if let Some(place) = data.get_mut(at..at + 2) {
            place.copy_from_slice(&version.to_be_bytes());
        }
    }
    data[4] = 69;
    data
}

/// A page, if there is one of that number.
pub(super) fn page(number: u8, identity: &Identity, block: u32, grain: u64) -> Option<Vec<u8>> {
    let body = match number {
        0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
        0x80 => identity.serial.as_bytes().to_vec(),
        0x83 => designators(identity),
        0xb0 => limits(block, grain),
        0xb1 => {
            let mut body = vec![0; 60];
            // No rotation.
            body[1] = 1;
            body
        }
        // Unmapped blocks read as zeros, UNMAP and WRITE SAME give back, thin.
        0xb2 => vec![0, 0xe4, 0x02, 0],
        _ => return None,
    };
    let mut page = vec![0x00, number];
    page.extend((body.len() as u16).to_be_bytes());
    page.extend(body);
    Some(page)
}

fn designators(identity: &Identity) -> Vec<u8> {
    let mut body = Vec::new();
    let digits: Vec<u8> = identity.naa.bytes().collect();
    let naa: Vec<u8> = digits
        .chunks(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    if naa.len() == 16 {
        body.extend([0x01, 0x03, 0x00, 16]);
        body.extend(naa);
    }
    let mut vendor = padded(&identity.vendor, 8);
    vendor.extend(identity.serial.bytes());
    body.extend([0x02, 0x01, 0x00, vendor.len() as u8]);
    body.extend(vendor);
    body
}

fn limits(block: u32, grain: u64) -> Vec<u8> {
    let mut body = vec![0; 60];
    let grain = u32::try_from(grain / u64::from(block)).unwrap_or(1);
    // WRITE SAME must say how many; most blocks of a transfer; of an UNMAP; descriptors; its grain.
    body[0] = 0x01;
    body[4..8].copy_from_slice(&((1 << 20) / block).to_be_bytes());
    body[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    body[20..24].copy_from_slice(&64_u32.to_be_bytes());
    body[24..28].copy_from_slice(&grain.to_be_bytes());
    body
}
