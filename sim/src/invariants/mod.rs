//! What must be true, whatever happened: one file each.

pub mod acknowledged;
pub mod garbage;
pub mod healing;
pub mod namespace;
pub mod once;
pub mod registers;
pub mod replicas;
pub mod winners;

/// Asks again while a well cluster cannot answer: a leader may change at any time.
macro_rules! answered {
    ($ask:expr) => {{
        let mut left = 5;
        loop {
            match $ask.await {
                Err(error) if left > 0 && error.code.reaction() != cairn_proto::error::Reaction::Fail => {
                    left -= 1;
                    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                }
                result => break result,
            }
        }
    }};
}

use answered;
