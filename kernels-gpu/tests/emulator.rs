//! The emulator is checked before it checks anything: each detector has a kernel that it must catch and the nearest
//! correct one that it must pass.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the kernels here are wrong on purpose, and the emulator checks them"
)]
#![allow(clippy::if_same_then_else, reason = "two calls in two places is what divergence means")]

use rfdetr_post_kernels::simt::emulator::{Device, Fault, FaultKind, Launch, Options, Policy, Space};
use rfdetr_post_kernels::simt::global::Global;
use rfdetr_post_kernels::simt::shared::Shared;
use rfdetr_post_kernels::simt::thread::{block_idx_x, sync_threads, thread_idx_x};
use rfdetr_post_kernels::simt::warp::{self, FULL_MASK};
use rfdetr_post_kernels::simt::{cluster, fence, grid, thread};

/// Seeds under which every case runs. A detector must not depend on luck.
const SEEDS: std::ops::Range<u64> = 0..24;

fn shared(byte_offset: u32) -> Shared<u32> {
    unsafe { Shared::at(byte_offset) }
}

fn run_on(device: &mut Device, blocks: u32, lanes: u32, body: impl Fn()) -> Result<(), Fault> {
    device.run(&[Launch::closure("case", blocks, lanes, 1024, body)], Options::default()).map(|_| ())
}

/// The kernel passes under every seed.
fn passes(blocks: u32, lanes: u32, body: impl Fn()) {
    for seed in SEEDS {
        run_on(&mut Device::new(seed), blocks, lanes, &body).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// The kernel is caught under every seed, with the same kind of fault.
fn caught(blocks: u32, lanes: u32, body: impl Fn(), is_expected: impl Fn(&FaultKind) -> bool) -> Fault {
    let mut last = None;
    for seed in SEEDS {
        let fault = run_on(&mut Device::new(seed), blocks, lanes, &body).expect_err("the fault was not caught");
        assert!(is_expected(&fault.kind), "{fault}");
        last = Some(fault);
    }
    last.unwrap()
}

#[test]
fn identity_and_barrier_results() {
    passes(3, 96, || {
        assert_eq!(thread::block_dim_x(), 96);
        assert_eq!(thread::grid_dim_x(), 3);
        let lane = thread_idx_x();
        assert_eq!(thread::sync_threads_count(lane.is_multiple_of(3)), 32);
        assert!(thread::sync_threads_and(lane < 96));
        assert!(!thread::sync_threads_and(lane < 95));
        assert!(thread::sync_threads_or(lane == 17));
        assert!(!thread::sync_threads_or(lane > 95));
    });
}

#[test]
fn votes_shuffles_and_reductions() {
    passes(2, 64, || {
        let lane = warp::lane_id();
        assert_eq!(warp::warp_vote_ballot(FULL_MASK, lane.is_multiple_of(2)), 0x5555_5555);
        assert_eq!(warp::warp_shuffle_idx(FULL_MASK, lane * 3, 5), 15);
        assert_eq!(warp::warp_shuffle_up(FULL_MASK, lane, 4), if lane < 4 { lane } else { lane - 4 });
        assert_eq!(warp::warp_shuffle_down(FULL_MASK, lane, 4), if lane > 27 { lane } else { lane + 4 });
        assert_eq!(warp::warp_shuffle_xor(FULL_MASK, lane, 7), lane ^ 7);
        assert_eq!(warp::warp_reduce_add(FULL_MASK, lane), 496);
        if lane >= 16 {
            assert_eq!(warp::warp_reduce_min(0xffff_0000, lane), 16);
            assert!(warp::warp_vote_all(0xffff_0000, lane > 15));
        } else {
            assert_eq!(warp::warp_reduce_max(0x0000_ffff, lane), 15);
            assert!(!warp::warp_vote_any(0x0000_ffff, lane > 15));
        }
    });
}

#[test]
fn barrier_caught() {
    let fault = caught(
        1,
        64,
        || {
            if thread_idx_x() < 40 {
                sync_threads()
            }
        },
        |kind| *kind == FaultKind::DivergentBarrier,
    );
    assert!(fault.place.is_some() && fault.other.is_some());
    caught(
        1,
        64,
        || if thread_idx_x() < 40 { sync_threads() } else { sync_threads() },
        |kind| *kind == FaultKind::DivergentBarrier,
    );
}

#[test]
fn barrier_passes() {
    passes(2, 64, || {
        if block_idx_x() == 0 {
            sync_threads();
        }
        sync_threads();
    });
}

#[test]
fn vote_caught() {
    let missing = |kind: &FaultKind| matches!(kind, FaultKind::MissingLanes { .. });
    caught(
        1,
        32,
        || {
            if thread_idx_x() != 7 {
                warp::warp_vote_any(FULL_MASK, true);
            }
        },
        missing,
    );
    caught(
        1,
        32,
        || if thread_idx_x() < 16 { warp::sync_warp(FULL_MASK) } else { warp::sync_warp(FULL_MASK) },
        missing,
    );
    caught(
        1,
        32,
        || if thread_idx_x() < 16 { warp::sync_warp(FULL_MASK) } else { sync_threads() },
        |kind| missing(kind),
    );
    caught(1, 32, || warp::sync_warp(0xff), |kind| matches!(kind, FaultKind::LaneNotInMask { mask: 0xff }));
}

#[test]
fn vote_passes() {
    passes(1, 64, || {
        if warp::lane_id() != 7 {
            warp::warp_vote_any(!(1 << 7), true);
        }
        warp::sync_warp(FULL_MASK);
    });
}

#[test]
fn shuffle_caught() {
    let body = || {
        if thread_idx_x() < 16 {
            warp::warp_shuffle_down(0xffff, 1, 1);
        }
    };
    caught(1, 32, body, |kind| *kind == FaultKind::ShuffleFromOutside { mask: 0xffff, source: 16 });
}

#[test]
fn shuffle_passes() {
    passes(1, 32, || {
        if thread_idx_x() < 16 {
            warp::warp_shuffle_xor(0xffff, 1, 1);
        }
    });
}

#[test]
fn bounds_caught() {
    let outside = |kind: &FaultKind| matches!(kind, FaultKind::OutOfBounds { space: Space::Shared, .. });
    caught(1, 32, || unsafe { shared(0).store(256, 1) }, outside);
    let misaligned = |kind: &FaultKind| matches!(kind, FaultKind::Misaligned { .. });
    caught(1, 32, || unsafe { shared(2).store(0, 1) }, misaligned);
    let mut device = Device::new(1);
    let address = device.arena.alloc(100);
    for idx in [25, 1000, usize::MAX / 8] {
        let fault = run_on(&mut device, 1, 32, || unsafe { Global::<u32>::from_address(address).store(idx, 1) });
        assert!(matches!(fault.unwrap_err().kind, FaultKind::OutOfBounds { space: Space::Global, .. }));
    }
    let fault =
        run_on(&mut device, 1, 32, || unsafe { Global::<[u32; 4]>::from_address(address + 8).store(0, [0; 4]) });
    assert!(misaligned(&fault.unwrap_err().kind));
}

#[test]
fn bounds_pass() {
    passes(1, 32, || {
        if thread_idx_x() == 0 {
            unsafe { shared(0).store(255, 1) }
        }
    });
    let mut device = Device::new(1);
    let address = device.arena.alloc(100);
    run_on(&mut device, 1, 32, || {
        if thread_idx_x() == 0 {
            unsafe { Global::<u32>::from_address(address).store(24, 1) }
        }
    })
    .unwrap();
}

#[test]
fn uninitialized_caught() {
    let unwritten = |kind: &FaultKind| matches!(kind, FaultKind::Uninitialized { .. });
    caught(
        2,
        32,
        || unsafe {
            shared(0).load(3);
        },
        unwritten,
    );
    // Three bytes of four.
    let body = || unsafe {
        if thread_idx_x() == 0 {
            (0..3).for_each(|idx| Shared::<u8>::at(0).store(idx, 1));
            shared(0).load(0);
        }
    };
    caught(1, 32, body, unwritten);
    // What an earlier block left does not count.
    caught(
        2,
        32,
        || unsafe {
            if block_idx_x() == 0 {
                shared(0).store(thread_idx_x(), 1)
            } else {
                shared(0).load(thread_idx_x());
            }
        },
        unwritten,
    );
    let mut device = Device::new(1);
    let address = device.arena.alloc(100);
    let fault = run_on(&mut device, 1, 32, || unsafe {
        Global::<u32>::from_address(address).load(0);
    });
    assert!(unwritten(&fault.unwrap_err().kind));
}

#[test]
fn uninitialized_passes() {
    passes(2, 32, || unsafe {
        shared(0).store(thread_idx_x(), 1);
        assert_eq!(shared(0).load(thread_idx_x()), 1);
        (0..4).for_each(|idx| Shared::<u8>::at(256).store(4 * thread_idx_x() + idx, 1));
        assert_eq!(shared(256).load(thread_idx_x()), 0x0101_0101);
    });
}

fn is_race(kind: &FaultKind) -> bool {
    matches!(kind, FaultKind::Race { .. })
}

#[test]
fn shared_race_caught() {
    // Neighbors across and inside a warp, without a barrier.
    let fault = caught(
        1,
        64,
        || unsafe {
            let lane = thread_idx_x();
            shared(0).store(lane, lane);
            warp::warp_vote_any(FULL_MASK, true);
            if warp::lane_id() == 0 {
                shared(0).store(lane + 1, 0)
            }
        },
        is_race,
    );
    let other = fault.other.unwrap();
    assert_ne!(other.place, fault.place, "both places are named");
    assert_eq!(other.lanes.len(), 1);
    // `sync_warp` does not reach the other warp.
    caught(
        1,
        64,
        || unsafe {
            let lane = thread_idx_x();
            shared(0).store(lane, lane);
            warp::sync_warp(FULL_MASK);
            if lane == 0 {
                shared(0).store(63, 0)
            }
        },
        is_race,
    );
    // A write after reads of many lanes.
    caught(
        1,
        64,
        || unsafe {
            let lane = thread_idx_x();
            if lane == 0 {
                shared(0).store(0, 5)
            }
            sync_threads();
            shared(0).load(0);
            if lane == 33 {
                shared(0).store(0, 6)
            }
        },
        is_race,
    );
    // Atomic against plain.
    caught(
        1,
        64,
        || unsafe {
            if thread_idx_x() == 0 {
                shared(0).store(0, 0)
            }
            sync_threads();
            shared(0).fetch_add(0, 1);
            if thread_idx_x() == 40 {
                shared(0).load(0);
            }
        },
        is_race,
    );
    // Two lanes, one byte.
    caught(1, 32, || unsafe { Shared::<u8>::at(0).store(thread_idx_x() / 2, 1) }, is_race);
    // `sync_warp` of half a warp does not reach the other half.
    caught(
        1,
        32,
        || unsafe {
            let lane = thread_idx_x();
            shared(0).store(lane, lane);
            if lane < 16 {
                warp::sync_warp(0xffff);
                if lane == 3 {
                    shared(0).store(16, 0)
                }
            }
        },
        is_race,
    );
}

#[test]
fn shared_race_passes() {
    passes(2, 64, || unsafe {
        let lane = thread_idx_x();
        shared(0).store(lane, lane);
        sync_threads();
        assert_eq!(shared(0).load(63 - lane), 63 - lane);
        sync_threads();
        shared(0).store((lane + 1) % 64, 7);
        warp::sync_warp(FULL_MASK);
        if warp::lane_id() > 0 {
            assert_eq!(shared(0).load(lane), 7)
        }
        sync_threads();
        if lane == 0 {
            shared(0).store(0, 0)
        }
        sync_threads();
        shared(0).fetch_add(0, 1);
        sync_threads();
        assert_eq!(shared(0).load(0), 64);
        // Four lanes, the four bytes of a word.
        Shared::<u8>::at(512).store(lane, lane as u8);
        sync_threads();
        if lane < 16 {
            assert_eq!(shared(512).load(lane) & 255, lane * 4)
        }
    });
    passes(1, 32, || unsafe {
        let lane = thread_idx_x();
        shared(0).store(lane, lane);
        if lane < 16 {
            warp::sync_warp(0xffff);
            assert_eq!(shared(0).load(15 - lane), 15 - lane);
            warp::sync_warp(0xffff);
            shared(0).store(15 - lane, 0);
        }
    });
}

/// Block 0 hands a value to block 1 through a flag; the steps are given by the case.
fn hand_over(publish: impl Fn(Global<u32>), receive: impl Fn(Global<u32>)) -> Vec<Result<(), Fault>> {
    SEEDS
        .map(|seed| {
            let mut device = Device::new(seed);
            let data = device.arena.alloc(256);
            let flag = device.arena.alloc_zeroed(4);
            let (data, flag) = (Global::<u32>::from_address(data), Global::<u32>::from_address(flag));
            let body = || unsafe {
                let lane = thread_idx_x();
                if block_idx_x() == 0 {
                    data.store(lane as usize, lane + 1);
                    sync_threads();
                    if lane == 0 {
                        publish(flag)
                    }
                } else {
                    if lane == 0 {
                        receive(flag)
                    }
                    sync_threads();
                    assert_eq!(data.load(63 - lane as usize), 64 - lane);
                }
            };
            let launch = Launch::closure("hand_over", 2, 64, 0, body);
            device.run(&[launch], Options { max_resident_blocks: Some(4), ..Options::default() }).map(|_| ())
        })
        .collect()
}

fn wait_acquire(flag: Global<u32>) {
    while unsafe { flag.load_acquire(0) } == 0 {}
}

fn wait_volatile(flag: Global<u32>) {
    while unsafe { flag.load_volatile(0) } == 0 {}
}

#[test]
fn global_race_caught() {
    let cases = [
        hand_over(|flag| unsafe { flag.store_volatile(0, 1) }, wait_volatile),
        hand_over(|flag| unsafe { flag.store_release(0, 1) }, wait_volatile),
        hand_over(|flag| unsafe { flag.store_volatile(0, 1) }, wait_acquire),
        hand_over(
            |flag| unsafe {
                flag.fetch_add(0, 1);
                fence::device()
            },
            wait_acquire,
        ),
    ];
    for result in cases.iter().flatten() {
        let fault = result.as_ref().expect_err("the race was not caught");
        assert!(is_race(&fault.kind), "{fault}");
        assert_eq!((fault.block, fault.other.as_ref().unwrap().block), (1, 0), "{fault}");
    }
    // The flag itself, plainly.
    let plain = hand_over(|flag| unsafe { flag.store(0, 1) }, wait_acquire);
    assert!(plain.iter().all(|result| result.is_err()));
}

#[test]
fn global_race_passes() {
    let cases = [
        hand_over(|flag| unsafe { flag.store_release(0, 1) }, wait_acquire),
        hand_over(
            |flag| unsafe {
                flag.fetch_add_acq_rel(0, 1);
            },
            wait_acquire,
        ),
        hand_over(
            |flag| {
                fence::device();
                unsafe { flag.store_volatile(0, 1) }
            },
            |flag| {
                wait_volatile(flag);
                fence::device()
            },
        ),
        hand_over(
            |flag| {
                fence::device();
                unsafe {
                    flag.fetch_or(0, 1);
                }
            },
            wait_acquire,
        ),
        // A relaxed update between release and acquire keeps the chain.
        hand_over(
            |flag| unsafe {
                flag.store_release(0, 1);
                flag.fetch_add(0, 1);
            },
            wait_acquire,
        ),
    ];
    for result in cases.iter().flatten() {
        result.as_ref().unwrap_or_else(|fault| panic!("{fault}"));
    }
}

fn run_in_clusters(seed: u64, blocks: u32, cluster: u32, lanes: u32, body: &dyn Fn()) -> Result<(), Fault> {
    let launch = Launch::closure("case", blocks, lanes, 1024, body).clusters_of(cluster);
    Device::new(seed).run(&[launch], Options::default()).map(|_| ())
}

/// The kernel passes in clusters of two under every seed.
fn passes_in_pairs(body: impl Fn()) {
    for seed in SEEDS {
        run_in_clusters(seed, 6, 2, 64, &body).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// The kernel is caught in clusters of two under every seed; the faults.
fn caught_in_pairs(body: impl Fn(), is_expected: impl Fn(&FaultKind) -> bool) -> Vec<Fault> {
    let fault = |seed| run_in_clusters(seed, 6, 2, 64, &body).expect_err("the fault was not caught");
    let faults: Vec<Fault> = SEEDS.map(fault).collect();
    faults.iter().for_each(|fault| assert!(is_expected(&fault.kind), "{fault}"));
    faults
}

/// A block of a pair and the other.
fn pair() -> (u32, u32) {
    (cluster::block_rank(), 1 - cluster::block_rank())
}

#[test]
fn cluster_identity() {
    for (blocks, size) in [(1, 1), (3, 1), (2, 2), (6, 3), (16, 8), (24, 4)] {
        for seed in SEEDS {
            let body = || {
                assert_eq!((cluster::num_blocks(), cluster::block_rank()), (size, block_idx_x() % size));
                cluster::sync_cluster();
            };
            run_in_clusters(seed, blocks, size, 32, &body).unwrap_or_else(|fault| panic!("{fault}"));
            let launch = Launch::closure("case", blocks, 32, 0, || assert_eq!(cluster::num_blocks(), 1));
            Device::new(seed).run(&[launch.clusters_of(size).without_clusters()], Options::default()).unwrap();
        }
    }
}

#[test]
fn cluster_launch_caught() {
    for (blocks, size) in [(5, 2), (2, 4), (2, 0), (9, 9)] {
        let fault = run_in_clusters(1, blocks, size, 32, &|| {}).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::BadLaunch(_)), "{fault}");
    }
}

#[test]
fn cluster_launch_passes() {
    // Clusters of other sizes follow each other through the same slots, one that needs more than the drawn number too.
    for seed in SEEDS {
        let launches = [2, 1, 8, 4].map(|size| {
            let body = move || unsafe {
                shared(0).store(thread_idx_x(), block_idx_x());
                cluster::sync_cluster();
                let next = (cluster::block_rank() + 1) % size;
                let begin = block_idx_x() / size * size;
                assert_eq!(shared(0).load_remote(next, 31 - thread_idx_x()), begin + next);
                cluster::sync_cluster();
            };
            Launch::closure("case", 16, 32, 128, body).clusters_of(size)
        });
        let options = Options { pdl: seed % 2 == 1, max_resident_blocks: Some(3), ..Options::default() };
        Device::new(seed).run(&launches, options).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn cluster_barrier_caught() {
    let divergent = |kind: &FaultKind| *kind == FaultKind::DivergentBarrier;
    // One block elsewhere, one lane elsewhere, one block ended, one lane ended, and a barrier of the block in its place.
    let elsewhere = || if cluster::block_rank() == 0 { cluster::sync_cluster() } else { cluster::sync_cluster() };
    for fault in caught_in_pairs(elsewhere, divergent) {
        let other = fault.other.as_ref().unwrap();
        assert_ne!((fault.block, fault.place), (other.block, other.place), "both sides are named: {fault}");
        assert_eq!(fault.block / 2, other.block / 2, "{fault}");
    }
    caught_in_pairs(
        || if block_idx_x() == 1 && thread_idx_x() == 9 { cluster::sync_cluster() } else { cluster::sync_cluster() },
        divergent,
    );
    let ended = || {
        if cluster::block_rank() == 0 {
            cluster::sync_cluster()
        }
    };
    for fault in caught_in_pairs(ended, divergent) {
        let other = fault.other.as_ref().unwrap();
        assert_eq!((fault.block % 2, other.block, other.what), (0, fault.block + 1, "ended"), "{fault}");
    }
    caught_in_pairs(
        || {
            if block_idx_x() != 3 || thread_idx_x() != 40 {
                cluster::sync_cluster()
            }
        },
        divergent,
    );
    caught_in_pairs(|| if thread_idx_x() < 32 { sync_threads() } else { cluster::sync_cluster() }, divergent);
}

#[test]
fn cluster_barrier_passes() {
    passes_in_pairs(|| {
        cluster::sync_cluster();
        // One block goes through barriers of its own while the other waits, and one cluster more often than the others.
        if cluster::block_rank() == 0 {
            sync_threads();
            warp::sync_warp(FULL_MASK);
            sync_threads();
        }
        cluster::sync_cluster();
        if block_idx_x() < 2 {
            cluster::sync_cluster();
        }
    });
}

/// Block 0 of each pair writes a word of block 1, which reads it, with `order` between.
fn remote_hand_over(order: impl Fn()) -> impl Fn() {
    move || unsafe {
        let (rank, lane) = (cluster::block_rank(), thread_idx_x());
        shared(0).store(lane, 5);
        cluster::sync_cluster();
        if rank == 0 {
            shared(0).store_remote(1, lane, lane)
        }
        order();
        if rank == 1 {
            let value = shared(0).load(63 - lane);
            // Without the order either may be there, and the fault is the race, not what came of it.
            assert!(value == 5 || value == 63 - lane);
        }
        cluster::sync_cluster();
    }
}

#[test]
fn remote_race_caught() {
    for fault in caught_in_pairs(remote_hand_over(|| {}), is_race) {
        let other = fault.other.as_ref().unwrap();
        assert_eq!(fault.block ^ 1, other.block, "{fault}");
        assert_ne!(fault.place, other.place, "{fault}");
    }
    // The block's barrier does not reach the other block.
    caught_in_pairs(remote_hand_over(sync_threads), is_race);
    // A remote read against the owner's later write, an atomic of the owner, and a byte of a word.
    caught_in_pairs(
        || unsafe {
            let (_, other) = pair();
            shared(0).store(thread_idx_x(), 1);
            cluster::sync_cluster();
            shared(0).load_remote(other, thread_idx_x());
            shared(0).store(thread_idx_x(), 2);
            cluster::sync_cluster();
        },
        is_race,
    );
    caught_in_pairs(
        || unsafe {
            let (rank, other) = pair();
            if thread_idx_x() == 0 {
                shared(0).store(0, 0)
            }
            cluster::sync_cluster();
            if rank == 0 {
                shared(0).fetch_add(0, 1);
            } else if thread_idx_x() == 7 {
                shared(0).store_remote(other, 0, 1);
            }
            cluster::sync_cluster();
        },
        is_race,
    );
    caught_in_pairs(
        || unsafe {
            cluster::sync_cluster();
            Shared::<u8>::at(0).store_remote(0, thread_idx_x(), 1);
            cluster::sync_cluster();
        },
        is_race,
    );
    // Global memory of the other block, past the block's barrier only.
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let data = Global::<u32>::from_address(device.arena.alloc_zeroed(4 * 128));
        let body = || unsafe {
            data.store((block_idx_x() * 64 + thread_idx_x()) as usize, 1);
            sync_threads();
            data.load((127 - block_idx_x() * 64 - thread_idx_x()) as usize);
            cluster::sync_cluster();
        };
        let fault = device.run(&[Launch::closure("case", 2, 64, 0, body).clusters_of(2)], Options::default());
        assert!(is_race(&fault.unwrap_err().kind));
    }
}

#[test]
fn remote_race_passes() {
    passes_in_pairs(remote_hand_over(cluster::sync_cluster));
    passes_in_pairs(|| unsafe {
        let ((rank, other), lane) = (pair(), thread_idx_x());
        shared(0).store(lane, lane);
        if lane < 32 {
            Shared::<[u32; 4]>::at(512).store(lane, [rank; 4]);
        }
        sync_threads();
        cluster::sync_cluster();
        // Both read the other's, and their own.
        assert_eq!(shared(0).load_remote(other, 63 - lane), 63 - lane);
        assert_eq!(shared(0).load_remote(rank, lane), lane);
        assert_eq!(shared(0).load(lane), lane);
        assert_eq!(Shared::<[u32; 4]>::at(512).load_remote(other, lane / 2), [other; 4]);
        cluster::sync_cluster();
        // Neighboring bytes of a word, from two blocks.
        Shared::<u8>::at(256).store_remote(0, 2 * lane + rank, rank as u8);
        cluster::sync_cluster();
        if rank == 0 {
            assert_eq!(shared(256).load(lane / 2), 0x0100_0100);
        }
        sync_threads();
        // What one lane writes after the block's barrier is known to all behind the cluster's.
        if lane == 0 {
            shared(512).store_remote(other, 0, rank);
            Shared::<[u32; 2]>::at(520).store_remote(other, 0, [rank, 7]);
        }
        cluster::sync_cluster();
        assert_eq!(shared(512).load(0), other);
        assert_eq!(Shared::<[u32; 2]>::at(520).load(0), [other, 7]);
    });
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let data = Global::<u32>::from_address(device.arena.alloc(4 * 256));
        let body = || unsafe {
            let (block, lane) = (block_idx_x(), thread_idx_x());
            data.store((block * 64 + lane) as usize, lane);
            cluster::sync_cluster();
            assert_eq!(data.load(((block ^ 1) * 64 + 63 - lane) as usize), 63 - lane);
        };
        device.run(&[Launch::closure("case", 4, 64, 0, body).clusters_of(2)], Options::default()).unwrap();
    }
}

#[test]
fn cluster_order_stays_inside_caught() {
    // Another cluster's barrier orders nothing for this one.
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let data = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
        let body = || unsafe {
            if thread_idx_x() == 0 && cluster::block_rank() == 0 {
                data.store(0, 1)
            }
            cluster::sync_cluster();
        };
        let fault = device.run(&[Launch::closure("case", 4, 32, 0, body).clusters_of(2)], Options::default());
        assert!(is_race(&fault.unwrap_err().kind));
    }
}

#[test]
fn remote_access_caught() {
    let remote = Space::Remote { rank: 1 };
    let store = |address: u32| {
        move || unsafe {
            cluster::sync_cluster();
            if cluster::block_rank() == 0 && thread_idx_x() == 3 {
                shared(address).store_remote(1, 0, 1)
            }
            cluster::sync_cluster();
        }
    };
    caught_in_pairs(store(1024), |kind| matches!(kind, FaultKind::OutOfBounds { space, .. } if *space == remote));
    caught_in_pairs(store(6), |kind| matches!(kind, FaultKind::Misaligned { space, .. } if *space == remote));
    let unwritten = || unsafe {
        if cluster::block_rank() == 0 {
            shared(0).store(thread_idx_x(), 1)
        }
        cluster::sync_cluster();
        if cluster::block_rank() == 0 {
            shared(0).load_remote(1, thread_idx_x());
        }
        cluster::sync_cluster();
    };
    caught_in_pairs(unwritten, |kind| matches!(kind, FaultKind::Uninitialized { space, .. } if *space == remote));
    let outside = || unsafe {
        cluster::sync_cluster();
        shared(0).store_remote(2, 0, 1);
    };
    let faults = caught_in_pairs(outside, |kind| *kind == FaultKind::OutsideCluster { rank: 2, num_blocks: 2 });
    assert!(faults[0].to_string().contains("remote access to rank 2, outside the cluster of 2;"), "{}", faults[0]);
    // What works in a pair, on a device without clusters.
    for seed in SEEDS {
        let launch = Launch::closure("case", 2, 64, 1024, remote_hand_over(cluster::sync_cluster));
        let fault = Device::new(seed).run(&[launch.clusters_of(2).without_clusters()], Options::default());
        assert_eq!(fault.unwrap_err().kind, FaultKind::OutsideCluster { rank: 1, num_blocks: 1 });
    }
}

#[test]
fn remote_access_before_the_begin_caught() {
    let body = || unsafe {
        let (_, other) = pair();
        sync_threads();
        if thread_idx_x() == 3 {
            shared(0).store_remote(other, 0, 1)
        }
        cluster::sync_cluster();
    };
    let faults = caught_in_pairs(body, |kind| matches!(kind, FaultKind::NotBegun { .. }));
    assert!(faults[0].place.is_some());
}

#[test]
fn remote_access_after_the_end_caught() {
    // Nothing keeps the other block from ending first, whether or not it does.
    let body = || unsafe {
        let (rank, other) = pair();
        cluster::sync_cluster();
        if rank == 0 && thread_idx_x() == 40 {
            shared(0).store_remote(other, 0, 1)
        }
    };
    for fault in caught_in_pairs(body, |kind| *kind == FaultKind::Ended { rank: 1 }) {
        let other = fault.other.as_ref().unwrap();
        assert_eq!(
            (fault.block % 2, fault.lane, other.block, other.what),
            (0, 40, fault.block + 1, "ended"),
            "{fault}"
        );
        assert!(fault.place.is_some(), "{fault}");
    }
}

#[test]
fn remote_access_before_the_end_passes() {
    passes_in_pairs(|| unsafe {
        let (_, other) = pair();
        cluster::sync_cluster();
        shared(0).store_remote(other, thread_idx_x(), 1);
        cluster::sync_cluster();
    });
    // A flag in device memory keeps the block too: one lane that waits is enough.
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let flag = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
        let body = || unsafe {
            let rank = cluster::block_rank();
            cluster::sync_cluster();
            if rank == 0 {
                shared(0).store_remote(1, thread_idx_x(), 1);
                sync_threads();
                if thread_idx_x() == 0 {
                    flag.store_release(0, 1)
                }
            } else if thread_idx_x() == 63 {
                wait_acquire(flag);
                assert_eq!(shared(0).load(5), 1);
            }
        };
        let launch = Launch::closure("case", 2, 64, 256, body).clusters_of(2);
        device.run(&[launch], Options::default()).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn last_block_reduction_passes() {
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let sums = Global::<u32>::from_address(device.arena.alloc(4 * 37));
        let count = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
        let total = Global::<u32>::from_address(device.arena.alloc(4));
        let body = || unsafe {
            if thread_idx_x() == 0 {
                sums.store(block_idx_x() as usize, block_idx_x());
                if count.fetch_add_acq_rel(0, 1) == 36 {
                    total.store(0, (0..37).map(|idx| sums.load(idx)).sum());
                }
            }
        };
        run_on(&mut device, 37, 32, body).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(device.arena.download_slice::<u32>(total.address(), 1), [666]);
    }
}

#[test]
fn look_back_passes() {
    // Each block waits for its predecessor: progress needs blocks to start in order and waiting blocks to yield.
    for seed in SEEDS {
        let mut device = Device::new(seed);
        let prefix = Global::<u32>::from_address(device.arena.alloc_zeroed(4 * 51));
        let body = || unsafe {
            let block = block_idx_x() as usize;
            if thread_idx_x() == 0 {
                let before = if block == 0 {
                    1
                } else {
                    loop {
                        let value = prefix.load_acquire(block - 1);
                        if value != 0 {
                            break value;
                        }
                    }
                };
                prefix.store_release(block, before + 1);
            }
        };
        run_on(&mut device, 51, 32, body).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(device.arena.download_slice::<u32>(prefix.address(), 51)[50], 52);
    }
}

fn two_launches(seed: u64, pdl: bool, waits: bool, nc: bool) -> Result<(), Fault> {
    let mut device = Device::new(seed);
    let data = Global::<u32>::from_address(device.arena.alloc(4 * 128));
    let first = Launch::closure("first", 4, 32, 0, || unsafe {
        grid::launch_dependents();
        data.store((block_idx_x() * 32 + thread_idx_x()) as usize, thread_idx_x());
    });
    let second = Launch::closure("second", 4, 32, 0, || unsafe {
        if waits {
            grid::depend_wait()
        }
        let idx = (127 - block_idx_x() * 32 - thread_idx_x()) as usize;
        assert_eq!(if nc { data.load_nc(idx) } else { data.load(idx) }, idx as u32 % 32);
    });
    device.run(&[first, second], Options { pdl, ..Options::default() }).map(|_| ())
}

#[test]
fn dependent_launch_caught() {
    for seed in SEEDS {
        let fault = two_launches(seed, true, false, false).expect_err("read before depend_wait");
        // The read comes before the write, or meets it: both are this fault.
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialized { .. }), "{fault}");
        let fault = two_launches(seed, true, true, true).expect_err("load_nc of a predecessor's memory");
        assert!(matches!(fault.kind, FaultKind::NonCoherent { .. }), "{fault}");
    }
}

#[test]
fn dependent_launch_passes() {
    for seed in SEEDS {
        two_launches(seed, true, true, false).unwrap_or_else(|fault| panic!("{fault}"));
        two_launches(seed, false, false, true).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

fn constant_launch(writes: bool) -> Vec<Result<(), Fault>> {
    SEEDS
        .map(|seed| {
            let mut device = Device::new(seed);
            let data = Global::<u32>::from_address(device.arena.upload_slice(&[3u32; 64]));
            run_on(&mut device, 1, 64, || unsafe {
                let lane = thread_idx_x() as usize;
                assert_eq!(data.load_nc(63 - lane), 3);
                sync_threads();
                if writes {
                    data.store(lane, 1)
                }
            })
        })
        .collect()
}

#[test]
fn non_coherent_caught() {
    for result in constant_launch(true) {
        assert!(matches!(result.unwrap_err().kind, FaultKind::NonCoherent { .. }));
    }
}

#[test]
fn non_coherent_passes() {
    for result in constant_launch(false) {
        result.unwrap();
    }
}

#[test]
fn endless_loop_caught() {
    let mut device = Device::new(3);
    let flag = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
    let fault = run_on(&mut device, 2, 32, || while unsafe { flag.load_acquire(0) } == 0 {});
    assert_eq!(fault.unwrap_err().kind, FaultKind::EndlessLoop);
    let options = Options { step_limit: 10_000, ..Options::default() };
    let launch = Launch::closure("case", 1, 32, 64, || {
        loop {
            unsafe {
                shared(0).fetch_or(0, 1);
            }
        }
    });
    let setup = Launch::closure("case", 1, 32, 64, || {
        loop {
            unsafe {
                Shared::<u32>::at(0).store(0, 1);
                sync_threads()
            }
        }
    });
    assert!(device.run(&[launch], options).is_err());
    assert!(device.run(&[setup], options).is_err());
}

#[test]
fn a_long_wait_passes() {
    // One lane of thousands has work while all others wait for it: slow is not endless.
    for policy in Policy::ALL {
        let mut device = Device::new(5);
        let flag = Global::<u32>::from_address(device.arena.alloc_zeroed(8));
        let body = || unsafe {
            if block_idx_x() == 1 && thread_idx_x() == 77 {
                (0..30).for_each(|_| while flag.load_volatile(1) != 0 {});
                flag.store_release(0, 1);
            }
            while flag.load_acquire(0) == 0 {}
        };
        let options = Options { policy: Some(policy), max_resident_blocks: Some(6), ..Options::default() };
        device.run(&[Launch::closure("case", 3, 512, 0, body)], options).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn endless_loop_passes() {
    let mut device = Device::new(3);
    let flag = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
    run_on(&mut device, 1, 64, || unsafe {
        if thread_idx_x() == 63 {
            flag.store_release(0, 1)
        }
        while flag.load_acquire(0) == 0 {}
    })
    .unwrap();
}

#[test]
fn panic_caught() {
    let fault =
        caught(1, 32, || assert!(thread_idx_x() < 5, "lane too high"), |kind| matches!(kind, FaultKind::Panic(_)));
    assert!(fault.to_string().contains("lane too high"), "{fault}");
}

#[test]
fn bad_launch_caught() {
    let bad = |kind: &FaultKind| matches!(kind, FaultKind::BadLaunch(_));
    caught(1, 33, || {}, bad);
    caught(0, 32, || {}, bad);
    caught(1, 2048, || {}, bad);
}

#[test]
fn a_seed_repeats() {
    for policy in Policy::ALL {
        let run = || {
            let mut device = Device::new(11);
            let order = Global::<u32>::from_address(device.arena.alloc(4 * 256));
            let next = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
            let body = || unsafe {
                let place = next.fetch_add(0, 1) as usize;
                order.store(place, block_idx_x() * 64 + thread_idx_x());
            };
            let options = Options { policy: Some(policy), ..Options::default() };
            device.run(&[Launch::closure("case", 4, 64, 0, body)], options).unwrap();
            device.arena.download_slice::<u32>(order.address(), 256)
        };
        let mut order = run();
        assert_eq!(order, run(), "{policy:?}");
        order.sort();
        assert!(order.into_iter().eq(0..256));
    }
}

#[test]
fn seeds_differ() {
    let order = |seed| {
        let mut device = Device::new(seed);
        let order = Global::<u32>::from_address(device.arena.alloc(4 * 256));
        let next = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
        run_on(&mut device, 4, 64, || unsafe {
            let place = next.fetch_add(0, 1) as usize;
            order.store(place, block_idx_x() * 64 + thread_idx_x());
        })
        .unwrap();
        device.arena.download_slice::<u32>(order.address(), 256)
    };
    let orders: std::collections::HashSet<_> = SEEDS.map(order).collect();
    assert!(orders.len() > SEEDS.count() / 2, "only {} orders", orders.len());
}

#[test]
fn a_device_runs_on_each_thread() {
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut device = Device::new(seed);
                for seed in SEEDS {
                    device.reset(seed);
                    let sum = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
                    run_on(&mut device, 3, 64, || unsafe { _ = sum.fetch_add(0, thread_idx_x()) }).unwrap();
                    assert_eq!(device.arena.download_slice::<u32>(sum.address(), 1), [3 * 2016]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Not a check: prints what a lane switch and a checked access cost. `cargo test -p rfdetr-post-kernels --test emulator
/// speed -- --ignored --nocapture`
#[test]
#[ignore = "prints timings"]
fn speed() {
    let time = |name: &str, per_run: u64, body: &dyn Fn(&mut Device, u64)| {
        let mut device = Device::new(1);
        let start = std::time::Instant::now();
        let runs = 20;
        (0..runs).for_each(|seed| {
            device.reset(seed);
            body(&mut device, seed);
        });
        let each = start.elapsed().as_secs_f64() * 1e9 / (runs * per_run) as f64;
        println!("{name}: {each:.1} ns each");
    };
    for policy in Policy::ALL {
        let options = Options { policy: Some(policy), ..Options::default() };
        time(&format!("ballot, {policy:?}"), 256 * 8 * 100, &|device, _| {
            let body = || {
                for _ in 0..100 {
                    warp::warp_vote_ballot(FULL_MASK, true);
                }
            };
            device.run(&[Launch::closure("case", 8, 256, 0, body)], options).unwrap();
        });
    }
    time("barrier", 256 * 8 * 100, &|device, _| {
        let body = || (0..100).for_each(|_| sync_threads());
        run_on(device, 8, 256, body).unwrap();
    });
    time("atomic", 64 * 8 * 100, &|device, _| {
        let count = Global::<u32>::from_address(device.arena.alloc_zeroed(4));
        run_on(device, 8, 64, || (0..100).for_each(|_| unsafe { _ = count.fetch_add(0, 1) })).unwrap();
    });
    time("shared store and load of a word", 64 * 8 * 1000 * 2, &|device, _| {
        let body = || {
            (0..1000).for_each(|_| unsafe {
                shared(0).store(thread_idx_x(), 1);
                shared(0).load(thread_idx_x());
            })
        };
        run_on(device, 8, 64, body).unwrap();
    });
    time("broadcast load of a word", 64 * 8 * 1000, &|device, _| {
        let data = Global::<u32>::from_address(device.arena.alloc_zeroed(4096));
        run_on(device, 8, 64, || (0..1000).for_each(|idx| unsafe { _ = data.load(idx) })).unwrap();
    });
    time("store of 16 bytes", 64 * 8 * 200, &|device, _| {
        let data = Global::<[u32; 4]>::from_address(device.arena.alloc(64 * 8 * 200 * 16));
        let body = || {
            let flat = (block_idx_x() * 64 + thread_idx_x()) as usize;
            (0..200).for_each(|idx| unsafe { data.store(flat * 200 + idx, [0; 4]) })
        };
        run_on(device, 8, 64, body).unwrap();
    });
    time("store of a byte", 64 * 8 * 200, &|device, _| {
        let data = Global::<u8>::from_address(device.arena.alloc(64 * 8 * 200));
        let body = || {
            let flat = (block_idx_x() * 64 + thread_idx_x()) as usize;
            (0..200).for_each(|idx| unsafe { data.store(flat + idx * 512, 0) })
        };
        run_on(device, 8, 64, body).unwrap();
    });
    time("empty launch of 2 x 64", 1, &|device, _| run_on(device, 2, 64, || {}).unwrap());
}
