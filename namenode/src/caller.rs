//! As whom somebody acts: what a client says of its user counts for nothing against its certificate.

use cairn_host::tls::peer::{Caller, Kind, Peer, User};
use cairn_proto::fs::{Cred, Mutation, clone_range, file_commit, mutation};

/// Whether it may ask the namespace at all: nodes have no business there.
pub fn may_converse(caller: &Caller) -> bool {
    match caller {
        Caller::Unchecked => true,
        Caller::Checked(peer) => peer.get().is_some_and(|peer| matches!(peer.kind, Kind::User(_))),
    }
}

/// Who asks. Root, and who may act for all, are whom they say; everybody else is whom their certificate says, and chooses
/// at most which of their groups comes first.
pub fn acting(caller: &Caller, said: Option<Cred>) -> Option<Cred> {
    match caller.peer() {
        Some(Peer { kind: Kind::User(user), .. }) if !user.is_super() => Some(bound(user, said.as_ref())),
        _ => said,
    }
}

fn bound(user: &User, said: Option<&Cred>) -> Cred {
    let gid = said.map(|said| said.gid).filter(|gid| user.groups.contains(gid)).unwrap_or(user.gid);
    let groups = user.groups.iter().copied().chain([user.gid]).filter(|group| *group != gid).collect();
    Cred { uid: user.uid, gid, groups }
}

/// Has what a mutation makes belong to whoever asks: the client knows its user's number on its own machine only.
pub fn claim(caller: &Caller, cred: Option<&Cred>, mutation: Option<&mut Mutation>) {
    let bound = matches!(caller.peer(), Some(Peer { kind: Kind::User(user), .. }) if !user.is_super());
    if let (true, Some(cred), Some(op)) = (bound, cred, mutation.and_then(|mutation| mutation.op.as_mut())) {
        claim_op(cred, op);
    }
}

fn claim_op(cred: &Cred, op: &mut mutation::Op) {
    use mutation::Op;
    let own = |uid: &mut u32, gid: &mut u32| {
        *uid = cred.uid;
        if !cred.groups.contains(gid) {
            *gid = cred.gid;
        }
    };
    match op {
        Op::Create(ask) => own(&mut ask.uid, &mut ask.gid),
        Op::Mkdir(ask) => own(&mut ask.uid, &mut ask.gid),
        Op::Mknod(ask) => own(&mut ask.uid, &mut ask.gid),
        Op::Symlink(ask) => own(&mut ask.uid, &mut ask.gid),
        Op::CloneRange(ask) => {
            if let Some(clone_range::Target::Create(ask)) = &mut ask.target {
                own(&mut ask.uid, &mut ask.gid);
            }
        }
        Op::Commit(ask) => {
            for file in &mut ask.files {
                if let Some(file_commit::Target::Create(ask)) = &mut file.target {
                    own(&mut ask.uid, &mut ask.gid);
                }
            }
        }
        Op::Series(ask) => {
            // One within another is refused later.
            let ops = ask.deeds.iter_mut().filter_map(|deed| deed.mutation.as_mut()?.op.as_mut());
            ops.filter(|op| !matches!(op, Op::Series(_))).for_each(|op| claim_op(cred, op));
        }
        _ => {}
    }
}

/// Whose a session is. A session has rights of its own, such as to its chunks, so nobody else may speak under it.
pub fn owner(caller: &Caller) -> String {
    match caller {
        Caller::Unchecked => String::new(),
        Caller::Checked(peer) => peer.get().map(Peer::to_string).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use super::*;

    fn caller(kind: Kind) -> Caller {
        Caller::Checked(Arc::new(OnceLock::from(Peer { name: "x".into(), kind })))
    }

    fn user(uid: u32, proxy: bool) -> Caller {
        caller(Kind::User(User { uid, gid: 100, groups: vec![7], proxy }))
    }

    #[test]
    fn what_is_made_belongs_to_who_asks() {
        use cairn_proto::fs::{CommitExtents, CreateFile, Deed, FileCommit, Mkdir, Series};
        let made =
            |gid| Mutation { op: Some(mutation::Op::Mkdir(Mkdir { uid: 0, gid, ..Mkdir::default() })) };
        let create = CreateFile { uid: 5, gid: 5, ..CreateFile::default() };
        let target = Some(file_commit::Target::Create(create));
        let files = vec![FileCommit { target, ..FileCommit::default() }];
        let commit = Mutation { op: Some(mutation::Op::Commit(CommitExtents { files })) };
        let deeds =
            [made(7), made(0), commit].map(|mutation| Deed { mutation: Some(mutation), ..Deed::default() });
        let series = Mutation { op: Some(mutation::Op::Series(Series { deeds: deeds.into() })) };
        let claimed = |caller: &Caller| {
            let mut series = series.clone();
            claim(caller, acting(caller, Some(Cred::default())).as_ref(), Some(&mut series));
            let Some(mutation::Op::Series(series)) = series.op else { unreachable!() };
            let ops = series.deeds.into_iter().map(|deed| deed.mutation.and_then(|mutation| mutation.op));
            let owner = |op| match op {
                Some(mutation::Op::Mkdir(ask)) => (ask.uid, ask.gid),
                Some(mutation::Op::Commit(ask)) => match &ask.files[0].target {
                    Some(file_commit::Target::Create(ask)) => (ask.uid, ask.gid),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            ops.map(owner).collect::<Vec<_>>()
        };
        assert_eq!(claimed(&user(1000, false)), [(1000, 7), (1000, 100), (1000, 100)]);
        assert_eq!(claimed(&user(1000, true)), [(0, 7), (0, 0), (5, 5)]);
    }

    #[test]
    fn the_certificate_says_who_asks() {
        let root = Some(Cred { uid: 0, gid: 0, groups: vec![4] });
        let anna = Cred { uid: 1000, gid: 100, groups: vec![7] };
        assert_eq!(acting(&user(1000, false), root.clone()), Some(anna.clone()));
        assert_eq!(acting(&user(1000, false), None), Some(anna));
        let in_seven = acting(&user(1000, false), Some(Cred { uid: 1, gid: 7, groups: vec![] }));
        assert_eq!(in_seven, Some(Cred { uid: 1000, gid: 7, groups: vec![100] }));
        for all in [user(1000, true), user(0, false), Caller::Unchecked] {
            assert_eq!(acting(&all, root.clone()), root);
        }
        let node = caller(Kind::Node(cairn_host::tls::peer::Roles { namenode: true, datanode: true }));
        assert!(!may_converse(&node) && !may_converse(&Caller::unknown()) && may_converse(&user(1, false)));
    }
}
