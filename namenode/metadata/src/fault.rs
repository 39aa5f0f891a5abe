//! Why an operation did not happen.

use cairn_proto::{Error, ErrorCode};

use crate::store::StoreError;

/// A refusal is an outcome like any other and is the same on every replica; a store failure stops the node.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Error),
    Store(StoreError),
}

pub(crate) type Fallible<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Refused(error)
    }
}

impl From<ErrorCode> for Fault {
    fn from(code: ErrorCode) -> Fault {
        Fault::Refused(code.into())
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

/// Splits a result into what a client is told and what stops the node.
pub(crate) fn settle<T>(result: Fallible<T>) -> Result<Result<T, Error>, StoreError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Fault::Refused(error)) => Ok(Err(error)),
        Err(Fault::Store(error)) => Err(error),
    }
}
