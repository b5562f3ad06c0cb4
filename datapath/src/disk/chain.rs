//! The files of a disk as one.

use std::sync::Arc;

use vhd::{Disk, ExtentKind};

use super::drive::Options;
use super::plan::{Format, Plan};
use crate::error::Result;
use crate::export::{Extent, Piece};

/// The files of a disk, open.
pub(super) struct Chain {
    plan: Plan,
    disk: vhd::Chain,
}

impl Chain {
    pub(super) fn open(plan: &Plan, _options: &Options, _old: Option<&Arc<Self>>) -> Result<Self> {
        let layers: Vec<_> = plan
            .layers()
            .map(|layer| match layer.format {
                Format::Vhd => vhd::Layer::Vhd(&layer.path),
                Format::Raw => vhd::Layer::Raw(&layer.path),
            })
            .collect();
        let mode = if plan.read_only { vhd::Mode::Read } else { vhd::Mode::Write };
        Ok(Self { plan: plan.clone(), disk: vhd::Chain::open(&layers, mode)? })
    }

    pub(super) fn begin(&self, _options: &Options) -> Result<()> {
        Ok(())
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn leaf_id(&self) -> (u64, u64) {
        self.disk.leaf().map_or((0, 0), |leaf| leaf.info().file_id)
    }

    pub(super) fn is_direct(&self) -> bool {
        false
    }

    pub(super) fn size(&self) -> u64 {
        self.disk.size()
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.disk.read_at(offset, buf)?)
    }

    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        Ok(self.disk.write_at(offset, buf)?)
    }

    pub(super) fn zero(&self, offset: u64, length: u64, _keep_space: bool) -> Result<()> {
        Ok(self.disk.write_zeros(offset, length)?)
    }

    pub(super) fn zeroes_are_fast(&self) -> bool {
        false
    }

    pub(super) fn flush(&self) -> Result<()> {
        Ok(self.disk.flush()?)
    }

    pub(super) fn publish(&self) -> Result<()> {
        Ok(())
    }

    pub(super) fn wants_publishing(&self) -> bool {
        false
    }

    pub(super) fn end_notes(&self) -> Result<()> {
        Ok(())
    }

    pub(super) fn retire(&self, _new: &Self) {}

    pub(super) fn close(&self) -> Result<()> {
        self.flush()
    }

    pub(super) fn map(
        &self,
        _offset: u64,
        _length: u64,
        _write: bool,
    ) -> Option<(Vec<Piece>, Box<dyn Send>)> {
        None
    }

    pub(super) fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        for extent in self.disk.extents(offset, length)?.iter().take(limit) {
            let zero = extent.kind == ExtentKind::Zero;
            into.push(Extent { length: extent.length, hole: zero, zero });
        }
        Ok(())
    }
}
