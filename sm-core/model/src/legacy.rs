//! SMAPI's error numbers (`SR_BACKEND_FAILURE_n`) and their exact texts.
//!
//! Source: `drivers/XE_SR_ERRORCODES.xml` of xapi-project/sm at 471cf7e (2026-04). Toolstacks and
//! people's scripts compare these texts, blemishes included.

use crate::error::Kind;

/// A number of SMAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The n of `SR_BACKEND_FAILURE_n`.
    pub number: u16,
    /// Its name in SMAPI's source.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

const fn code(number: u16, name: &'static str, text: &'static str) -> Code {
    Code { number, name, text }
}

/// The numbers we raise or pass on, in rising order.
pub const CODES: &[Code] = &[
    code(16, "SRInUse", "The SR device is currently in use"),
    code(19, "InvalidDev", "No such device"),
    code(24, "VDIInUse", "The VDI is currently in use"),
    code(38, "Unimplemented", "The requested method is not supported/implemented"),
    code(39, "SRNotEmpty", "The SR is not empty"),
    code(40, "SRScan", "The SR scan failed "),
    code(42, "SRExists", "The SR already exists"),
    code(43, "VDIExists", "The VDI already exists"),
    code(44, "SRNoSpace", "There is insufficient space"),
    code(46, "VDIUnavailable", "The VDI is not available"),
    code(47, "SRUnavailable", "The SR is not available"),
    code(53, "LVMUnMount", "Logical Volume unmount/deactivate error"),
    code(58, "LVMMaster", "Logical Volume request must come from master"),
    code(65, "VDILoad", "Failed to load VDI"),
    code(66, "VDIType", "Invalid VDI type"),
    code(67, "ISCSIDevice", "ISCSI device failed to appear"),
    code(
        68,
        "ISCSILogin",
        "ISCSI login failed - check access settings for the initiator on the storage, if CHAP is used verify CHAP credentials",
    ),
    code(72, "NFSVersion", "Required NFS server version unsupported"),
    code(73, "NFSMount", "NFS mount error"),
    code(78, "VDICreate", "VDI Creation failed"),
    code(79, "VDISize", "VDI Invalid size"),
    code(80, "VDIDelete", "Failed to mark VDI hidden"),
    code(81, "VDIClone", "Failed to clone VDI"),
    code(82, "VDISnapshot", "Failed to snapshot VDI"),
    code(83, "ISCSIDiscovery", "ISCSI discovery failed"),
    code(90, "ConfigDeviceMissing", "The request is missing the device parameter"),
    code(94, "ConfigLocationMissing", "The request is missing the location parameter"),
    code(95, "ConfigTargetMissing", "The request is missing the target parameter"),
    code(
        96,
        "ConfigTargetIQNMissing",
        "The request is missing or has an incorrect target IQN parameter",
    ),
    code(
        97,
        "ConfigISCSIIQNMissing",
        "Unable to retrieve the host configuration ISCSI IQN parameter",
    ),
    code(101, "ConfigServerPathMissing", "The request is missing the serverpath parameter"),
    code(102, "ConfigServerMissing", "The request is missing the server parameter"),
    code(107, "ConfigSCSIid", "The SCSIid parameter is missing or incorrect"),
    code(108, "NFSTarget", "Unable to detect an NFS service on this target."),
    code(109, "SnapshotChainTooLong", "The snapshot chain is too long"),
    code(110, "VDIResize", "VDI resize failed"),
    code(115, "ConfigParamsMissing", "Not all required parameters specified."),
    code(119, "PVMultiIDs", "PVs found with multiple SCSI IDs"),
    code(120, "NAPPTarget", "Netapp Target parameter missing in Dconf string"),
    code(121, "NAPPUsername", "Netapp Username parameter missing in Dconf string"),
    code(122, "NAPPPassword", "Netapp Password parameter missing in Dconf string"),
    code(123, "NAPPAggregate", "Netapp Aggregate parameter missing in Dconf string"),
    code(124, "NAPPTargetFailed", "Failed to connect to Netapp target"),
    code(125, "NAPPAuthFailed", "Authentication credentials incorrect"),
    code(126, "NAPPInsufficientPriv", "Auth credentials have insufficient access privileges"),
    code(
        127,
        "NAPPFVolNum",
        "Max number of flexvols reached on target. Unable to allocate requested resource.",
    ),
    code(
        128,
        "NAPPSnapLimit",
        "Max number of Snapshots reached on target Volume. Unable to create snapshot.",
    ),
    code(129, "NAPPSnapNoMem", "Insufficient space, unable to create snapshot."),
    code(130, "NAPPUnsupportedVersion", "Netapp Target version unsupported"),
    code(131, "NAPPTargetIQN", "Unable to retrieve target IQN"),
    code(132, "NAPPNoISCSIService", "ISCSI service not running on the Netapp target."),
    code(135, "NAPPExclActivate", "Failed to acquire an exclusive lock on the LUN."),
    code(140, "DNSError", "Incorrect DNS name, unable to resolve."),
    code(141, "ISCSITarget", "Unable to connect to ISCSI service on target"),
    code(142, "ISCSIPort", "Incorrect value for iSCSI port, must be a number between 1 and 65535"),
    code(143, "BadRequest", "Failed to parse the request"),
    code(144, "VDIMissing", "VDI could not be found"),
    code(160, "EQLTarget", "Equallogic Target parameter missing in Dconf string"),
    code(161, "EQLUsername", "Equallogic Username parameter missing in Dconf string"),
    code(162, "EQLPassword", "Equallogic Password parameter missing in Dconf string"),
    code(163, "EQLStoragePool", "Equallogic StoragePool parameter missing in Dconf string"),
    code(
        164,
        "EQLConnectfail",
        "Failed to connect to Equallogic Array; maximum SSH CLI sessions reached",
    ),
    code(
        165,
        "EQLInvalidSnapReserve",
        "Invalid snap-reserver-percentage value, must be an integer indicating the amount of space, as a percentage of the VDI size, to reserve for snapshots.",
    ),
    code(
        166,
        "EQLInvalidSnapDepletionKey",
        "Invalid snap-depletion value, must be one of 'delete-oldest' or 'volume-offline'",
    ),
    code(
        167,
        "EQLVolOutofSpace",
        "Volume out of space, probably due to insufficient snapshot reserve allocation.",
    ),
    code(
        168,
        "EQLSnapshotOfSnapshot",
        "Cannot create Snapshot of a Snapshot VDI, operation unsupported",
    ),
    code(
        169,
        "EQLPermDenied",
        "Failed to connect to Equallogic Array, Permission denied;username/password invalid",
    ),
    code(170, "EQLUnsupportedVersion", "Equallogic Target version unsupported"),
    code(171, "EQLTargetPort", "Unable to logon to Array. Check IP settings."),
    code(
        172,
        "EQLInvalidStoragePool",
        "Equallogic StoragePool parameter specified in Dconf string is Invalid",
    ),
    code(
        173,
        "EQLInvalidTargetIP",
        "Equallogic Target parameter specified in Dconf string is Invalid, please specify the correct Group IPaddress",
    ),
    code(174, "EQLInvalidSNMPResp", "Invalid SNMP response received for a CLI command"),
    code(
        175,
        "EQLInvalidVolMetaData",
        "Volume metadata stored in the 'Description' field is invalid, this field contains encoded data and is not user editable",
    ),
    code(176, "EQLInvalidEOFRecv", "Invalid EOF response received for a CLI command"),
    code(
        180,
        "LVMProvisionAttach",
        "Volume Group out of space. The SR is over-provisioned, and out of space. Unable to grow the underlying volume to accommodate the virtual size of the disk.",
    ),
    code(181, "MetadataError", "Error in Metadata volume operation for SR."),
    code(200, "EIO", "General IO error"),
    code(202, "SMGeneral", "General backend error"),
    code(
        203,
        "FistPoint",
        "An active FIST point was reached that causes the process to exit abnormally",
    ),
    code(430, "MultipathdCommsFailure", "Failed to communicate with the multipath daemon"),
    code(431, "MultipathGenericFailure", "Multipath generic failure"),
    code(432, "MultipathMapperPathMissing", "Device Mapper path missing"),
    code(433, "MultipathDeviceNotAppeared", "Device Mapper path not appeared yet"),
    code(434, "MultipathDeviceNoScsiid", "Device Mapper path no SCSI ID supplied"),
    code(445, "TapdiskAlreadyRunning", "The tapdisk is already running"),
    code(447, "IllegalXMLChar", "Illegal XML character."),
    code(453, "TapdiskFailed", "tapdisk experienced an error"),
    code(457, "CBTActivateFailed", "Unable to activate changed block tracking."),
    code(458, "CBTDeactivateFailed", "Unable to deactivate changed block tracking."),
    code(459, "CBTMetadataInconsistent", "Changed block tracking log is in an inconsistent state."),
    code(460, "CBTChangedBlocksError", "Failed to calculate changed blocks for given VDIs."),
    code(461, "SharedFileSystemNoWrite", "The file system for SR cannot be written to."),
    code(1200, "GenericException", "SM has thrown a generic python exception"),
];

/// Numbers with a meaning of their own that we do not raise: never reuse one.
pub const RESERVED: &[(u16, &str)] = &[
    (1, "InvalidArg"),
    (2, "BadCharacter"),
    (20, "InvalidSecret"),
    (37, "LockErr"),
    (41, "SRLog"),
    (48, "SRUnknownType"),
    (49, "SRBadXML"),
    (50, "LVMCreate"),
    (51, "LVMDelete"),
    (52, "LVMMount"),
    (54, "LVMWrite"),
    (55, "LVMPartCreate"),
    (56, "LVMPartInUse"),
    (57, "LVMFilesystem"),
    (59, "LVMResize"),
    (60, "LVMSize"),
    (61, "FileSRCreate"),
    (62, "FileSRRmDir"),
    (63, "FileSRDelete"),
    (64, "VDIRemove"),
    (69, "ISCSILogout"),
    (70, "ISCSIInitiator"),
    (71, "ISCSIDaemon"),
    (74, "NFSUnMount"),
    (75, "NFSAttached"),
    (76, "NFSDelete"),
    (77, "LVMGroupCreate"),
    (84, "ISCSIIQN"),
    (85, "ISCSIDetach"),
    (86, "ISCSIQueryDaemon"),
    (87, "ConfigLUNMissing"),
    (88, "NFSCreate"),
    (89, "ConfigLUNIDMissing"),
    (91, "ConfigDeviceInvalid"),
    (92, "VolNotFound"),
    (93, "PVSfailed"),
    (98, "ConfigLUNSerialMissing"),
    (99, "LVMOneLUN"),
    (100, "LVMNoVolume"),
    (103, "ConfigServerPathBad"),
    (104, "LVMRefCount"),
    (105, "Rootdev"),
    (106, "InvalidIQN"),
    (111, "SMBMount"),
    (112, "SMBUnMount"),
    (113, "SMBAttached"),
    (114, "SMBDelete"),
    (116, "SMBCreate"),
    (117, "LVMRead"),
    (118, "NoRootDev"),
    (133, "NAPPAsisLicense"),
    (134, "NAPPAsisError"),
    (150, "APISession"),
    (151, "APILocalhost"),
    (152, "APIPBDQuery"),
    (153, "APIFailure"),
    (154, "APIProtocolError"),
    (182, "ISCSIDelete"),
    (201, "EGAIN"),
    (204, "LeafGCSkip"),
    (205, "VBDListNotStable"),
    (220, "ISO"),
    (221, "ISO"),
    (222, "ISO"),
    (223, "ISO"),
    (224, "ISO"),
    (225, "ISO"),
    (226, "ISO"),
    (227, "ISO"),
    (228, "ISO"),
    (413, "XMLParse"),
    (446, "CIFSExtendedCharsNotSupported"),
    (448, "UnsupportedKernel"),
    (449, "OCFS"),
    (450, "OCFS"),
    (451, "OCFS"),
    (452, "OCFS"),
    (454, "NoSMBLicense"),
    (455, "VGReg"),
    (456, "TapdiskDriveEmpty"),
];

/// The text of a number.
pub fn text(number: u16) -> Option<&'static str> {
    let index = CODES.binary_search_by_key(&number, |code| code.number).ok()?;
    Some(CODES[index].text)
}

/// The number for an error that names none.
pub fn usual_code(kind: &Kind) -> u16 {
    match kind {
        Kind::NotFound => 144,
        Kind::Exists => 43,
        Kind::InUse => 24,
        Kind::NoSpace => 44,
        Kind::Config { .. } => 115,
        Kind::Unreachable | Kind::Fenced => 46,
        Kind::Corrupt => 65,
        Kind::Unsupported => 38,
        Kind::Limit
        | Kind::Busy { .. }
        | Kind::Auth
        | Kind::Cancelled
        | Kind::DeadlineExceeded
        | Kind::Unknown
        | Kind::Internal => 202,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_none_is_used_twice() {
        assert!(CODES.windows(2).all(|pair| pair[0].number < pair[1].number));
        for (number, name) in RESERVED {
            assert!(text(*number).is_none(), "{number} {name} is reserved and in the table");
        }
    }

    #[test]
    fn texts_are_exact() {
        assert_eq!(text(40), Some("The SR scan failed "));
        assert_eq!(text(79), Some("VDI Invalid size"));
        assert_eq!(text(109), Some("The snapshot chain is too long"));
        assert_eq!(text(107), Some("The SCSIid parameter is missing or incorrect"));
        assert_eq!(text(9999), None);
    }
}
