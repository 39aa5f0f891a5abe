//! The operating system's randomness and time of day, replaced by the seed's.
//!
//! Hash maps, identifiers, backoff and election timeouts all draw from `getrandom(2)` in the end. Defining that symbol
//! here makes all of them repeatable without a word in the code that ships. A run must begin in a fresh process and
//! thread, because generators keep what they drew once.
//!
//! The time of day stands still: HTTP servers put it into their answers, whose sizes would follow from how busy this
//! machine is. What the cluster takes for the time comes from its simulated clocks.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on the process draws from `seed`.
pub fn seed(seed: u64) {
    STATE.store(seed ^ 0x51_7c_c1_b7_27_22_0a_95, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
}

/// Whether randomness and the time of day are in fact repeatable in this build.
pub fn is_repeatable() -> bool {
    let draw = || {
        seed(1);
        std::thread::spawn(|| RandomState::new().hash_one(1)).join().ok()
    };
    let (one, other) = (draw(), draw());
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    SEEDED.store(false, Ordering::Relaxed);
    one.is_some() && one == other && today.is_ok_and(|today| today.as_secs() == TODAY as u64)
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

/// The one time of day of every run, in seconds since the epoch.
const TODAY: libc::time_t = 1_767_225_600;

/// `clock_gettime(2)` of the C library, once it was looked up.
static REAL_CLOCK: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Reads a clock as `clock_gettime(2)` does, except for the time of day.
///
/// # Safety
/// `time` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if SEEDED.load(Ordering::Relaxed) && clock == libc::CLOCK_REALTIME {
        // SAFETY: the caller vouches for `time`.
        unsafe { time.write(libc::timespec { tv_sec: TODAY, tv_nsec: 0 }) };
        return 0;
    }
    let mut real = REAL_CLOCK.load(Ordering::Relaxed);
    if real.is_null() {
        // SAFETY: the name ends with a NUL.
        real = unsafe { libc::dlsym(libc::RTLD_NEXT, c"clock_gettime".as_ptr()) };
        REAL_CLOCK.store(real, Ordering::Relaxed);
    }
    if real.is_null() {
        // SAFETY: the arguments are the caller's own.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int;
    }
    type Function = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int;
    // SAFETY: this is the C library's function of that name and type, and the arguments are the caller's own.
    unsafe { std::mem::transmute::<*mut libc::c_void, Function>(real)(clock, time) }
}
