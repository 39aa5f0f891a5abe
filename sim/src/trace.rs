//! What happened in a run: a digest that two runs of one seed must share, and lines for people.

use std::cell::RefCell;

use crate::machine;
use crate::random::mix;

#[derive(Default)]
struct Trace {
    digest: u64,
    events: u64,
    print: bool,
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Whether events are printed from now on.
pub fn print(print: bool) {
    TRACE.with_borrow_mut(|trace| trace.print = print);
}

/// The digest of all events so far, and how many there were.
pub fn digest() -> (u64, u64) {
    TRACE.with_borrow(|trace| (trace.digest, trace.events))
}

/// Records an event.
pub fn event(what: std::fmt::Arguments<'_>) {
    let line = format!("{:>9.3} {:<4} {what}", machine::now() as f64 / 1e9, machine::current_name());
    TRACE.with_borrow_mut(|trace| {
        let words = line.as_bytes().chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        trace.digest = words.fold(trace.digest, |digest, word| mix(digest ^ word));
        trace.events += 1;
        if trace.print {
            println!("{line}");
        }
    });
}

/// Records an event, as `format!` would write it.
#[macro_export]
macro_rules! event {
    ($($what:tt)*) => { $crate::trace::event(format_args!($($what)*)) };
}
