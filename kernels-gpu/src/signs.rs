//! Signs of the cells of a mask, as bits, and what follows from them without arithmetic.
//!
//! In short:
//!
//! ```text
//! bit r of column c = cell (r, c) > 0
//! an output column between two cell columns: where both agree, that is its sign in row r; elsewhere it is computed
//! ```
//!
//! Why bits are enough where the cells agree: weights are not negative, and at least one of two is close to a half or
//! above. So a blend of cells that are not positive is not positive, and one of positive cells is positive unless it
//! underflows, which cells of `SMALLEST` or more cannot. Every blend that is computed is checked against [`TINY`]: two
//! positive values of which one is tiny could round to zero in the second, vertical pass. Columns with such values, or
//! with cells that are not ordinary, are *odd*: they are evaluated pixel by pixel.

use crate::{
    columns::{Cells, STRIP_ROWS, Taps},
    scan::div_rem,
    simt::{
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Positive values below this may underflow when multiplied by a weight. Weights are zero or at least 2^-38: they are
/// differences of multiples of 2^-38, the smallest scale (2^-14) having 24 bits.
pub const TINY: f32 = 1.0 / (1u128 << 100) as f32;
/// The smallest positive cell that is ordinary: half of it is far above [`TINY`].
const SMALLEST: f32 = 1.0 / (1u64 << 40) as f32;
/// The largest cell that is ordinary: no sum of such cells overflows.
const LARGEST: f32 = (1u128 << 100) as f32;

/// A half-open range of window rows or columns.
#[derive(Clone, Copy)]
pub struct Span {
    /// First index.
    pub start: u32,
    /// End.
    pub end: u32,
}

impl Span {
    /// Whether it holds an index.
    #[inline(always)]
    pub fn has(&self, i: u32) -> bool {
        self.start <= i && i < self.end
    }
}

/// Words of the counters that [`Signs::load`] uses.
const FIRST_COLUMN: u32 = 0;
const COLUMN_END: u32 = 1;
const NONFINITE: u32 = 2;
const HAS_ODD: u32 = 3;
const FIRST_ROW: u32 = 4;
const ROW_END: u32 = 5;
/// All of them.
pub const NUM_COUNTERS: u32 = 6;

/// What the cells of a range of the window's columns come to.
#[derive(Clone, Copy)]
pub struct Signs {
    words: Shared<u32>,
    odd: Shared<u32>,
    /// Words of one column.
    pub num_words: u32,
    /// Columns that can make a pixel foreground: none of the others can.
    pub live: Span,
    /// Words of a column that may have signs, and the one behind them that then has a change, if there is one.
    pub live_words: Span,
    /// Cells that are not finite, of the columns that are counted.
    pub nonfinite: u32,
    /// Some columns have cells that are not ordinary.
    has_odd: bool,
}

impl Signs {
    /// Readies the counters and the words of the odd columns. A barrier is owed before [`load`](Self::load).
    ///
    /// # Safety
    /// `counters` has [`NUM_COUNTERS`] words, `odd` one for each 32 columns of any window to come.
    #[inline(always)]
    pub unsafe fn reset(counters: Shared<u32>, odd: Shared<u32>, num_odd_words: u32) {
        let tid = thread::thread_idx_x();
        // SAFETY: the caller vouches for the words.
        unsafe {
            if tid < NUM_COUNTERS {
                counters.store(tid, if tid == FIRST_COLUMN || tid == FIRST_ROW { u32::MAX } else { 0 });
            }
            let mut word = tid;
            while word < num_odd_words {
                odd.store(word, 0);
                word += thread::block_dim_x();
            }
        }
    }

    /// Loads the window's `num_rows` rows of the columns that `columns` reaches, into shared memory too if that is where they
    /// belong; of the columns that are `counted`, counts the cells that are not finite. Without `words` neither is kept.
    ///
    /// Callers: every thread of the block, after [`reset`](Self::reset) and a barrier. A barrier is owed before the signs are
    /// used, and another before the next `reset`. Cost: sixteen loads a thread in flight.
    ///
    /// # Safety
    /// `words` has the columns times the rows' words, `odd` a word for each 32 columns, `counters` [`NUM_COUNTERS`] words.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn load<const IN_SHARED: bool>(
        cells: &Cells<IN_SHARED>,
        num_rows: u32,
        columns: Span,
        counted: Span,
        words: Option<u32>,
        odd: Shared<u32>,
        counters: Shared<u32>,
    ) {
        let (lane, num_warps) = (warp::lane_id(), thread::block_dim_x() / 32);
        let num_columns = cells.num_columns;
        let num_words = num_rows.div_ceil(32);
        let first_tile = columns.start / 32;
        let num_strips = num_rows.div_ceil(STRIP_ROWS);
        let num_tiles = columns.end.min(num_columns).div_ceil(32).max(first_tile) - first_tile;
        // SAFETY: the caller gave the words.
        let halves = words.map(|at| unsafe { Shared::<u16>::at(at) });
        let mut item = warp::warp_id();
        while item < num_strips * num_tiles {
            // SAFETY: the window has columns.
            let (strip, tile) = unsafe { div_rem(item, num_tiles) };
            let tile = first_tile + tile;
            let (r, c) = (STRIP_ROWS * strip, 32 * tile + lane);
            let num = (num_rows - r).min(STRIP_ROWS);
            // SAFETY: the mask tensor is what the window was made of.
            let strip_cells = unsafe { cells.window.strip(r, num_rows, c, num_columns) };
            let is_kept = IN_SHARED && words.is_some() && c < num_columns;
            let (mut positive, mut lowest, mut highest) = (0, u32::MAX, 0);
            let mut at = r * num_columns + c;
            let mut visit = |i: u32, cell: f32| {
                positive |= ((cell > 0.0) as u32) << i;
                // Positive zero becomes the greatest, as the negative ones are.
                lowest = lowest.min(cell.to_bits().wrapping_sub(1));
                highest = highest.max(cell.to_bits() & 0x7fff_ffff);
                if is_kept && i < num {
                    // SAFETY: a cell of the window.
                    unsafe { cells.shared.store(at, cell) };
                }
                at += num_columns;
            };
            // Written out: an iterator over the array would index it.
            let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = strip_cells;
            visit(0, a0);
            visit(1, a1);
            visit(2, a2);
            visit(3, a3);
            visit(4, a4);
            visit(5, a5);
            visit(6, a6);
            visit(7, a7);
            visit(8, b0);
            visit(9, b1);
            visit(10, b2);
            visit(11, b3);
            visit(12, b4);
            visit(13, b5);
            visit(14, b6);
            visit(15, b7);
            // Behind the last row there are no signs.
            positive &= (1 << num) - 1;
            // Positive and below the smallest; above the largest, or NaN.
            let is_odd = lowest < SMALLEST.to_bits() - 1 || highest > LARGEST.to_bits();
            // SAFETY: the column's bits of these rows; the last strip has those of the last word's second half, too.
            unsafe {
                if let Some(halves) = halves
                    && c < num_columns
                {
                    halves.store(2 * num_words * c + strip, positive as u16);
                    if strip == num_strips - 1 && num_strips < 2 * num_words {
                        halves.store(2 * num_words * c + num_strips, 0);
                    }
                }
            }
            let odd_lanes = warp::warp_vote_ballot(FULL_MASK, is_odd);
            let live_lanes = odd_lanes | warp::warp_vote_ballot(FULL_MASK, positive != 0);
            // SAFETY: the counters, and the tile's word.
            unsafe {
                if odd_lanes != 0 {
                    if lane == 0 {
                        odd.fetch_or(tile, odd_lanes);
                        counters.fetch_or(HAS_ODD, 1);
                    }
                    let mut i = 0;
                    while i < num {
                        if c < num_columns && counted.has(c) && !cells.window.cell(r + i, c).is_finite() {
                            counters.fetch_add(NONFINITE, 1);
                        }
                        i += 1;
                    }
                }
                if live_lanes != 0 && lane == 0 {
                    counters.fetch_min(FIRST_COLUMN, 32 * tile + live_lanes.trailing_zeros());
                    counters.fetch_max(COLUMN_END, 32 * tile + 32 - live_lanes.leading_zeros());
                    // A run that reaches the bottom may go on at the top of the next column.
                    counters.fetch_min(FIRST_ROW, if r + num < num_rows { r } else { 0 });
                    counters.fetch_max(ROW_END, r + num);
                }
            }
            item += num_warps;
        }
    }

    /// The signs that [`load`](Self::load) loaded, `num_words` words a column.
    ///
    /// # Safety
    /// They were loaded to these places, and a barrier was passed.
    #[inline(always)]
    pub unsafe fn loaded(words: Shared<u32>, num_words: u32, odd: Shared<u32>, counters: Shared<u32>) -> Self {
        // SAFETY: written before the barrier.
        let (live, live_words, nonfinite, has_odd) = unsafe {
            (
                Span { start: counters.load(FIRST_COLUMN), end: counters.load(COLUMN_END) },
                Span {
                    start: (counters.load(FIRST_ROW) / 32).min(num_words),
                    end: (counters.load(ROW_END) / 32 + 1).min(num_words),
                },
                counters.load(NONFINITE),
                counters.load(HAS_ODD) != 0,
            )
        };
        Self { words, odd, num_words, live, live_words, nonfinite, has_odd }
    }

    /// Whether an output column has cells that are not ordinary, or more than two that count.
    ///
    /// # Safety
    /// The column's cells are inside the window.
    #[inline(always)]
    pub unsafe fn is_odd(&self, column: &Taps) -> bool {
        if !self.has_odd || !column.is_pair() {
            return !column.is_pair();
        }
        // SAFETY: the caller vouches for the column.
        let is_odd = |c: u32| unsafe { self.odd.load(c / 32) >> (c % 32) & 1 != 0 };
        is_odd(column.first) || is_odd(column.second) || column.count == 3 && is_odd(column.first + 2)
    }

    /// Signs of the cells of window column `c` in the 32 window rows of word `k`; zeros behind the last row.
    ///
    /// # Safety
    /// The column was loaded, and `k` is below `num_words`.
    #[inline(always)]
    pub unsafe fn word(&self, c: u32, k: u32) -> u32 {
        // SAFETY: the caller vouches for column and word.
        unsafe { self.words.load(c * self.num_words + k) }
    }
}
