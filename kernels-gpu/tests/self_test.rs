//! The facade's self-test kernel in the emulator: it passes every detector, and every schedule gives one answer, with
//! clusters and without.
//!
//! `cargo xtask build-ptx --features self-test --out FOLDER` builds the same kernel for a device.

use rfdetr_post_kernels::self_test::{BLOCK, CLUSTER, COUNTERS, SHARED_BYTES, SelfTestArgs, WORDS, facade_self_test};
use rfdetr_post_kernels::simt::emulator::{Device, Options};

const GRID: u32 = 3 * CLUSTER;

/// Output, counters and vectors, one after the other: what a device must give too, up to `ex2_approx_ftz`.
fn answer(seed: u64, has_clusters: bool) -> Vec<u32> {
    let threads = (GRID * BLOCK) as usize;
    let mut device = Device::new(seed);
    let input: Vec<u32> = (0..threads as u32).map(|idx| idx.wrapping_mul(2_654_435_761) >> 20).collect();
    let vectors: Vec<[u32; 4]> = (0..threads as u32).map(|idx| [idx, idx + 1, idx * 2, idx * 3]).collect();
    let args = SelfTestArgs {
        input: device.arena.upload_slice(&input),
        output: device.arena.alloc_zeroed(threads * WORDS * 4),
        counters: device.arena.alloc_zeroed(COUNTERS * 4),
        vectors: device.arena.upload_slice(&vectors),
        table: [3, 1, 4, 1, 5, 9, 2, 6],
    };
    let launch = facade_self_test::launch(args, GRID, BLOCK, SHARED_BYTES);
    let launch = if has_clusters { launch } else { launch.without_clusters() };
    device.run(&[launch], Options::default()).unwrap_or_else(|fault| panic!("{fault}"));
    let mut words = device.arena.download_slice::<u32>(args.output, threads * WORDS);
    words.extend(device.arena.download_slice::<u32>(args.counters, COUNTERS));
    words.extend(device.arena.download_slice::<u32>(args.vectors, threads * 4));
    words
}

#[test]
fn every_schedule_gives_one_answer() {
    assert_eq!(facade_self_test::INFO.cluster_blocks, CLUSTER);
    assert_ne!(answer(0, false), answer(0, true), "the kernel tells its cluster");
    // What sm_75's PTX must answer on any device, and what sm_90's must.
    for (has_clusters, suffix) in [(false, "sm_75"), (true, "sm_90")] {
        let first = answer(0, has_clusters);
        for seed in 1..32 {
            assert_eq!(answer(seed, has_clusters), first, "{suffix}, seed {seed}");
        }
        // Written where asked, so that another process can compare a device with it.
        if let Some(path) = std::env::var_os("SELF_TEST_OUT") {
            let bytes: Vec<u8> = first.iter().flat_map(|word| word.to_le_bytes()).collect();
            std::fs::write(std::path::Path::new(&path).with_extension(suffix), bytes).unwrap();
        }
    }
}
