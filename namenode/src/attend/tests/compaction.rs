//! Compaction from the scan to the last deletion.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{self, ClearRange, GetLayout, answer, query};

use super::*;

fn compacting() -> Settings {
    Settings { compaction: true, compaction_after: Duration::from_millis(60), ..settings() }
}

impl Bed {
    /// The extents of the file that was written with `chunk`.
    fn extents(&self, chunk: u64) -> Vec<Extent> {
        let at = Some(NodeRef { inode: ROOT_INODE, path: format!("f{chunk}").into_bytes().into() });
        let ask = GetLayout { at, length: u64::MAX, ..GetLayout::default() };
        let ask = fs::Query { op: Some(query::Op::Layout(ask)) };
        let mut layout = fs::Layout::default();
        let look = &mut |view: &dyn cairn_metadata::store::View| {
            match cairn_metadata::answer(view, &Cred::default(), &ask)?.result {
                Some(answer::Result::Layout(found)) => layout = found,
                other => panic!("{other:?}"),
            }
            Ok(())
        };
        self.store.read(look).unwrap();
        layout.extents
    }

    fn inode_of(&self, chunk: u64) -> u64 {
        let mut inode = 0;
        let look = &mut |view: &dyn cairn_metadata::store::View| {
            let name = format!("f{chunk}");
            inode = cairn_metadata::records::dentry(view, ROOT_INODE, name.as_bytes())?.unwrap().inode;
            Ok(())
        };
        self.store.read(look).unwrap();
        inode
    }

    fn all_chunks(&self) -> Vec<(u64, Chunk)> {
        (1..200).filter_map(|id| Some((id, self.chunk(id)?))).collect()
    }

    /// Every chunk is live and whole, and the disks hold nothing else.
    fn is_clean(&self, nodes: &[u32]) -> bool {
        let chunks = self.all_chunks();
        let known: BTreeSet<u64> = chunks.iter().map(|(id, _)| *id).collect();
        let is_whole = |(id, chunk): &(u64, Chunk)| {
            chunk.live_bytes > 0
                && chunk.dropping.is_empty()
                && chunk.replicas.len() == 3
                && chunk.blake3.len() == 32
                && self.holders(*id) == chunk.replicas.iter().copied().collect()
        };
        let disks: BTreeSet<u64> = nodes
            .iter()
            .flat_map(|node| self.disk(*node).lock().unwrap().keys().copied().collect::<Vec<_>>())
            .collect();
        chunks.iter().all(is_whole) && disks == known
    }

    #[track_caller]
    fn assert_sound(&self) {
        let look = &mut |view: &dyn cairn_metadata::store::View| {
            assert_eq!(cairn_metadata::check::check(view)?, Vec::<String>::new());
            Ok(())
        };
        self.store.read(look).unwrap();
    }

    fn info(&self) -> fs::CompactionInfo {
        self.datanodes.0.with(None, |leading, _| leading.compactor.info(&leading.settings)).unwrap()
    }
}

#[tokio::test]
async fn small_chunks_become_one_and_the_old_ones_go() {
    let (mut bed, _fakes) = Bed::with_settings(3, compacting()).await;
    let chunks: Vec<u64> = (0..12).map(|_| bed.write()).collect();
    bed.until("one is left", |bed| bed.all_chunks().len() == 1 && bed.is_clean(&[1, 2, 3])).await;
    let (new, record) = bed.all_chunks().remove(0);
    assert_eq!((record.length, record.live_bytes), (12 * LENGTH, 12 * LENGTH));
    let mut offsets: Vec<u64> = chunks
        .iter()
        .map(|chunk| {
            let extents = bed.extents(*chunk);
            assert_eq!((extents.len(), extents[0].chunk, extents[0].length), (1, new, LENGTH));
            extents[0].chunk_offset
        })
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..12).map(|number| number * LENGTH).collect::<Vec<_>>());
    bed.assert_sound();
    let info = bed.info();
    assert_eq!((info.chunks_emptied, info.bytes_copied), (12, 12 * LENGTH));
    bed.until("no garbage is counted", |bed| bed.info().garbage_bytes == 0).await;
}

#[tokio::test]
async fn garbage_inside_a_chunk_comes_back() {
    let (mut bed, _fakes) = Bed::with_settings(4, compacting()).await;
    let chunk = bed.write();
    let other = bed.write();
    let inode = bed.inode_of(chunk);
    bed.until("sealed", |bed| bed.is_whole(chunk, &[1, 2, 3, 4])).await;
    bed.run(Op::ClearRange(ClearRange { inode, offset: 100, length: 600, ..ClearRange::default() }));
    bed.until("compacted", |bed| bed.chunk(chunk).is_none() && bed.is_clean(&[1, 2, 3, 4])).await;
    let extents = bed.extents(chunk);
    let new = extents[0].chunk;
    let expected = [
        Extent { file_offset: 0, chunk: new, chunk_offset: 0, length: 100 },
        Extent { file_offset: 700, chunk: new, chunk_offset: 100, length: 300 },
    ];
    assert_eq!(extents, expected);
    assert_eq!(bed.extents(other)[0].chunk, other, "nothing is wrong with it");
    bed.assert_sound();
}

#[tokio::test]
async fn failing_and_dying_gatherers_are_replaced() {
    let (mut bed, mut fakes) = Bed::with_settings(5, compacting()).await;
    *fakes[1].failing.lock().unwrap() = 1;
    *fakes[2].failing.lock().unwrap() = 1;
    for _ in 0..10 {
        bed.write();
    }
    bed.until("begun", |bed| bed.info().in_flight > 0).await;
    drop(fakes.remove(0));
    // A dead node's disk is forgotten as far as this test goes.
    bed.until("one is left", |bed| {
        let chunks = bed.all_chunks();
        chunks.len() == 1 && bed.is_whole_of(chunks[0].0, 10 * LENGTH)
    })
    .await;
    fakes.push(bed.start(1).await.unwrap());
    bed.until("all is tidy", |bed| bed.is_clean(&[1, 2, 3, 4, 5])).await;
    bed.assert_sound();
}

impl Bed {
    fn is_whole_of(&self, chunk: u64, length: u64) -> bool {
        self.chunk(chunk).is_some_and(|record| record.live_bytes == length && record.replicas.len() == 3)
    }
}

#[tokio::test]
async fn a_leader_may_die_at_any_moment_and_nothing_is_left_behind() {
    let (mut bed, mut fakes) = Bed::with_settings(3, compacting()).await;
    let chunks: Vec<u64> = (0..9).map(|_| bed.write()).collect();
    for term in 2..8 {
        // Each leader gets a little further.
        tokio::time::sleep(Duration::from_millis(40 * (term - 1))).await;
        bed.datanodes.follow().await;
        bed.assert_sound();
        bed.datanodes.lead(term).await;
        fakes.clear();
        for number in 1..=3 {
            fakes.push(bed.start(number).await.unwrap());
        }
    }
    bed.until("one is left", |bed| bed.all_chunks().len() == 1 && bed.is_clean(&[1, 2, 3])).await;
    let live: u64 = chunks.iter().flat_map(|chunk| bed.extents(*chunk)).map(|extent| extent.length).sum();
    assert_eq!(live, 9 * LENGTH);
    bed.assert_sound();
}

#[tokio::test]
async fn what_is_switched_off_does_nothing() {
    let (mut bed, _fakes) = Bed::with_settings(3, Settings { compaction: false, ..compacting() }).await;
    let chunks: Vec<u64> = (0..9).map(|_| bed.write()).collect();
    bed.until("seen", |bed| bed.info().candidates == 9).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(chunks.iter().all(|chunk| bed.chunk(*chunk).is_some_and(|record| record.live_bytes == LENGTH)));
    assert!(!bed.info().enabled);
}
