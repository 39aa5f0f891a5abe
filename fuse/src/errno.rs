//! What a program sees of an error, and what the log keeps of it.

use cairn_host::request::RequestId;
use cairn_proto::Error;
use fuser::Errno;

/// The error number a system call on `inode` reports for `error`.
///
/// A number says little about a cluster, so the log says why whenever it is one a program cannot act on.
pub(crate) fn errno(operation: &'static str, inode: u64, error: &Error) -> Errno {
    let number = match error.code.errno() {
        // To a program EAGAIN means "not without waiting", and it would ask again at once, for ever.
        // The client has waited already.
        libc::EAGAIN => libc::EIO,
        number => number,
    };
    if matches!(number, libc::EIO | libc::EPROTO | libc::EMSGSIZE | libc::ETIMEDOUT | libc::ENOSPC) {
        tracing::warn!(request = %RequestId::current(), operation, inode, code = ?error.code, "{error}");
    } else {
        tracing::trace!(operation, inode, code = ?error.code, "{error}");
    }
    Errno::from_i32(number)
}

#[cfg(test)]
mod tests {
    use cairn_proto::ErrorCode;

    use super::*;

    #[test]
    fn posix_codes_are_passed_through() {
        for (code, number) in [
            (ErrorCode::NotFound, libc::ENOENT),
            (ErrorCode::Exists, libc::EEXIST),
            (ErrorCode::NotEmpty, libc::ENOTEMPTY),
            (ErrorCode::Stale, libc::ESTALE),
            (ErrorCode::NoSpace, libc::ENOSPC),
            (ErrorCode::NotSupported, libc::EOPNOTSUPP),
            (ErrorCode::Timeout, libc::ETIMEDOUT),
            (ErrorCode::Busy, libc::EBUSY),
        ] {
            assert_eq!(errno("test", 1, &code.into()).code(), number, "{code:?}");
        }
    }

    #[test]
    fn no_code_asks_a_program_to_try_again_at_once() {
        for &code in ErrorCode::ALL {
            let number = errno("test", 1, &code.into()).code();
            assert!(number > 0 && number != libc::EAGAIN, "{code:?} is {number}");
        }
        assert_eq!(errno("test", 1, &ErrorCode::NoLeader.into()).code(), libc::EIO);
    }
}
