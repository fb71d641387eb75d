//! Lanes as coroutines, and the schedule that runs them.
//!
//! The scheduler runs on the caller's stack and each lane on one of its own. A lane leaves its stack only in
//! `suspend`, called by the facade; the engine's data is reached through a raw pointer on both sides, and no reference
//! to it lives across a switch.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::clock::{
    BlockClock, Knowledge, LaneClock, Stamp, Uids, View, join, lanes_of, sync_block, sync_cluster, sync_warp,
};
use super::fault::{Fault, FaultKind, Other, Place, Space};
use super::memory::{Found, Kind, Memory};
use super::{Launch, Options, Policy, Random, Stats};

/// What a waiting lane called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Barrier,
    BarrierCount,
    BarrierAnd,
    BarrierOr,
    ClusterBarrier,
    SyncWarp,
    Ballot,
    Any,
    All,
    ShuffleIdx,
    ShuffleUp,
    ShuffleDown,
    ShuffleXor,
    ReduceAdd,
    ReduceMin,
    ReduceMax,
}

impl Call {
    /// Whether lanes of several warps meet there.
    fn is_barrier(self) -> bool {
        matches!(self, Self::Barrier | Self::BarrierCount | Self::BarrierAnd | Self::BarrierOr | Self::ClusterBarrier)
    }
}

/// How much memory order an atomic access carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    call: Call,
    mask: u32,
    place: Place,
    /// The predicate, or the value of a shuffle or reduction.
    value: u32,
    /// Lane, delta or lane mask of a shuffle.
    argument: u32,
}

impl Wait {
    /// Whether two lanes of a warp stand at one call.
    fn is_with(&self, other: &Self) -> bool {
        self.call == other.call && self.mask == other.mask && is_same_place(self.place, other.place)
    }
}

/// One place may have several addresses, one for each copy of the code.
fn is_same_place(a: Place, b: Place) -> bool {
    ptr::eq(a, b) || a == b
}

/// One lane of a resident block.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) clock: LaneClock,
    wait: Option<Wait>,
    result: u32,
    yielder: *const Yielder<(), ()>,
}

/// Masks over the 32 lanes of a warp. A lane is in one of them, or waits at a barrier.
#[derive(Debug, Clone, Copy, Default)]
struct Warp {
    ready: u32,
    /// In `depend_wait`.
    depending: u32,
    /// At a vote, shuffle, reduction or `sync_warp`.
    meeting: u32,
    ended: u32,
}

/// A place for one resident block.
#[derive(Debug)]
struct Slot {
    launch: usize,
    block_idx: u32,
    is_live: bool,
    /// Index in the cluster, and the slots where the cluster's blocks began, this one included.
    rank: u32,
    cluster: Rc<[usize]>,
    lanes: Vec<Lane>,
    warps: Vec<Warp>,
    clock: BlockClock,
    shared: Memory,
    num_ended: u32,
    num_at_barrier: u32,
    has_triggered: bool,
    barrier: Option<(Call, Place, u32)>,
    /// The last remote access of each lane of the cluster to this block, by rank and lane; empty before the first.
    remote_accesses: Vec<Option<(Stamp, Place)>>,
}

/// Progress of one launch.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    first_uid: u32,
    num_started: u32,
    num_ended: u32,
    num_triggered: u32,
}

const NO_POSITION: u32 = u32::MAX;

/// State of one run.
pub(super) struct Engine<'a> {
    launches: &'a [Launch<'a>],
    progress: Vec<Progress>,
    options: Options,
    policy: Policy,
    pub(super) random: Random,
    seed: u64,
    global: &'a mut Memory,
    /// Shared memory that no slot uses.
    spare_shared: &'a mut Vec<Memory>,
    slots: Vec<Slot>,
    /// Warps (slot * 32 + warp) with a ready lane, and where each stands in that list.
    ready_warps: Vec<u32>,
    positions: Vec<u32>,
    slot: usize,
    lane: usize,
    last_warp: u32,
    steps_left: u64,
    /// Most lanes that may be resident.
    num_lanes: u32,
    /// Reads of flags since anything else happened.
    idle_spins: u32,
    fault: Option<Box<Fault>>,
    stats: Stats,
}

/// So many reads of flags for each lane in a row, without any write, are an endless loop: after [`PATIENCE`] each, every
/// pick is at random, and a lane that could go on would have been found long before.
const MAX_IDLE_SPINS: u32 = 128;
const PATIENCE: u32 = 4;

const STACK_BYTES: usize = 128 << 10;

/// A stack whose top is moved down a little, each by another amount. Stacks are whole pages, so without this the hot
/// ends of all lanes would fall into the same few sets of the cache.
struct LaneMemory {
    stack: DefaultStack,
    skipped_bytes: usize,
}

// SAFETY: the range is the inner stack's less some bytes at its top; its guard page and, at 128 KiB, its minimum size stay.
unsafe impl Stack for LaneMemory {
    fn base(&self) -> StackPointer {
        let base = self.stack.base().get() - self.skipped_bytes;
        StackPointer::new(base).unwrap_or(self.stack.base())
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }

    #[cfg(windows)]
    fn teb_fields(&self) -> corosensei::stack::StackTebFields {
        self.stack.teb_fields()
    }

    #[cfg(windows)]
    fn update_teb_fields(&mut self, stack_limit: usize, guaranteed_stack_bytes: usize) {
        self.stack.update_teb_fields(stack_limit, guaranteed_stack_bytes);
    }
}

thread_local! {
    static NUM_STACKS: Cell<usize> = const { Cell::new(0) };
    static CURRENT: Cell<*mut Engine<'static>> = const { Cell::new(ptr::null_mut()) };
    static STACKS: RefCell<Vec<LaneMemory>> = const { RefCell::new(Vec::new()) };
}

/// The engine whose lane is running on this thread.
#[inline]
pub(super) fn current() -> *mut Engine<'static> {
    let engine = CURRENT.get();
    assert!(!engine.is_null(), "a call of the facade outside a kernel that the emulator runs");
    engine
}

/// Gives the thread back to the scheduler; returns when it picks this lane again.
fn suspend(engine: *mut Engine<'static>) {
    // SAFETY: `current` gave the pointer, so the engine lives, and no reference to it is held here across the switch.
    let yielder = unsafe { (*engine).lane_mut().yielder };
    // SAFETY: the yielder lives on this lane's own stack, below this call.
    unsafe { (*yielder).suspend(()) };
}

/// Ends the run with a fault. The lane never runs again.
#[cold]
fn fail(engine: *mut Engine<'static>, kind: FaultKind, place: Option<Place>, other: Option<Other>) -> ! {
    // SAFETY: `current` gave the pointer; the reference ends with the statement.
    unsafe { (*engine).report(kind, place, other) };
    loop {
        suspend(engine);
    }
}

/// A vote, shuffle, reduction, `sync_warp` or barrier: waits for the others, returns the result.
pub(super) fn meet(call: Call, mask: u32, value: u32, argument: u32, place: Place) -> u32 {
    let engine = current();
    // SAFETY: `current` gave the pointer; the reference ends before the switch.
    unsafe { (*engine).arrive(Wait { call, mask, place, value, argument }) };
    suspend(engine);
    // SAFETY: as above.
    unsafe { (*engine).lane_mut().result }
}

/// A point where other lanes may run first.
fn interleave(engine: *mut Engine<'static>, is_spin: bool, place: Place) {
    // SAFETY: `current` gave the pointer; the reference ends before the switch.
    let decision = unsafe { (*engine).wants_switch(is_spin) };
    match decision {
        Err(kind) => fail(engine, kind, Some(place), None),
        Ok(true) => suspend(engine),
        Ok(false) => {}
    }
}

/// Checks a plain access and returns where its bytes are.
#[inline]
pub(super) fn access(space: Space, address: u64, size: u32, kind: Kind, place: Place) -> *mut u8 {
    let engine = current();
    // SAFETY: `current` gave the pointer; the reference ends with the call.
    match unsafe { (*engine).check(space, address, size, kind, place) } {
        Ok(bytes) => bytes,
        // SAFETY: as above.
        Err(found) => unsafe { fail_access(engine, found, place) },
    }
}

/// Checks a plain access to the shared memory of another block of the cluster and returns where its bytes are.
pub(super) fn access_remote(rank: u32, address: u64, size: u32, kind: Kind, place: Place) -> *mut u8 {
    let engine = current();
    // SAFETY: `current` gave the pointer; the reference ends with the call.
    match unsafe { (*engine).check_remote(rank, address, size, kind, place) } {
        Ok(bytes) => bytes,
        // SAFETY: as above.
        Err(found) => unsafe { fail_access(engine, found, place) },
    }
}

/// # Safety
/// `engine` comes from `current`.
#[cold]
unsafe fn fail_access(engine: *mut Engine<'static>, (kind, other): Found, place: Place) -> ! {
    // SAFETY: the caller vouches for the pointer.
    let other = other.map(|(stamp, other)| unsafe { (*engine).name(stamp, other) });
    fail(engine, kind, Some(place), other)
}

/// An atomic access to a word: checks it, applies `update`, moves knowledge, and returns the value before.
pub(super) fn atomic(
    space: Space,
    address: u64,
    kind: Kind,
    order: Order,
    place: Place,
    update: impl FnOnce(u32) -> u32,
) -> u32 {
    let engine = current();
    interleave(engine, kind == Kind::AtomicRead, place);
    let bytes = access(space, address, 4, kind, place).cast::<u32>();
    // SAFETY: `access` checked bounds.
    let before = unsafe { bytes.read_unaligned() };
    if kind != Kind::AtomicRead {
        // SAFETY: as above.
        unsafe { bytes.write_unaligned(update(before)) };
    }
    // SAFETY: `current` gave the pointer; the reference ends with the call.
    unsafe { (*engine).synchronize(space, address, kind, order) };
    before
}

/// A fence of any scope.
pub(super) fn fence(place: Place) {
    let engine = current();
    interleave(engine, false, place);
    // SAFETY: `current` gave the pointer; the reference ends with the block.
    unsafe {
        let slot = &mut (&mut (*engine).slots)[(*engine).slot];
        slot.lanes[(*engine).lane].clock.fence(&slot.clock);
    }
}

/// Waits until the launches before this one have ended.
pub(super) fn depend_wait(place: Place) {
    let engine = current();
    interleave(engine, false, place);
    // SAFETY: `current` gave the pointer; references end before the switch.
    if unsafe { (*engine).starts_waiting_for_previous() } {
        suspend(engine);
    }
    // SAFETY: as above.
    unsafe {
        let launch = (&(*engine).slots)[(*engine).slot].launch;
        let first_uid = (&(*engine).progress)[launch].first_uid;
        (*engine).lane_mut().clock.known_before = first_uid;
    }
}

/// Lets the next launch start once every block has called this or ended.
pub(super) fn launch_dependents(place: Place) {
    let engine = current();
    // SAFETY: `current` gave the pointer; the reference ends with the call.
    unsafe { (*engine).trigger() };
    interleave(engine, false, place);
}

/// (thread, block, block dim, grid dim) of the running lane.
#[inline]
pub(super) fn identity() -> (u32, u32, u32, u32) {
    let engine = current();
    // SAFETY: `current` gave the pointer; the references end with the block.
    unsafe {
        let slot = &(&(*engine).slots)[(*engine).slot];
        let launch = &(*engine).launches[slot.launch];
        ((*engine).lane as u32, slot.block_idx, launch.block, launch.grid)
    }
}

/// (rank in the cluster, blocks of the cluster) of the running lane.
#[inline]
pub(super) fn cluster_identity() -> (u32, u32) {
    let engine = current();
    // SAFETY: `current` gave the pointer; the references end with the block.
    unsafe {
        let slot = &(&(*engine).slots)[(*engine).slot];
        (slot.rank, slot.cluster.len() as u32)
    }
}

/// Ends the run from a check of the facade itself.
pub(super) fn fail_here(kind: FaultKind, place: Place) -> ! {
    fail(current(), kind, Some(place), None)
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        launches: &'a [Launch<'a>],
        options: Options,
        mut random: Random,
        seed: u64,
        first_uid: u32,
        global: &'a mut Memory,
        spare_shared: &'a mut Vec<Memory>,
    ) -> Self {
        let mut progress = Vec::with_capacity(launches.len());
        let mut uid = first_uid;
        for launch in launches {
            progress.push(Progress { first_uid: uid, ..Progress::default() });
            uid += launch.grid;
        }
        let most = options.max_resident_blocks.unwrap_or(6).max(1);
        let num_blocks: u32 = launches.iter().map(|launch| launch.grid).sum();
        let largest_cluster = launches.iter().map(|launch| launch.info.cluster_blocks).max().unwrap_or(1);
        let num_slots = (1 + random.below(most)).min(num_blocks).max(largest_cluster) as usize;
        let policy = options.policy.unwrap_or_else(|| Policy::ALL[random.below(Policy::ALL.len() as u32) as usize]);
        let slots: Vec<Slot> = (0..num_slots)
            .map(|_| Slot {
                launch: 0,
                block_idx: 0,
                is_live: false,
                rank: 0,
                cluster: Rc::default(),
                lanes: Vec::new(),
                warps: Vec::new(),
                clock: BlockClock::default(),
                shared: spare_shared.pop().unwrap_or_else(|| Memory::new(Space::Shared, 0)),
                num_ended: 0,
                num_at_barrier: 0,
                has_triggered: false,
                barrier: None,
                remote_accesses: Vec::new(),
            })
            .collect();
        Self {
            launches,
            progress,
            options,
            policy,
            random,
            seed,
            global,
            spare_shared,
            slots,
            ready_warps: Vec::new(),
            positions: vec![NO_POSITION; num_slots * 32],
            slot: 0,
            lane: 0,
            last_warp: 0,
            steps_left: options.step_limit,
            num_lanes: num_slots as u32 * launches.iter().map(|launch| launch.block).max().unwrap_or(0),
            idle_spins: 0,
            fault: None,
            stats: Stats { policy, ..Stats::default() },
        }
    }

    #[inline]
    fn lane_mut(&mut self) -> &mut Lane {
        &mut self.slots[self.slot].lanes[self.lane]
    }

    fn report(&mut self, kind: FaultKind, place: Option<Place>, other: Option<Other>) {
        if self.fault.is_some() {
            return;
        }
        let slot = &self.slots[self.slot];
        self.fault = Some(Box::new(Fault {
            kind,
            kernel: self.launches[slot.launch].info.name,
            block: slot.block_idx,
            lane: self.lane as u32,
            place,
            other: other.map(Box::new),
            seed: self.seed,
        }));
    }

    /// Fills in kernel and block of the other side of a race.
    fn name(&self, stamp: Stamp, mut other: Other) -> Other {
        let at = self.progress.iter().rposition(|progress| progress.first_uid <= stamp.uid());
        if let Some(at) = at {
            other.kernel = self.launches[at].info.name;
            other.block = stamp.uid() - self.progress[at].first_uid;
        }
        other
    }

    fn set_ready(&mut self, slot: usize, warp: usize, lanes: u32) {
        let state = &mut self.slots[slot].warps[warp];
        let id = slot * 32 + warp;
        if state.ready == 0 && lanes != 0 {
            self.positions[id] = self.ready_warps.len() as u32;
            self.ready_warps.push(id as u32);
        }
        state.ready |= lanes;
    }

    fn clear_ready(&mut self, slot: usize, warp: usize, lanes: u32) {
        let state = &mut self.slots[slot].warps[warp];
        state.ready &= !lanes;
        if state.ready == 0 {
            let id = slot * 32 + warp;
            let position = std::mem::replace(&mut self.positions[id], NO_POSITION);
            if position != NO_POSITION {
                self.ready_warps.swap_remove(position as usize);
                if let Some(moved) = self.ready_warps.get(position as usize) {
                    self.positions[*moved as usize] = position;
                }
            }
        }
    }

    /// The running lane reaches a place where it must wait for others.
    fn arrive(&mut self, wait: Wait) {
        let (slot_idx, lane_idx) = (self.slot, self.lane);
        let (warp, bit) = (lane_idx >> 5, 1u32 << (lane_idx & 31));
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left == 0 {
            return self.report(FaultKind::EndlessLoop, Some(wait.place), None);
        }
        let slot = &mut self.slots[slot_idx];
        slot.lanes[lane_idx].wait = Some(wait);
        if wait.call.is_barrier() {
            if slot.num_ended > 0 {
                let ended = (0..slot.lanes.len() as u32).filter(|&lane| slot.has_ended(lane)).collect();
                let other = self.other("ended", slot_idx, ended, None);
                return self.report(FaultKind::DivergentBarrier, Some(wait.place), Some(other));
            }
            match slot.barrier {
                None => slot.barrier = Some((wait.call, wait.place, lane_idx as u32)),
                Some((call, place, first)) if call != wait.call || !is_same_place(place, wait.place) => {
                    let other = self.other("waits at another barrier", slot_idx, vec![first], Some(place));
                    return self.report(FaultKind::DivergentBarrier, Some(wait.place), Some(other));
                }
                Some(_) => {}
            }
            slot.num_at_barrier += 1;
            let is_last = slot.num_at_barrier as usize == slot.lanes.len();
            self.clear_ready(slot_idx, warp, bit);
            if wait.call == Call::ClusterBarrier
                && let Some(other) = self.missing_in_cluster(slot_idx, wait.place)
            {
                return self.report(FaultKind::DivergentBarrier, Some(wait.place), Some(other));
            }
            if is_last && wait.call != Call::ClusterBarrier {
                self.finish_barrier(slot_idx);
            } else if is_last && self.is_cluster_complete(slot_idx) {
                self.finish_cluster_barrier(slot_idx);
            } else {
                self.check_stuck(slot_idx, warp);
            }
            return;
        }
        if wait.mask & bit == 0 {
            return self.report(FaultKind::LaneNotInMask { mask: wait.mask }, Some(wait.place), None);
        }
        let ended = slot.warps[warp].ended & wait.mask;
        if ended != 0 {
            let lanes = lanes_of(ended).map(|lane| warp as u32 * 32 + lane).collect();
            let other = self.other("ended", slot_idx, lanes, None);
            return self.report(FaultKind::MissingLanes { mask: wait.mask }, Some(wait.place), Some(other));
        }
        slot.warps[warp].meeting |= bit;
        let is_complete = slot.warps[warp].meeting & wait.mask == wait.mask
            && lanes_of(wait.mask)
                .all(|lane| slot.lanes[warp * 32 + lane as usize].wait.is_some_and(|other| other.is_with(&wait)));
        self.clear_ready(slot_idx, warp, bit);
        if is_complete {
            self.finish_meeting(slot_idx, warp, wait);
        } else {
            self.check_stuck(slot_idx, warp);
        }
    }

    fn other(&self, what: &'static str, slot: usize, lanes: Vec<u32>, place: Option<Place>) -> Other {
        let slot = &self.slots[slot];
        Other { what, kernel: self.launches[slot.launch].info.name, block: slot.block_idx, lanes, place }
    }

    /// The slot of the block of this rank in the cluster of a running block; nothing once it has ended.
    fn block_of_cluster(&self, slot_idx: usize, rank: u32) -> Option<usize> {
        let slot = &self.slots[slot_idx];
        let at = slot.cluster[rank as usize];
        let peer = &self.slots[at];
        let is_it = peer.launch == slot.launch && peer.block_idx == slot.block_idx - slot.rank + rank;
        (peer.is_live && is_it).then_some(at)
    }

    /// Describes the block of this rank, which has ended.
    fn ended_block(&self, slot_idx: usize, rank: u32) -> Other {
        let slot = &self.slots[slot_idx];
        let launch = &self.launches[slot.launch];
        let block = slot.block_idx - slot.rank + rank;
        Other { what: "ended", kernel: launch.info.name, block, lanes: (0..launch.block).collect(), place: None }
    }

    /// Lanes of the cluster's other blocks that will not come to the `sync_cluster` at this place.
    fn missing_in_cluster(&self, slot_idx: usize, place: Place) -> Option<Other> {
        (0..self.slots[slot_idx].cluster.len() as u32).find_map(|rank| {
            let Some(at) = self.block_of_cluster(slot_idx, rank) else { return Some(self.ended_block(slot_idx, rank)) };
            let peer = &self.slots[at];
            if peer.num_ended > 0 {
                let ended = (0..peer.lanes.len() as u32).filter(|&lane| peer.has_ended(lane)).collect();
                return Some(self.other("ended", at, ended, None));
            }
            match peer.barrier {
                Some((Call::ClusterBarrier, there, first)) if !is_same_place(there, place) => {
                    Some(self.other("waits at another barrier", at, vec![first], Some(there)))
                }
                _ => None,
            }
        })
    }

    fn is_cluster_complete(&self, slot_idx: usize) -> bool {
        self.slots[slot_idx].cluster.iter().all(|&at| {
            let slot = &self.slots[at];
            slot.num_at_barrier as usize == slot.lanes.len()
                && slot.barrier.is_some_and(|(call, ..)| call == Call::ClusterBarrier)
        })
    }

    fn finish_cluster_barrier(&mut self, slot_idx: usize) {
        let cluster = self.slots[slot_idx].cluster.clone();
        let mut clocks = Vec::with_capacity(cluster.len());
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if cluster.contains(&at) {
                slot.barrier = None;
                slot.num_at_barrier = 0;
                slot.lanes.iter_mut().for_each(|lane| lane.wait = None);
                clocks.push((&mut slot.clock, &mut slot.lanes[..]));
            }
        }
        sync_cluster(&mut clocks);
        self.stats.barriers += cluster.len() as u64;
        self.idle_spins = 0;
        for &at in &*cluster {
            for warp in 0..self.slots[at].warps.len() {
                self.set_ready(at, warp, u32::MAX);
            }
        }
    }

    fn finish_barrier(&mut self, slot_idx: usize) {
        let slot = &mut self.slots[slot_idx];
        let waits = || slot.lanes.iter().filter_map(|lane| lane.wait);
        let count = waits().filter(|wait| wait.value != 0).count() as u32;
        let result = match slot.barrier.take().map(|barrier| barrier.0) {
            Some(Call::BarrierAnd) => (count as usize == slot.lanes.len()) as u32,
            Some(Call::BarrierOr) => (count != 0) as u32,
            _ => count,
        };
        for lane in &mut slot.lanes {
            lane.wait = None;
            lane.result = result;
        }
        sync_block(&mut slot.clock, &mut slot.lanes);
        slot.num_at_barrier = 0;
        self.stats.barriers += 1;
        self.idle_spins = 0;
        for warp in 0..self.slots[slot_idx].warps.len() {
            self.set_ready(slot_idx, warp, u32::MAX);
        }
    }

    fn finish_meeting(&mut self, slot_idx: usize, warp: usize, wait: Wait) {
        let slot = &mut self.slots[slot_idx];
        let mask = wait.mask;
        let mut values = [0; 32];
        let mut arguments = [0; 32];
        for lane in lanes_of(mask) {
            if let Some(wait) = slot.lanes[warp * 32 + lane as usize].wait.take() {
                values[lane as usize] = wait.value;
                arguments[lane as usize] = wait.argument;
            }
        }
        let ballot = lanes_of(mask).filter(|&lane| values[lane as usize] != 0).fold(0, |bits, lane| bits | 1 << lane);
        let combine: fn(u32, u32) -> u32 = match wait.call {
            Call::ReduceMin => u32::min,
            Call::ReduceMax => u32::max,
            _ => u32::wrapping_add,
        };
        let reduced = lanes_of(mask).map(|lane| values[lane as usize]).reduce(combine).unwrap_or(0);
        let mut outside = None;
        for lane in lanes_of(mask) {
            let argument = arguments[lane as usize];
            let source = match wait.call {
                Call::ShuffleIdx => argument & 31,
                Call::ShuffleUp => lane.checked_sub(argument).unwrap_or(lane),
                Call::ShuffleDown => lane.checked_add(argument).filter(|&source| source < 32).unwrap_or(lane),
                Call::ShuffleXor => Some(lane ^ argument).filter(|&source| source < 32).unwrap_or(lane),
                _ => lane,
            };
            if mask >> source & 1 == 0 {
                outside = Some((lane, source));
            }
            slot.lanes[warp * 32 + lane as usize].result = match wait.call {
                Call::Ballot => ballot,
                Call::Any => (ballot != 0) as u32,
                Call::All => (ballot == mask) as u32,
                Call::ReduceAdd | Call::ReduceMin | Call::ReduceMax => reduced,
                _ => values[source as usize],
            };
        }
        if wait.call == Call::SyncWarp {
            sync_warp(&mut slot.clock, &mut slot.lanes, warp as u32, mask);
        }
        slot.warps[warp].meeting &= !mask;
        self.idle_spins = 0;
        self.set_ready(slot_idx, warp, mask);
        if let Some((lane, source)) = outside {
            self.lane = warp * 32 + lane as usize;
            self.report(FaultKind::ShuffleFromOutside { mask, source }, Some(wait.place), None);
        }
    }

    /// A warp in which nobody can run and somebody waits for its own lanes will never move again: lanes at a barrier
    /// wait for the whole block or cluster.
    fn check_stuck(&mut self, slot_idx: usize, warp: usize) {
        let slot = &self.slots[slot_idx];
        let state = slot.warps[warp];
        if state.ready != 0 || state.depending != 0 || state.meeting == 0 {
            return;
        }
        let waiting = state.meeting.trailing_zeros() as usize + warp * 32;
        let Some(wait) = slot.lanes[waiting].wait else { return };
        let elsewhere = |lane: &u32| {
            wait.mask >> (lane & 31) & 1 == 1
                && slot.lanes[*lane as usize].wait.is_none_or(|other| !other.is_with(&wait))
        };
        let lanes: Vec<u32> = (warp as u32 * 32..warp as u32 * 32 + 32).filter(elsewhere).collect();
        let place = lanes.first().and_then(|&lane| slot.lanes[lane as usize].wait).map(|wait| wait.place);
        let other = self.other("waits elsewhere", slot_idx, lanes, place);
        self.lane = waiting;
        self.report(FaultKind::MissingLanes { mask: wait.mask }, Some(wait.place), Some(other));
    }

    fn end_lane(&mut self) {
        let (slot_idx, lane_idx) = (self.slot, self.lane);
        let (warp, bit) = (lane_idx >> 5, 1u32 << (lane_idx & 31));
        self.idle_spins = 0;
        self.clear_ready(slot_idx, warp, bit);
        let slot = &mut self.slots[slot_idx];
        slot.warps[warp].ended |= bit;
        slot.num_ended += 1;
        if let Some((_, place, first)) = slot.barrier {
            let other = self.other("ended", slot_idx, vec![lane_idx as u32], None);
            self.lane = first as usize;
            return self.report(FaultKind::DivergentBarrier, Some(place), Some(other));
        }
        let waiting = (0..slot.cluster.len() as u32).find_map(|rank| {
            let at = self.block_of_cluster(slot_idx, rank)?;
            let (call, place, first) = self.slots[at].barrier?;
            (call == Call::ClusterBarrier).then_some((at, place, first))
        });
        if let Some((at, place, first)) = waiting {
            let other = self.other("ended", slot_idx, vec![lane_idx as u32], None);
            (self.slot, self.lane) = (at, first as usize);
            return self.report(FaultKind::DivergentBarrier, Some(place), Some(other));
        }
        let slot = &self.slots[slot_idx];
        let blocked = lanes_of(slot.warps[warp].meeting)
            .filter_map(|lane| Some((lane, slot.lanes[warp * 32 + lane as usize].wait?)))
            .find(|(_, wait)| wait.mask & bit != 0);
        if let Some((lane, wait)) = blocked {
            let other = self.other("ended", slot_idx, vec![lane_idx as u32], None);
            self.lane = warp * 32 + lane as usize;
            return self.report(FaultKind::MissingLanes { mask: wait.mask }, Some(wait.place), Some(other));
        }
        if slot.num_ended as usize == slot.lanes.len() {
            self.check_end(slot_idx);
            self.slots[slot_idx].is_live = false;
            self.trigger();
            let slot = &self.slots[slot_idx];
            let launch = slot.launch;
            self.progress[launch].num_ended += 1;
            if self.progress[launch].num_ended == self.launches[launch].grid {
                self.wake_dependents();
            }
        } else {
            self.check_stuck(slot_idx, warp);
        }
    }

    /// Every remote access to a block is ordered before its end, or on a device it may come after.
    fn check_end(&mut self, slot_idx: usize) {
        let slot = &self.slots[slot_idx];
        let is_known = |stamp: Stamp| {
            (0..slot.lanes.len()).any(|lane| self.view(slot_idx, lane).is_ordered(stamp, 1 << (stamp.lane() & 31)))
        };
        let found = slot.remote_accesses.iter().enumerate().find_map(|(at, access)| {
            let (stamp, place) = (*access)?;
            (!is_known(stamp)).then_some((at / slot.lanes.len(), stamp.lane(), place))
        });
        if let Some((rank, lane, place)) = found
            && self.fault.is_none()
        {
            let ended = self.ended_block(slot_idx, slot.rank);
            self.fault = Some(Box::new(Fault {
                kind: FaultKind::Ended { rank: slot.rank },
                kernel: ended.kernel,
                block: slot.block_idx - slot.rank + rank as u32,
                lane,
                place: Some(place),
                other: Some(Box::new(ended)),
                seed: self.seed,
            }));
        }
    }

    fn previous_have_ended(&self, launch: usize) -> bool {
        (0..launch).all(|earlier| self.progress[earlier].num_ended == self.launches[earlier].grid)
    }

    fn starts_waiting_for_previous(&mut self) -> bool {
        let launch = self.slots[self.slot].launch;
        if self.previous_have_ended(launch) {
            return false;
        }
        let (warp, bit) = (self.lane >> 5, 1 << (self.lane & 31));
        self.slots[self.slot].warps[warp].depending |= bit;
        self.clear_ready(self.slot, warp, bit);
        true
    }

    fn wake_dependents(&mut self) {
        for slot in 0..self.slots.len() {
            if !self.slots[slot].is_live || !self.previous_have_ended(self.slots[slot].launch) {
                continue;
            }
            for warp in 0..self.slots[slot].warps.len() {
                let lanes = std::mem::take(&mut self.slots[slot].warps[warp].depending);
                self.set_ready(slot, warp, lanes);
            }
        }
    }

    /// The running block no longer holds back the next launch.
    fn trigger(&mut self) {
        let slot = &mut self.slots[self.slot];
        if !std::mem::replace(&mut slot.has_triggered, true) {
            self.progress[slot.launch].num_triggered += 1;
        }
    }

    fn wants_switch(&mut self, is_spin: bool) -> Result<bool, FaultKind> {
        if is_spin {
            self.idle_spins += 1;
            if self.idle_spins > MAX_IDLE_SPINS * self.num_lanes.max(1024) {
                return Err(FaultKind::EndlessLoop);
            }
            return Ok(true);
        }
        self.idle_spins = 0;
        Ok(match self.policy {
            Policy::RandomLane => true,
            Policy::RandomWarp | Policy::Forward | Policy::Reverse => self.random.below(2) == 0,
            Policy::GreedyWarp | Policy::GreedyBlock => self.random.below(16) == 0,
        })
    }

    #[inline]
    fn check(&mut self, space: Space, address: u64, size: u32, kind: Kind, place: Place) -> Result<*mut u8, Found> {
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left == 0 {
            return Err((FaultKind::EndlessLoop, None));
        }
        let uids = self.uids(self.slot);
        let slot = &mut self.slots[self.slot];
        let view = View { lane: &slot.lanes[self.lane].clock, block: &slot.clock, uids };
        let memory = if space == Space::Shared { &mut slot.shared } else { &mut *self.global };
        let offset = memory.access(view, address, size, kind, place)?;
        // SAFETY: `access` found `size` bytes inside `bytes`.
        Ok(unsafe { memory.bytes.as_mut_ptr().add(offset) })
    }

    #[inline]
    fn uids(&self, slot_idx: usize) -> Uids {
        let slot = &self.slots[slot_idx];
        let launch = self.progress[slot.launch].first_uid;
        let is_alone = !self.options.pdl || slot.launch == 0;
        let overlap = if is_alone { launch } else { self.progress[slot.launch - 1].first_uid };
        Uids { launch, overlap, cluster: launch + slot.block_idx - slot.rank, num_blocks: slot.cluster.len() as u32 }
    }

    fn view(&self, slot_idx: usize, lane: usize) -> View<'_> {
        let slot = &self.slots[slot_idx];
        View { lane: &slot.lanes[lane].clock, block: &slot.clock, uids: self.uids(slot_idx) }
    }

    fn check_remote(&mut self, rank: u32, address: u64, size: u32, kind: Kind, place: Place) -> Result<*mut u8, Found> {
        let slot = &self.slots[self.slot];
        let (my_rank, num_blocks) = (slot.rank, slot.cluster.len() as u32);
        if rank == my_rank {
            return self.check(Space::Shared, address, size, kind, place);
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left == 0 {
            return Err((FaultKind::EndlessLoop, None));
        }
        if rank >= num_blocks {
            return Err((FaultKind::OutsideCluster { rank, num_blocks }, None));
        }
        let uids = self.uids(self.slot);
        let Some(at) = self.block_of_cluster(self.slot, rank) else {
            let uid = uids.cluster + rank;
            return Err((FaultKind::Ended { rank }, Some((Stamp::new(uid, 0, 0), self.ended_block(self.slot, rank)))));
        };
        if !self.view(self.slot, self.lane).knows_begin_of(uids.cluster + rank) {
            return Err((FaultKind::NotBegun { rank }, None));
        }
        let [slot, target] = match self.slots.get_disjoint_mut([self.slot, at]) {
            Ok(slots) => slots,
            Err(_) => unreachable!("the blocks of a cluster have a slot each"),
        };
        let view = View { lane: &slot.lanes[self.lane].clock, block: &slot.clock, uids };
        let found = target.shared.access(view, address, size, kind, place);
        let offset = found.map_err(|(kind, other)| (kind.in_space(Space::Remote { rank }), other))?;
        let num_lanes = slot.lanes.len();
        target.remote_accesses.resize(num_lanes * num_blocks as usize, None);
        target.remote_accesses[my_rank as usize * num_lanes + self.lane] = Some((view.lane.stamp, place));
        // SAFETY: `access` found `size` bytes inside `bytes`.
        Ok(unsafe { target.shared.bytes.as_mut_ptr().add(offset) })
    }

    /// Moves knowledge through the word of an atomic access that `check` has passed.
    fn synchronize(&mut self, space: Space, address: u64, kind: Kind, order: Order) {
        let slot = &mut self.slots[self.slot];
        let lane = &mut slot.lanes[self.lane].clock;
        let (memory, offset) = match space {
            Space::Shared => (&mut slot.shared, address as usize),
            _ => (&mut *self.global, (address - super::GLOBAL_BASE) as usize),
        };
        let released = memory.released(offset);
        if kind != Kind::AtomicWrite {
            if matches!(order, Order::Acquire | Order::AcqRel) {
                join(&mut lane.extra, released);
            } else {
                join(&mut lane.pending, released);
            }
        }
        if kind == Kind::AtomicRead {
            return;
        }
        let published: Option<Rc<Knowledge>> = match order {
            Order::Release | Order::AcqRel => Some(lane.publish(&slot.clock)),
            Order::Relaxed | Order::Acquire => lane.fenced.clone(),
        };
        if kind == Kind::AtomicWrite {
            *released = None;
        }
        join(released, &published);
    }

    /// Starts the blocks of the next cluster in free slots, if it may start and there is room for all of them.
    fn start_cluster(&mut self) -> bool {
        let Some(launch) = (0..self.launches.len()).find(|&at| self.progress[at].num_started < self.launches[at].grid)
        else {
            return false;
        };
        if launch > 0 && !self.previous_have_ended(launch) {
            let previous = self.progress[launch - 1];
            let is_released = previous.num_triggered == self.launches[launch - 1].grid;
            if !self.options.pdl || !is_released || !self.previous_have_ended(launch - 1) {
                return false;
            }
        }
        let num_blocks = self.launches[launch].info.cluster_blocks;
        let free = (0..self.slots.len()).filter(|&at| !self.slots[at].is_live);
        let cluster: Rc<[usize]> = free.take(num_blocks as usize).collect();
        if cluster.len() < num_blocks as usize {
            return false;
        }
        for rank in 0..num_blocks {
            self.start_block(launch, rank, &cluster);
        }
        true
    }

    fn start_block(&mut self, launch: usize, rank: u32, cluster: &Rc<[usize]>) {
        let slot_idx = cluster[rank as usize];
        let block_idx = self.progress[launch].num_started;
        self.progress[launch].num_started += 1;
        let uid = self.progress[launch].first_uid + block_idx;
        // On the device an early launch sees its predecessor's memory only after `depend_wait`, whoever ended when.
        let known = if self.options.pdl && launch > 0 { launch - 1 } else { launch };
        let known_before = self.progress[known].first_uid;
        let block = self.launches[launch].block;
        let num_warps = block as usize / 32;
        let slot = &mut self.slots[slot_idx];
        slot.launch = launch;
        slot.block_idx = block_idx;
        slot.is_live = true;
        slot.rank = rank;
        slot.cluster = cluster.clone();
        slot.lanes.clear();
        slot.lanes.extend((0..block).map(|lane| Lane {
            clock: LaneClock::new(uid, lane, known_before),
            wait: None,
            result: 0,
            yielder: ptr::null(),
        }));
        slot.warps.clear();
        slot.warps.resize(num_warps, Warp::default());
        slot.clock = BlockClock { floor: 0, warp_floors: vec![0; num_warps], extra: None };
        slot.shared.renew_shared(self.launches[launch].shared_bytes as usize);
        slot.num_ended = 0;
        slot.num_at_barrier = 0;
        slot.has_triggered = false;
        slot.barrier = None;
        slot.remote_accesses.clear();
        for warp in 0..num_warps {
            self.set_ready(slot_idx, warp, u32::MAX);
        }
        self.stats.blocks += 1;
    }

    /// The lanes of one warp to run next.
    fn pick(&mut self) -> (usize, usize, u32) {
        let num_ready = self.ready_warps.len() as u32;
        let is_stalled = self.idle_spins > PATIENCE * self.num_lanes;
        let spinning = is_stalled || self.idle_spins > 0 && self.random.below(4) == 0;
        let policy = if spinning { Policy::RandomLane } else { self.policy };
        let by_key = |key: fn(u32) -> u32, ready: &[u32]| ready.iter().copied().min_by_key(|&id| key(id)).unwrap_or(0);
        let id = match policy {
            Policy::RandomLane | Policy::RandomWarp => self.ready_warps[self.random.below(num_ready) as usize],
            Policy::GreedyWarp => match self.positions[self.last_warp as usize] {
                NO_POSITION => self.ready_warps[self.random.below(num_ready) as usize],
                _ => self.last_warp,
            },
            Policy::GreedyBlock => {
                let here = self.last_warp >> 5;
                let inside = self.ready_warps.iter().copied().find(|id| id >> 5 == here);
                inside.unwrap_or_else(|| self.ready_warps[self.random.below(num_ready) as usize])
            }
            Policy::Forward => by_key(|id| id, &self.ready_warps),
            Policy::Reverse => by_key(|id| u32::MAX - id, &self.ready_warps),
        };
        self.last_warp = id;
        let (slot, warp) = (id as usize >> 5, id as usize & 31);
        let ready = self.slots[slot].warps[warp].ready;
        let lanes = match policy {
            Policy::RandomLane => {
                let skip = self.random.below(ready.count_ones());
                1 << lanes_of(ready).nth(skip as usize).unwrap_or(0)
            }
            // Now and then only a part of the warp, as if it had diverged.
            _ if self.random.below(8) == 0 => {
                Some(ready & self.random.next() as u32).filter(|&l| l != 0).unwrap_or(ready)
            }
            _ => ready,
        };
        (slot, warp, lanes)
    }

    /// Runs the launches to their end.
    pub(super) fn run(&mut self) -> Result<Stats, Fault> {
        let engine: *mut Engine<'static> = ptr::from_mut(self).cast();
        let before = CURRENT.replace(engine);
        let mut lanes: Vec<Vec<Option<LaneStack>>> = (0..self.slots.len()).map(|_| Vec::new()).collect();
        // SAFETY: `engine` points to `self`, which is not used until the call returns.
        let ended = catch_unwind(AssertUnwindSafe(|| unsafe { drive(engine, &mut lanes) }));
        CURRENT.set(before);
        STACKS.with_borrow_mut(|stacks| {
            for mut coroutine in lanes.into_iter().flatten().flatten() {
                if coroutine.started() && !coroutine.done() {
                    // SAFETY: the lane is never resumed. What its stack owned is leaked, which is safe; kernels own nothing.
                    unsafe { coroutine.force_reset() };
                }
                if coroutine.done() || coroutine.started() {
                    stacks.push(coroutine.into_stack());
                }
            }
        });
        if let Err(panic) = ended {
            let message = panic.downcast_ref::<&str>().map(|text| text.to_string());
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            self.report(FaultKind::Panic(message), None, None);
        }
        self.spare_shared.extend(self.slots.drain(..).map(|slot| slot.shared));
        match self.fault.take() {
            Some(fault) => Err(*fault),
            None => Ok(self.stats),
        }
    }
}

impl Slot {
    fn has_ended(&self, lane: u32) -> bool {
        self.warps[lane as usize >> 5].ended >> (lane & 31) & 1 == 1
    }
}

type LaneStack = Coroutine<(), (), (), LaneMemory>;

/// # Safety
/// `engine` is valid and nothing else uses it until this returns, other than the lanes that this resumes.
unsafe fn drive(engine: *mut Engine<'static>, lanes: &mut [Vec<Option<LaneStack>>]) {
    loop {
        // SAFETY: no lane runs now, so this is the only reference; it ends before the lanes are resumed.
        let picked = unsafe {
            let engine = &mut *engine;
            while engine.start_cluster() {}
            if engine.ready_warps.is_empty() {
                if let Some(slot) = engine.slots.iter().position(|slot| slot.is_live) {
                    engine.slot = slot;
                    engine.report(FaultKind::Deadlock, None, None);
                }
                return;
            }
            engine.pick()
        };
        let (slot, warp, mask) = picked;
        for bit in lanes_of(mask) {
            let lane = warp * 32 + bit as usize;
            // SAFETY: as above.
            unsafe {
                let engine = &mut *engine;
                engine.slot = slot;
                engine.lane = lane;
                engine.stats.switches += 1;
            }
            if lanes[slot].len() <= lane {
                lanes[slot].resize_with(lane + 1, || None);
            }
            let coroutine = lanes[slot][lane].get_or_insert_with(|| new_lane(engine));
            if let CoroutineResult::Return(()) = coroutine.resume(()) {
                if let Some(ended) = lanes[slot][lane].take() {
                    STACKS.with_borrow_mut(|stacks| stacks.push(ended.into_stack()));
                }
                // SAFETY: as above.
                unsafe { (*engine).end_lane() };
            }
            // SAFETY: as above.
            if unsafe { (*engine).fault.is_some() } {
                return;
            }
        }
    }
}

/// A coroutine that runs the body of the lane that the engine points at when it is first resumed.
fn new_lane(engine: *mut Engine<'static>) -> LaneStack {
    let stack = STACKS.with_borrow_mut(Vec::pop);
    let stack = stack.unwrap_or_else(|| match DefaultStack::new(STACK_BYTES) {
        Ok(stack) => LaneMemory { stack, skipped_bytes: NUM_STACKS.replace(NUM_STACKS.get() + 1) % 63 * 64 },
        Err(error) => panic!("no memory for the stack of a lane: {error}"),
    });
    Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
        // SAFETY: the lane is resumed by `drive` only, while the engine lives; no reference is held while the body runs.
        let body: *const (dyn Fn() + 'static) = unsafe {
            let slot = &mut (&mut (*engine).slots)[(*engine).slot];
            slot.lanes[(*engine).lane].yielder = yielder;
            let body: *const dyn Fn() = &*(*engine).launches[slot.launch].body;
            body
        };
        // SAFETY: the launches outlive the run.
        unsafe { (*body)() };
    })
}
