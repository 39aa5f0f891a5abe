//! What the kernel asks for, one family a file. Nothing here knows how an answer is sent.

pub(crate) mod attributes;
pub(crate) mod directories;
pub(crate) mod entries;
pub(crate) mod files;
pub(crate) mod locks;
pub(crate) mod ranges;
pub(crate) mod space;
pub(crate) mod xattrs;
