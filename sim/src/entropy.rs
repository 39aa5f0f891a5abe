//! The operating system's randomness, replaced by the seed's.
//!
//! Hash maps, identifiers, backoff and election timeouts all draw from `getrandom(2)` in the end. Defining that symbol
//! here makes all of them repeatable without a word in the code that ships. A run must begin in a fresh process and
//! thread, because generators keep what they drew once.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on the process draws from `seed`.
pub fn seed(seed: u64) {
    STATE.store(seed ^ 0x51_7c_c1_b7_27_22_0a_95, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
}

/// Whether randomness is in fact repeatable in this build.
pub fn is_repeatable() -> bool {
    let draw = || {
        seed(1);
        std::thread::spawn(|| RandomState::new().hash_one(1)).join().ok()
    };
    let (one, other) = (draw(), draw());
    SEEDED.store(false, Ordering::Relaxed);
    one.is_some() && one == other
}

/// Fills a buffer as `getrandom(2)` does.
///
/// # Safety
/// `buffer` must be valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the arguments are the caller's own.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as libc::ssize_t;
    }
    let mut at = 0;
    while at < length {
        let mixed = crate::random::mix(STATE.fetch_add(crate::random::STEP, Ordering::Relaxed)).to_le_bytes();
        let part = mixed.len().min(length - at);
        // SAFETY: `at + part` is at most `length`, for which the caller vouches.
        unsafe { std::ptr::copy_nonoverlapping(mixed.as_ptr(), buffer.cast::<u8>().add(at), part) };
        at += part;
    }
    length as libc::ssize_t
}
