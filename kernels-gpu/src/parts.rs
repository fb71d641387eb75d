//! What the blocks of a cluster tell each other of a mask that they share.
//!
//! Each has the transitions of its columns, in order. To encode them it must know how many there are before its own, the last
//! three of those, and how many characters they have. The characters of a transition depend on the three before it, so a block
//! counts those of its fourth and later ones by itself; those of every block's first three are computed by every block, from what
//! all have handed over: a lane each. So they meet once.

use rfdetr_post_core::packed::shared::masks as layout;

use crate::{
    masks::Stats,
    simt::{
        cluster,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Number of transitions of a part that has no room for them.
pub const NO_ROOM: u32 = u32::MAX;

/// Characters of a number of the compressed string: five bits each, and one bit for the sign.
#[inline(always)]
pub fn num_chars(value: i32) -> u32 {
    let magnitude = if value < 0 { !value } else { value } as u32;
    (32 - magnitude.leading_zeros() + 1).div_ceil(5)
}

/// Four words for each block of the cluster.
#[derive(Clone, Copy)]
struct Words {
    offset: u32,
}

impl Words {
    /// # Safety
    /// The blocks have the layout's shared memory, and have begun.
    #[inline(always)]
    unsafe fn tell(self, block: u32, words: [u32; 4]) {
        // SAFETY: each block has its own words.
        unsafe { Shared::<[u32; 4]>::at(self.offset).store_remote(block, cluster::block_rank(), words) };
    }

    /// # Safety
    /// The block was told, and the cluster has passed a barrier.
    #[inline(always)]
    unsafe fn of(self, part: u32) -> [u32; 4] {
        // SAFETY: passed on to the caller.
        unsafe { Shared::<[u32; 4]>::at(self.offset).load(part) }
    }
}

/// Number of transitions, the last, the second to last and the third to last.
const ENDS: Words = Words { offset: layout::HANDED };
/// The first three transitions, and characters of all but these.
const BEGINS: Words = Words { offset: layout::HANDED + 16 * layout::RLE_CLUSTER };
/// Lengths of the runs that end with transition 2, 4 and so on, and with transition 1, 3 and so on; cells that are not finite.
const SUMS: Words = Words { offset: layout::HANDED + 32 * layout::RLE_CLUSTER };
/// The box.
const BOXES: Words = Words { offset: layout::HANDED + 48 * layout::RLE_CLUSTER };

// Three lanes a part, and four parts in `Joined::of`.
const _: () = assert!(64 * layout::RLE_CLUSTER == layout::HANDED_BYTES && layout::RLE_CLUSTER == 4);

/// Tells the cluster's blocks what they need of the block's part: `num` transitions, which lie in `window`, `num_chars` characters
/// of all but the first three, the runs' `[even, odd]` lengths, and cells that are not finite; the box is that of the statistics.
///
/// Callers: every thread of the block, after a barrier behind all of this. A cluster's barrier is owed.
///
/// # Safety
/// The blocks have the layout's shared memory, and have begun; nobody reads what was handed over before any more.
#[inline(always)]
pub unsafe fn hand_over(
    window: Shared<u32>,
    num: u32,
    num_chars: u32,
    [even, odd]: [u32; 2],
    nonfinite: u32,
    num_parts: u32,
) {
    let block = thread::thread_idx_x();
    if block < num_parts {
        let len = if num == NO_ROOM { 0 } else { num };
        // SAFETY: a thread for each block; the transitions lie in the window.
        unsafe {
            let transition = |i: u32| if i < len { window.load(i) } else { 0 };
            let last = |back: u32| transition(len.wrapping_sub(back));
            ENDS.tell(block, [num, last(1), last(2), last(3)]);
            BEGINS.tell(block, [transition(0), transition(1), transition(2), num_chars]);
            SUMS.tell(block, [even, odd, nonfinite, 0]);
            BOXES.tell(block, Stats::of_shared().tight);
        }
    }
}

/// What all parts come to, for one of them.
pub struct Joined {
    /// All parts have room. If not, nothing else means anything.
    pub has_room: bool,
    /// Transitions of all parts.
    pub num_counts: u32,
    /// Characters of all parts.
    pub num_chars: u32,
    /// Foreground pixels of all parts.
    pub area: u32,
    /// Transitions before the part.
    pub counts_before: u32,
    /// Characters before the part.
    pub chars_before: u32,
    /// The three transitions before the part, the last one last; 0 where there is none.
    pub last: [u32; 3],
    /// Characters of the part's first three transitions; 0 where there is none.
    pub first_chars: [u32; 3],
}

impl Joined {
    /// Callers: every lane of a warp; valid in all lanes. Cost: three sums and seven shuffles.
    ///
    /// # Safety
    /// The blocks of a whole cluster have handed over, and it has passed a barrier.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn of(rank: u32) -> Self {
        // Three lanes a part, one for each of its first transitions.
        let lane = warp::lane_id();
        let (part, i) = (lane / 3, lane % 3);
        let (mut num_counts, mut before, mut num, mut last, mut has_room) = (0u32, 0u32, 0, [0; 3], true);
        let mut add = |k: u32, [len, t1, t2, t3]: [u32; 4]| {
            has_room &= len != NO_ROOM;
            num_counts = num_counts.wrapping_add(len);
            if k == part {
                num = len;
            }
            if k < part {
                before = before.wrapping_add(len);
                let [_, second, first] = last;
                last = match len {
                    0 => last,
                    1 => [second, first, t1],
                    2 => [first, t2, t1],
                    _ => [t3, t2, t1],
                };
            }
        };
        // Written out: their loads do not wait for each other.
        // SAFETY: the caller vouches for the words.
        let (e0, e1, e2, e3) = unsafe { (ENDS.of(0), ENDS.of(1), ENDS.of(2), ENDS.of(3)) };
        add(0, e0);
        add(1, e1);
        add(2, e2);
        add(3, e3);
        // Sums wrap: if a part has no room, they mean nothing.
        let is_part = part < layout::RLE_CLUSTER;
        // SAFETY: as above; lanes without a part read the first one's.
        let ([t0, t1, t2, others], [even, odd, ..]) = unsafe {
            let part = if is_part { part } else { 0 };
            (BEGINS.of(part), SUMS.of(part))
        };
        let [l3, l2, l1] = last;
        let (a, b, c, d) = match i {
            0 => (l3, l2, l1, t0),
            1 => (l2, l1, t0, t1),
            _ => (l1, t0, t1, t2),
        };
        let count = d.wrapping_sub(c);
        let value = if before.wrapping_add(i) > 2 { count.wrapping_sub(b.wrapping_sub(a)) } else { count };
        let exists = is_part && i < num;
        let first_chars = if exists { num_chars(value as i32) } else { 0 };
        let is_first = is_part && i == 0;
        let chars = first_chars + if is_first { others } else { 0 };
        // Runs that end with an odd transition of the mask are foreground. A part's first transition ends a run that began
        // before it.
        let area = if before % 2 == 0 { odd } else { even.wrapping_add(if exists { count } else { 0 }) };
        let from = |lane: u32, value: u32| warp::warp_shuffle_idx(FULL_MASK, value, lane);
        let own = 3 * rank;
        Self {
            has_room,
            num_counts,
            num_chars: warp::warp_reduce_add(FULL_MASK, chars),
            area: warp::warp_reduce_add(FULL_MASK, if is_first { area } else { 0 }),
            counts_before: from(own, before),
            chars_before: warp::warp_reduce_add(FULL_MASK, if part < rank { chars } else { 0 }),
            last: [from(own, l3), from(own, l2), from(own, l1)],
            first_chars: [from(own, first_chars), from(own + 1, first_chars), from(own + 2, first_chars)],
        }
    }
}

/// The box of all parts, and their cells that are not finite.
///
/// Callers: every lane of a warp; valid in all lanes.
///
/// # Safety
/// As [`Joined::of`].
#[track_caller]
#[inline(always)]
pub unsafe fn warp_sum(num_parts: u32) -> ([u32; 4], u32) {
    let lane = warp::lane_id();
    let (mut tight, mut nonfinite) = (Stats::EMPTY.tight, 0);
    if lane < num_parts {
        // SAFETY: the caller vouches for the words.
        unsafe {
            tight = BOXES.of(lane);
            nonfinite = SUMS.of(lane)[2];
        }
    }
    let [left, top, right, bottom] = tight;
    let tight = [
        warp::warp_reduce_min(FULL_MASK, left),
        warp::warp_reduce_min(FULL_MASK, top),
        warp::warp_reduce_max(FULL_MASK, right),
        warp::warp_reduce_max(FULL_MASK, bottom),
    ];
    (tight, warp::warp_reduce_add(FULL_MASK, nonfinite))
}
