//! What every byte on the way to three disks goes through in each process.

use std::hint::black_box;

use cairn_proto::checksum::{BlockCrc, crc32c, piece_crcs};
use cairn_proto::data::{Append, Request, request};
use cairn_proto::frame;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn checksums(criterion: &mut Criterion) {
    let data = vec![0x5a_u8; 1 << 20];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("CRC-32C of 1 MiB", |bench| bench.iter(|| black_box(crc32c(&data))));
    group.bench_function("of each block of 1 MiB, off the blocks' edges", |bench| {
        bench.iter(|| black_box(piece_crcs(4_096, &data)))
    });
    group.throughput(Throughput::Bytes(100));
    group.bench_function("of an append of 100 bytes", |bench| {
        let mut tail = BlockCrc::default();
        bench.iter(|| black_box(tail.append(&data[..100])))
    });
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let append = Append { offset: 1 << 20, crcs: vec![7; 17] };
    let request = Request { kind: Some(request::Kind::Append(append)), request: 7 };
    let head = frame::encode_head(&request, 1 << 20).expect("a head");
    criterion.bench_function("encode an append's head", |bench| {
        bench.iter(|| black_box(frame::encode_head(&request, 1 << 20)))
    });
    criterion.bench_function("decode it", |bench| {
        bench.iter(|| black_box(frame::decode_header::<Request>(&head[frame::PREFIX..])))
    });
}

criterion_group!(benches, checksums, frames);
criterion_main!(benches);
