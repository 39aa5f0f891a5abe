//! Sessions: a client's right to change things, and the memory that makes its mutations happen once.

use std::ops::ControlFlow;

use cairn_proto::fs::{Command, OpenSession, Outcome, SessionOpened, outcome};
use cairn_proto::store::Session;
use cairn_proto::{Error, ErrorCode};
use prost::Message;

use crate::core::Core;
use crate::fault::Fallible;
use crate::namespace::open;
use crate::store::{StoreError, Table, View};
use crate::{chunk, key, lock, records};

/// Longest description of a client, in bytes.
const MAX_CLIENT: usize = 256;

pub(crate) fn begin(core: &mut Core, ask: &OpenSession) -> Fallible<outcome::Result> {
    if ask.client.len() > MAX_CLIENT {
        return Err(ErrorCode::TooLarge.because("the client's description").into());
    }
    let id = core.meta.next_session;
    core.meta.next_session += 1;
    core.meta.sessions += 1;
    let session = Session {
        client: ask.client.clone(),
        owner: ask.owner.clone(),
        opened_ns: core.now,
        ..Session::default()
    };
    core.set_record(Table::Session, &key::one(id), &session);
    Ok(outcome::Result::Session(SessionOpened { session: id }))
}

/// Ends a session: its chunks are sealed before anything that others may wait for is released.
pub(crate) fn end(core: &mut Core, id: u64) -> Fallible<outcome::Result> {
    if records::session(core, id)?.is_none() {
        return Ok(crate::apply::NOTHING);
    }
    chunk::seal_all_of(core, id)?;
    lock::release_all_of(core, id)?;
    open::close_all_of(core, id)?;
    for seq in records::seconds(core, Table::Outcome, id)? {
        core.remove(Table::Outcome, &key::two(id, seq));
    }
    core.remove(Table::Session, &key::one(id));
    core.meta.sessions -= 1;
    Ok(crate::apply::NOTHING)
}

/// What is known of a command before it runs.
pub(crate) enum Seen {
    /// Never: run it under this session.
    New,
    /// It ran, or may not run: this is its outcome.
    Settled(Outcome),
}

pub(crate) fn seen(core: &Core, command: &Command) -> Result<Seen, StoreError> {
    let refuse = |error: Error| Ok(Seen::Settled(refusal(error)));
    let Some(session) = records::session(core, command.session)? else {
        return refuse(ErrorCode::SessionExpired.because(format!("session {}", command.session)));
    };
    if command.seq <= session.acked {
        return refuse(ErrorCode::Duplicate.because(format!("request {}", command.seq)));
    }
    match core.get(Table::Outcome, &key::two(command.session, command.seq))? {
        Some(bytes) => Ok(Seen::Settled(records::decode(Table::Outcome, &bytes)?)),
        None => Ok(Seen::New),
    }
}

/// Records the outcome of a command that ran, and forgets those the client has acknowledged.
pub(crate) fn remember(core: &mut Core, command: &Command, outcome: &Outcome) -> Result<(), StoreError> {
    let id = command.session;
    // The command may have changed the session, or closed it.
    let Some(mut session) = records::session(core, id)? else { return Ok(()) };
    core.set(Table::Outcome, &key::two(id, command.seq), outcome.encode_to_vec());
    let acked = command.acked.min(command.seq.saturating_sub(1));
    if acked <= session.acked {
        return Ok(());
    }
    let mut old = Vec::new();
    // From the first that is not forgotten yet: a log-structured store would wade through the removed ones.
    core.scan(Table::Outcome, &key::two(id, session.acked + 1), &key::two(id, acked + 1), &mut |at, _| {
        old.push(at.to_vec());
        ControlFlow::Continue(())
    })?;
    for at in old {
        core.remove(Table::Outcome, &at);
    }
    session.acked = acked;
    core.set_record(Table::Session, &key::one(id), &session);
    Ok(())
}

pub(crate) fn refusal(error: Error) -> Outcome {
    Outcome { result: Some(outcome::Result::Error(error.into())) }
}
