bitflags::bitflags! {
    /// Lock flags.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct LkFlags: u32 {
        /// A lock of `flock(2)`, not of `fcntl(2)`.
        const FUSE_LK_FLOCK = 1 << 0;
    }
}
