//! Ranges of a file that are changed without moving a byte: `fallocate` and `copy_file_range`.
//!
//! The kernel writes dirty pages of the ranges back before it asks, and drops those of the changed range afterwards.

use cairn_proto::limits::MAX_FILE_SIZE;
use cairn_proto::{ErrorCode, Result};

use crate::handles::FileHandle;
use crate::inodes::OpenInode;
use crate::view::{Caller, View};

/// What `fallocate` is to do to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Have it there. Nothing is reserved: space is only taken by what is written.
    Room { grow: bool },
    /// Have it read as zeros.
    Zeros { grow: bool },
}

impl Wanted {
    fn from_mode(mode: i32) -> Result<Wanted> {
        const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH_HOLE_AND_KEEP_SIZE: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
        const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_RANGE_AND_KEEP_SIZE: i32 = ZERO_RANGE | KEEP_SIZE;
        match mode {
            0 => Ok(Wanted::Room { grow: true }),
            KEEP_SIZE => Ok(Wanted::Room { grow: false }),
            ZERO_RANGE => Ok(Wanted::Zeros { grow: true }),
            PUNCH_HOLE_AND_KEEP_SIZE | ZERO_RANGE_AND_KEEP_SIZE => Ok(Wanted::Zeros { grow: false }),
            _ => Err(ErrorCode::NotSupported.because(format!("fallocate mode {mode:#x}"))),
        }
    }
}

impl View {
    /// Changes what a range of a file takes up, as `mode` says.
    pub(crate) async fn fallocate(
        &self,
        caller: Caller,
        handle: &FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        let wanted = Wanted::from_mode(mode)?;
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= MAX_FILE_SIZE)
            .ok_or_else(|| ErrorCode::FileTooBig.because("fallocate"))?;
        self.may_use(handle).await?;
        self.strip_for(caller, &handle.open).await?;
        let epoch = self.epoch();
        let file = &handle.open.file;
        let attr = match wanted {
            Wanted::Room { grow } => file.allocate(grow.then_some(end)).await?,
            Wanted::Zeros { grow } => file.clear_range(offset, length, grow).await?,
        };
        handle.open.learn(&attr, epoch);
        Ok(())
    }

    /// Lets `to` share a range of `from`. Returns how many bytes, which may be fewer than asked.
    pub(crate) async fn copy_file_range(
        &self,
        caller: Caller,
        (from, offset): (&FileHandle, u64),
        (to, to_offset): (&FileHandle, u64),
        length: u64,
    ) -> Result<u32> {
        self.may_use(from).await?;
        self.may_use(to).await?;
        self.strip_for(caller, &to.open).await?;
        let length = length.min(u64::from(u32::MAX));
        let cloned = from.open.file.clone_range(offset, &to.open.file, to_offset, length).await?;
        u32::try_from(cloned).map_err(|_| ErrorCode::Malformed.because("more was cloned than asked"))
    }

    /// The kernel leaves the set-id bits to us. Unlike for a write it does not say when, and would go on showing them.
    async fn strip_for(&self, caller: Caller, open: &OpenInode) -> Result<()> {
        if caller.uid != 0 && self.strip_privileges(open).await? {
            self.forget_attributes(open.file.inode());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_linux() {
        assert_eq!(Wanted::from_mode(0), Ok(Wanted::Room { grow: true }));
        assert_eq!(Wanted::from_mode(1), Ok(Wanted::Room { grow: false }));
        assert_eq!(Wanted::from_mode(3), Ok(Wanted::Zeros { grow: false }));
        assert_eq!(Wanted::from_mode(0x10), Ok(Wanted::Zeros { grow: true }));
        assert_eq!(Wanted::from_mode(0x11), Ok(Wanted::Zeros { grow: false }));
        // A hole without keeping the size, collapsing, inserting, unsharing: not offered.
        for mode in [2, 8, 0x20, 0x41, -1] {
            assert_eq!(Wanted::from_mode(mode).unwrap_err().code, ErrorCode::NotSupported);
        }
    }
}
