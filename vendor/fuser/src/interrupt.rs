//! What becomes of an interrupt.

/// What a filesystem makes of the kernel's word that whoever waits for a request was sent a signal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interrupted {
    /// Interrupts are not supported: the kernel sends no more of them.
    Unsupported,
    /// The filesystem knows of the request and answers it in its own time.
    Noted,
    /// The request is not known: either it was answered, and the kernel ignores the rest, or it has not come to the
    /// filesystem yet, and the kernel sends the interrupt again.
    Unknown,
}
