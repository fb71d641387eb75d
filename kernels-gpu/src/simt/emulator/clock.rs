//! Who knows what: logical clocks of lanes, and sets of them that travel through atomics.
//!
//! Each lane has a clock that advances when it publishes (barrier, `sync_warp`, release, fence). An access is stamped with
//! block, lane and clock. A later access is ordered after it when its lane knows that clock. Knowledge is kept coarse where
//! it is dense (one floor a block and one a warp, raised by barriers) and in a sorted list where it is sparse.

use std::rc::Rc;

/// Block, lane and clock of one access, in 64 bits. Zero means nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

/// Blocks are numbered over the life of a device. The shadow is cleared before this runs out.
pub(super) const MAX_BLOCK_UID: u32 = (1 << 24) - 1;

impl Stamp {
    pub(super) const NONE: Self = Self(0);

    #[inline]
    pub(super) fn new(uid: u32, lane: u32, clock: u32) -> Self {
        debug_assert!(clock < 1 << 30);
        Self((uid as u64) << 40 | (lane as u64) << 30 | clock as u64)
    }

    #[inline]
    pub(super) fn uid(self) -> u32 {
        (self.0 >> 40) as u32
    }

    #[inline]
    pub(super) fn lane(self) -> u32 {
        (self.0 >> 30) as u32 & 1023
    }

    #[inline]
    pub(super) fn warp(self) -> u32 {
        (self.0 >> 35) as u32 & 31
    }

    #[inline]
    pub(super) fn clock(self) -> u32 {
        self.0 as u32 & ((1 << 30) - 1)
    }

    /// The same with the lane replaced by the first of its warp.
    #[inline]
    pub(super) fn of_warp(self) -> Self {
        Self(self.0 & !(31 << 30))
    }

    #[inline]
    pub(super) fn same_lane(self, other: Self) -> bool {
        self.0 >> 30 == other.0 >> 30
    }
}

/// Clocks known beyond the floors of the knower's own block and warp.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge {
    /// Everything that blocks below this number did is known.
    known_before: u32,
    /// What is known of (block, lane or warp or block): every clock below the value. Sorted by key.
    entries: Vec<(u64, u32)>,
}

fn lane_key(uid: u32, lane: u32) -> u64 {
    (uid as u64) << 12 | lane as u64
}

fn warp_key(uid: u32, warp: u32) -> u64 {
    (uid as u64) << 12 | (1024 + warp as u64)
}

fn block_key(uid: u32) -> u64 {
    (uid as u64) << 12 | 2048
}

fn key_uid(key: u64) -> u32 {
    (key >> 12) as u32
}

impl Knowledge {
    fn below(&self, key: u64) -> u32 {
        match self.entries.binary_search_by_key(&key, |entry| entry.0) {
            Ok(at) => self.entries[at].1,
            Err(_) => 0,
        }
    }

    /// Whether what the lanes `mask` of a warp did at `stamp`'s clock is known.
    fn covers(&self, stamp: Stamp, mask: u32) -> bool {
        let (uid, warp, clock) = (stamp.uid(), stamp.warp(), stamp.clock());
        uid < self.known_before
            || clock < self.below(block_key(uid))
            || clock < self.below(warp_key(uid, warp))
            || lanes_of(mask).all(|lane| clock < self.below(lane_key(uid, warp * 32 + lane)))
    }

    fn note(&mut self, key: u64, below: u32) {
        match self.entries.binary_search_by_key(&key, |entry| entry.0) {
            Ok(at) => self.entries[at].1 = self.entries[at].1.max(below),
            Err(at) => self.entries.insert(at, (key, below)),
        }
    }

    fn join(&mut self, other: &Self) {
        self.known_before = self.known_before.max(other.known_before);
        if other.entries.is_empty() {
            return;
        }
        let mine = std::mem::take(&mut self.entries);
        let mut merged = Vec::with_capacity(mine.len() + other.entries.len());
        let (mut i, mut j) = (0, 0);
        while i < mine.len() && j < other.entries.len() {
            let (a, b) = (mine[i], other.entries[j]);
            merged.push(if a.0 < b.0 {
                a
            } else if b.0 < a.0 {
                b
            } else {
                (a.0, a.1.max(b.1))
            });
            i += (a.0 <= b.0) as usize;
            j += (b.0 <= a.0) as usize;
        }
        merged.extend_from_slice(&mine[i..]);
        merged.extend_from_slice(&other.entries[j..]);
        let known_before = self.known_before;
        merged.retain(|entry| key_uid(entry.0) >= known_before);
        self.entries = merged;
    }
}

/// The lanes of a mask, lowest first.
pub(super) fn lanes_of(mask: u32) -> impl Iterator<Item = u32> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            lane
        })
    })
}

/// Joins `more` into `shared`, without a copy where one side holds nothing or both are one.
pub(super) fn join(shared: &mut Option<Rc<Knowledge>>, more: &Option<Rc<Knowledge>>) {
    let Some(more) = more else { return };
    match shared {
        None => *shared = Some(more.clone()),
        Some(known) if Rc::ptr_eq(known, more) => {}
        Some(known) => Rc::make_mut(known).join(more),
    }
}

/// What one lane knows, and the clock that it stamps with.
#[derive(Debug)]
pub(super) struct LaneClock {
    /// Stamp of the next access.
    pub(super) stamp: Stamp,
    /// Everything that blocks below this number did is known: the launches that ended before this one began.
    pub(super) known_before: u32,
    /// Learned by acquiring, and by `sync_warp` of a part of the warp.
    pub(super) extra: Option<Rc<Knowledge>>,
    /// What the last fence published; a later relaxed write carries it.
    pub(super) fenced: Option<Rc<Knowledge>>,
    /// What relaxed reads have met; the next fence makes it known.
    pub(super) pending: Option<Rc<Knowledge>>,
}

/// The floors that barriers raise: every clock below is known.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockClock {
    /// Of all lanes of the block, to all lanes of the block.
    pub(super) floor: u32,
    /// Of the lanes of each warp, to the lanes of that warp.
    pub(super) warp_floors: Vec<u32>,
    /// Learned from outside by some lane before the last barrier.
    pub(super) extra: Option<Rc<Knowledge>>,
}

/// Numbers of blocks, over the life of the device, that decide what an access may meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uids {
    /// First block of the running launch.
    pub(super) launch: u32,
    /// First block of the launches that may overlap the running one: `load_nc` must not meet their writes.
    pub(super) overlap: u32,
    /// First block of the running lane's cluster, and how many it has.
    pub(super) cluster: u32,
    pub(super) num_blocks: u32,
}

/// What the running lane knows, for one access.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) lane: &'a LaneClock,
    pub(super) block: &'a BlockClock,
    pub(super) uids: Uids,
}

impl View<'_> {
    /// Whether a block of the running lane's cluster left the stamp. Others in shared memory are left over from blocks that
    /// have ended.
    #[inline]
    pub(super) fn is_of_cluster(&self, stamp: Stamp) -> bool {
        stamp.uid().wrapping_sub(self.uids.cluster) < self.uids.num_blocks
    }

    /// Whether something that block `uid` did, and so its begin, is ordered before the running lane.
    pub(super) fn knows_begin_of(&self, uid: u32) -> bool {
        let knows = |known: &Option<Rc<Knowledge>>| {
            known
                .as_ref()
                .is_some_and(|known| known.entries.iter().any(|&(key, below)| below > 0 && key_uid(key) == uid))
        };
        knows(&self.block.extra) || knows(&self.lane.extra)
    }

    /// Whether what the lanes `mask` of `stamp`'s warp did at `stamp`'s clock is ordered before the running lane.
    #[inline]
    pub(super) fn is_ordered(&self, stamp: Stamp, mask: u32) -> bool {
        let me = self.lane.stamp;
        let (uid, clock) = (stamp.uid(), stamp.clock());
        if uid < self.lane.known_before {
            return true;
        }
        let mut rest = mask;
        if uid == me.uid() {
            if clock < self.block.floor {
                return true;
            }
            if stamp.warp() == me.warp() {
                rest &= !(1 << (me.lane() & 31));
                if rest == 0 || clock < self.block.warp_floors[me.warp() as usize] {
                    return true;
                }
            }
        }
        let covers = |known: &Option<Rc<Knowledge>>| known.as_ref().is_some_and(|known| known.covers(stamp, rest));
        covers(&self.lane.extra) || covers(&self.block.extra)
    }
}

impl LaneClock {
    pub(super) fn new(uid: u32, lane: u32, known_before: u32) -> Self {
        Self { stamp: Stamp::new(uid, lane, 1), known_before, extra: None, fenced: None, pending: None }
    }

    fn set_clock(&mut self, clock: u32) {
        self.stamp = Stamp::new(self.stamp.uid(), self.stamp.lane(), clock);
    }

    /// All that this lane knows, its own past included. What it does next is not part of it.
    pub(super) fn publish(&mut self, block: &BlockClock) -> Rc<Knowledge> {
        let me = self.stamp;
        let mut known = Knowledge::default();
        for extra in [&self.extra, &block.extra].into_iter().flatten() {
            known.join(extra);
        }
        known.known_before = known.known_before.max(self.known_before);
        known.note(block_key(me.uid()), block.floor);
        known.note(warp_key(me.uid(), me.warp()), block.warp_floors[me.warp() as usize]);
        known.note(lane_key(me.uid(), me.lane()), me.clock() + 1);
        self.set_clock(me.clock() + 1);
        Rc::new(known)
    }

    /// A fence: what relaxed reads have met becomes known, and what is known rides on later relaxed writes.
    pub(super) fn fence(&mut self, block: &BlockClock) {
        let pending = self.pending.take();
        join(&mut self.extra, &pending);
        self.fenced = Some(self.publish(block));
    }
}

/// A barrier over the block: every lane knows what every lane did and knew.
pub(super) fn sync_block(block: &mut BlockClock, lanes: &mut [super::engine::Lane]) {
    let mut floor = 0;
    let mut known_before = 0;
    let mut extra = block.extra.take();
    for lane in lanes.iter_mut() {
        floor = floor.max(lane.clock.stamp.clock() + 1);
        known_before = known_before.max(lane.clock.known_before);
        if lane.clock.extra.is_some() {
            join(&mut extra, &lane.clock.extra.take());
        }
    }
    for lane in lanes.iter_mut() {
        lane.clock.set_clock(floor);
        lane.clock.known_before = known_before;
    }
    // The block's own past lies below the floor now.
    if let Some(known) = &mut extra
        && let Some(lane) = lanes.first()
    {
        let uid = lane.clock.stamp.uid();
        if known.entries.iter().any(|entry| key_uid(entry.0) == uid) {
            Rc::make_mut(known).entries.retain(|entry| key_uid(entry.0) != uid);
        }
    }
    block.floor = floor;
    block.warp_floors.fill(floor);
    block.extra = extra;
}

/// A barrier over the blocks of a cluster: every lane knows what every lane did and knew.
pub(super) fn sync_cluster(blocks: &mut [(&mut BlockClock, &mut [super::engine::Lane])]) {
    let mut known_before = 0;
    let mut extra = None;
    let mut floors = Vec::with_capacity(blocks.len());
    for (block, lanes) in blocks.iter_mut() {
        sync_block(block, lanes);
        join(&mut extra, &block.extra.take());
        if let Some(lane) = lanes.first() {
            known_before = known_before.max(lane.clock.known_before);
            floors.push((lane.clock.stamp.uid(), block.floor));
        }
    }
    let known = Rc::make_mut(extra.get_or_insert_default());
    // The cluster's own past lies below its floors now.
    known.entries.retain(|entry| floors.iter().all(|floor| floor.0 != key_uid(entry.0)));
    for (uid, floor) in floors {
        known.note(block_key(uid), floor);
    }
    for (block, lanes) in blocks {
        block.extra = extra.clone();
        lanes.iter_mut().for_each(|lane| lane.clock.known_before = known_before);
    }
}

/// A barrier over the lanes `mask` of warp `warp`; `lanes` are the block's.
pub(super) fn sync_warp(block: &mut BlockClock, lanes: &mut [super::engine::Lane], warp: u32, mask: u32) {
    let lanes = &mut lanes[warp as usize * 32..][..32];
    let mut extra: Option<Rc<Knowledge>> = None;
    let (mut floor, mut known_before) = (0, 0);
    for lane in lanes_of(mask) {
        let clock = &lanes[lane as usize].clock;
        floor = floor.max(clock.stamp.clock() + 1);
        known_before = known_before.max(clock.known_before);
        join(&mut extra, &clock.extra);
    }
    if mask == u32::MAX {
        block.warp_floors[warp as usize] = floor;
    } else {
        let known = Rc::make_mut(extra.get_or_insert_default());
        for lane in lanes_of(mask) {
            let stamp = lanes[lane as usize].clock.stamp;
            known.note(lane_key(stamp.uid(), stamp.lane()), stamp.clock() + 1);
        }
    }
    for lane in lanes_of(mask) {
        let clock = &mut lanes[lane as usize].clock;
        clock.set_clock(floor);
        clock.known_before = known_before;
        clock.extra = extra.clone();
    }
}
