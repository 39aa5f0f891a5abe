//! A mount's memory does not grow with what is open on it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::mounting::mounted;

/// Most memory of a mount in this test: 64 MiB of written data, 32 MiB of layouts, 40 MiB of uncommitted pieces and the
/// requests on their way, with room for what the allocator keeps.
const BOUND: u64 = 256 << 20;
const FILES: usize = 1_000;

#[test]
fn a_thousand_open_files_take_bounded_memory() {
    let Some((cluster, point)) = mounted() else { return };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
    let open = |number: usize| {
        let path = point.join(format!("f{number:04}"));
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
    };
    let files: Vec<_> = (0..FILES).map(open).collect();
    let byte = |number: usize, round: usize| (number * 7 + round) as u8 | 1;
    // Small pieces with holes between them, round after round over all files.
    for round in 0..16 {
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(&[byte(number, round); 16], round as u64 * 8192).unwrap();
        }
    }
    // Larger pieces: more altogether than a mount may hold unwritten.
    for (number, file) in files.iter().enumerate() {
        file.write_all_at(&[byte(number, 99); 200_000], 1 << 20).unwrap();
    }
    // Read from the cluster: the kernel is told to drop what it has cached.
    for (number, file) in files.iter().enumerate() {
        nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut content = vec![0; (1 << 20) + 200_000];
        file.read_exact_at(&mut content, 0).unwrap();
        for round in 0..16 {
            let at = round * 8192;
            assert_eq!(content[at..at + 16], [byte(number, round); 16]);
            assert!(content[at + 16..at + 8192].iter().all(|&byte| byte == 0));
        }
        assert!(content[1 << 20..].iter().all(|&seen| seen == byte(number, 99)));
    }
    let peak = cluster.peak_memory("mount");
    println!("the mount took at most {} MiB", peak >> 20);
    assert!(peak <= BOUND, "{} MiB", peak >> 20);
    drop(files);
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}
