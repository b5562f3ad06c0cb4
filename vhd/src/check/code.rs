//! The stable names of what a check can find.

use std::fmt;

use super::Severity;
use crate::error::Fault;

macro_rules! codes {
    ($($name:ident $text:literal $severity:ident $repair:literal $meaning:literal;)*) => {
        /// What was found, as a name that does not change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// All of them, the worst first.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn row(self) -> (&'static str, Severity, bool, &'static str) {
                match self {
                    $(Self::$name => ($text, Severity::$severity, $repair, $meaning),)*
                }
            }
        }
    };
}

codes! {
    Unreadable "unreadable" Error false "the operating system refuses to open or read the file";
    NotAFile "not-a-file" Error false "a directory, FIFO, socket, device or symbolic link";
    TooShort "too-short" Error false "fewer bytes than a footer has";
    NoFooter "no-footer" Error false "no footer at the end and none at offset 0";
    FooterChecksum "footer-checksum" Error false "no footer has the right checksum";
    FooterVersion "footer-version" Error false "a format version other than 1.0";
    DiskType "disk-type" Error false "a disk type other than fixed, dynamic and differencing";
    SizeZero "size-zero" Error false "a virtual size of 0";
    SizeTooLarge "size-too-large" Error false "a virtual size above 2040 GiB";
    SizeNotSectors "size-not-sectors" Error false "a virtual size that is not whole sectors";
    FootersDisagree "footers-disagree" Error false "two valid footers of different images";
    InterruptedResize "interrupted-resize" Error true "cookie `v_poison`: blktap's resize did not end; repaired only if no block was moved yet";
    FixedTooShort "fixed-too-short" Error false "a fixed image whose data is cut off";
    HeaderOffset "header-offset" Error false "the dynamic header lies outside the file";
    HeaderCookie "header-cookie" Error false "no dynamic header where the footer says";
    HeaderChecksum "header-checksum" Error false "the dynamic header's checksum is wrong; there is no copy of it";
    HeaderVersion "header-version" Error false "a header version other than 1.0";
    NextRecord "next-record" Error false "the header names a further structure, which the format does not have";
    BlockSize "block-size" Error false "a block size that is no power of two from 512 B to 256 MiB";
    TableTooSmall "table-too-small" Error false "fewer entries in the block table than the disk has blocks";
    TableTooLarge "table-too-large" Error false "a block table above 64 MiB";
    TableUnaligned "table-unaligned" Error false "a block table that is not on a sector boundary";
    TableOutside "table-outside" Error false "a block table that reaches beyond the end of the file";
    MetadataOverlap "metadata-overlap" Error false "two structures share bytes, or a parent locator lies on one";
    BlockOnMetadata "block-on-metadata" Error false "a block lies on the headers, the table, the batmap or a locator";
    BlockOutside "block-outside" Error false "a block reaches beyond the end of the file";
    OverlappingBlocks "overlapping-blocks" Error false "two blocks share bytes";
    LocatorRange "locator-range" Error false "a parent locator outside the file, or longer than 64 KiB";
    OwnParent "own-parent" Error false "a differencing image that names itself";
    BatmapWrong "batmap-wrong" Error true "the batmap says a block is full whose bitmap has holes";
    ParentMissing "parent-missing" Error false "no image of the parent's UUID in the directory";
    ParentOutside "parent-outside" Error false "as parent-missing, and the locators lead out of the directory";
    ParentAmbiguous "parent-ambiguous" Error false "several files in the directory have the parent's UUID";
    ParentRaw "parent-raw" Error false "the null UUID as parent, which means a raw file, and none was named";
    ParentCycle "parent-cycle" Error false "an image is its own ancestor";
    ParentLarger "parent-larger" Error false "a child smaller than its parent";
    FooterEndMissing "footer-end-missing" Warning true "no valid footer at the end; the copy at offset 0 is used";
    FooterCopyMissing "footer-copy-missing" Warning true "no valid copy at offset 0; the footer at the end is used";
    FootersDiffer "footers-differ" Warning true "the footers are of the same image and differ; the end decides";
    FooterShort "footer-short" Warning true "a footer of 511 bytes, as old Virtual PC wrote it";
    BatmapMissing "batmap-missing" Warning true "no batmap where the creator promises one; repaired if there is room for it";
    BatmapChecksum "batmap-checksum" Warning true "the batmap's checksum is wrong, so it is ignored";
    LocatorOutside "locator-outside" Warning false "all parent locators lead out of the directory; the parent was found by its UUID";
    TableTail "table-tail" Warning false "table entries beyond the end of the disk are in use: the image cannot grow";
    UuidNull "uuid-null" Warning false "the image's own UUID is null: no child can name it";
    ChsSmaller "chs-smaller" Note false "creator vpc or qemu, and the geometry is smaller than the current size";
    FeatureBits "feature-bits" Note false "feature bits other than 0x2";
    NextRecordShort "next-record-short" Note false "the next record is 32 bits of ones, not 64";
    TimestampFuture "timestamp-future" Note false "a creation time in the future";
    SavedState "saved-state" Note false "the saved-state flag is set";
    BlockSizeUnusual "block-size-unusual" Note false "a block size other than 2 MiB";
    LocatorLength "locator-length" Note false "a parent locator longer than the room it states";
    LocatorUnknown "locator-unknown" Note false "a parent locator of a platform that is not looked at";
    LocatorsDisagree "locators-disagree" Note false "parent locators that name different files";
    FixedTail "fixed-tail" Note false "a fixed image with more bytes before its footer than the disk has";
    ChainLong "chain-long" Note false "more than 30 images, the limit of XenServer's tools";
    DeadSpace "dead-space" Note false "space of a block or more that nothing refers to";
}

impl Code {
    /// The name, e.g. `overlapping-blocks`.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        self.row().1
    }

    /// Whether [`crate::repair`] knows a remedy.
    pub fn is_repairable(self) -> bool {
        self.row().2
    }

    /// What it means, for people.
    pub fn meaning(self) -> &'static str {
        self.row().3
    }

    /// The code of a fault that stops a reader.
    pub fn of(fault: &Fault) -> Self {
        match fault {
            Fault::NotAFile => Self::NotAFile,
            Fault::TooShort(_) => Self::TooShort,
            Fault::NoFooter { .. } => Self::NoFooter,
            Fault::FooterChecksum { .. } => Self::FooterChecksum,
            Fault::Poisoned => Self::InterruptedResize,
            Fault::FootersDisagree { .. } => Self::FootersDisagree,
            Fault::FooterVersion(_) => Self::FooterVersion,
            Fault::DiskType(_) => Self::DiskType,
            Fault::SizeZero => Self::SizeZero,
            Fault::SizeTooLarge(_) => Self::SizeTooLarge,
            Fault::SizeNotSectors(_) => Self::SizeNotSectors,
            Fault::FixedTooShort { .. } => Self::FixedTooShort,
            Fault::HeaderOffset(_) => Self::HeaderOffset,
            Fault::HeaderCookie(_) => Self::HeaderCookie,
            Fault::HeaderChecksum { .. } => Self::HeaderChecksum,
            Fault::HeaderVersion(_) => Self::HeaderVersion,
            Fault::NextRecord(_) => Self::NextRecord,
            Fault::BlockSize(_) => Self::BlockSize,
            Fault::TableTooSmall { .. } => Self::TableTooSmall,
            Fault::TableTooLarge(_) => Self::TableTooLarge,
            Fault::TableUnaligned(_) => Self::TableUnaligned,
            Fault::TableOutside { .. } => Self::TableOutside,
            Fault::MetadataOverlap { .. } => Self::MetadataOverlap,
            Fault::BlockOnMetadata { .. } => Self::BlockOnMetadata,
            Fault::BlockOutside { .. } => Self::BlockOutside,
            Fault::BlocksOverlap { .. } => Self::OverlappingBlocks,
            Fault::Locator { .. } => Self::LocatorRange,
            Fault::OwnParent => Self::OwnParent,
            Fault::TableTail(_) => Self::TableTail,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Code;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_has_a_name_of_its_own_and_the_worst_come_first() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.is_sorted_by_key(|code| std::cmp::Reverse(code.severity())));
        for code in Code::ALL {
            let name = code.as_str();
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}");
        }
    }
}
