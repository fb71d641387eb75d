//! What the sizes of an image decide for its run lengths: the weights of its rows, which of them lie between which rows of the
//! mask window, and how much has room in shared memory. Computed once an image, for most requests while the selection runs.

use rfdetr_post_core::packed::{
    FLAG_BILINEAR, IMAGE_PLAIN_ROWS, ImageRecord, RleLayout,
    shared::masks::{self as layout, TILE_ENTRY_WORDS},
};

use crate::{
    axes::Axis,
    columns::Geometry,
    masks,
    scan::div_rem,
    simt::{math, params::Params, shared::Shared, thread},
};

/// Some row groups are irregular.
pub const HAS_IRREGULAR: u32 = 1;
/// Some row groups have no row.
pub const HAS_EMPTY: u32 = 2;
/// Rows blend two rows of the window, which is not empty, and signs, cells, groups and changes have room in shared memory.
pub const HAS_ROOM: u32 = 4;
/// A row group's end carries this bit if its last row has more than two cells.
pub const GROUP_IS_IRREGULAR: u32 = 1 << 31;

/// Whether nothing of the grid shows content: every mask is empty.
#[inline(always)]
pub fn is_empty(record: &ImageRecord) -> bool {
    record.window_w == 0 || record.window_h == 0
}

/// What follows from an image's geometry.
#[derive(Clone, Copy)]
pub struct Facts {
    /// [`HAS_ROOM`], [`HAS_IRREGULAR`], [`HAS_EMPTY`].
    pub findings: u32,
    /// Words of a column's changes; 0 if they have no room.
    pub num_words: u32,
    /// Words of a tile.
    pub tile_words: u32,
    /// Tiles that have room.
    pub num_tiles: u32,
}

impl Facts {
    /// Those of an image, but for what [`Rows::fill`] finds.
    #[inline(always)]
    pub fn new<const IN_SHARED: bool>(rle: &RleLayout, record: &ImageRecord) -> Self {
        let window_words = record.window_h.div_ceil(32);
        let has_room = record.window_w * window_words <= rle.num_sign_words
            && record.window_w <= 32 * layout::ODD_WORDS
            && (!IN_SHARED || record.window_w * record.window_h <= rle.num_cells)
            && TILE_ENTRY_WORDS + 32 * (1 + window_words) <= rle.num_tile_words
            && record.window_h <= rle.num_groups
            && record.flags & IMAGE_PLAIN_ROWS == 0
            && !is_empty(record);
        // Rows of which a tile keeps changes: those of the window, or of the content if they have room.
        let content_words = record.content_h.div_ceil(32);
        let (num_words, tile_words) = match (has_room, 32 * (1 + content_words) <= rle.num_tile_words) {
            (true, _) => (window_words, TILE_ENTRY_WORDS + 32 * (1 + window_words)),
            (false, true) => (content_words, 32 * (1 + content_words)),
            (false, false) => (0, 32),
        };
        // SAFETY: a tile has words.
        let (num_tiles, _) = unsafe { div_rem(rle.num_tile_words, tile_words) };
        let findings = if has_room { HAS_ROOM } else { 0 };
        Self { findings, num_words, tile_words, num_tiles: num_tiles.min(layout::MAX_TILES) }
    }

    /// Keeps them in shared memory. Callers: one thread; a barrier is owed.
    ///
    /// # Safety
    /// The block has the layout's shared memory, and a barrier was passed since they were read.
    #[inline(always)]
    pub unsafe fn store(&self) {
        // SAFETY: the layout has the words.
        let words = unsafe { Shared::<[u32; 4]>::at(layout::FACTS) };
        // SAFETY: as above.
        unsafe { words.store(0, [self.findings, self.num_words, self.tile_words, self.num_tiles]) };
    }

    /// Those that are kept.
    ///
    /// # Safety
    /// They were stored, and a barrier was passed.
    #[inline(always)]
    pub unsafe fn load() -> Self {
        // SAFETY: the layout has the words.
        let [findings, num_words, tile_words, num_tiles] = unsafe { Shared::<[u32; 4]>::at(layout::FACTS).load(0) };
        Self { findings, num_words, tile_words, num_tiles }
    }

    /// Whether changes are those of window rows, found by signs; else they are those of output rows.
    #[inline(always)]
    pub fn is_fast(&self) -> bool {
        self.findings & (HAS_ROOM | HAS_EMPTY) == HAS_ROOM
    }
}

/// The output rows: their weights, and which of them lie between which window rows.
#[derive(Clone, Copy)]
pub struct Rows {
    params: Params,
    image: u32,
    groups: Shared<u32>,
    weights: Shared<[f32; 2]>,
    /// Whether the weights have room; else they are read from the table.
    has_weights: bool,
    is_bilinear: bool,
}

impl Rows {
    /// # Safety
    /// The running entry's arguments are those of a mask kernel, which has the shared memory of their `rle`; `record` is the
    /// image's.
    #[inline(always)]
    pub unsafe fn new(params: Params, record: &ImageRecord, image: u32) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe {
            let args = masks::args(params);
            Self {
                params,
                image,
                groups: Shared::at(args.rle.groups_offset),
                weights: Shared::at(args.rle.weights_offset),
                has_weights: record.content_h <= args.rle.num_weights,
                is_bilinear: args.flags & FLAG_BILINEAR != 0,
            }
        }
    }

    /// Computes groups and weights. The group of window row `r` are the output rows whose first cell is `r`; kept is its end.
    /// Returns [`HAS_IRREGULAR`] and [`HAS_EMPTY`] for the groups that this thread ended.
    ///
    /// Example: 3 rows stretched to 7 have the first cells 0 0 0 0 1 1 2, so the ends are 4, 6 and 7.
    ///
    /// Callers: every thread of the block. A barrier is owed.
    ///
    /// # Safety
    /// As [`Rows::new`]; `axis` is the image's, and `has_groups` says whether its window's groups have room.
    #[inline(always)]
    pub unsafe fn fill(&self, axis: &Axis, has_groups: bool) -> u32 {
        let mut found = 0;
        let mut y = thread::thread_idx_x();
        while y < axis.n_out {
            let (first, count) = axis.span(y);
            // SAFETY: both arrays have room where they say so; first cells never decrease, so each group is ended by one row.
            unsafe {
                if self.has_weights {
                    // Those of rows of three cells are not used.
                    self.weights.store(y, axis.pair(y, (first, count)));
                }
                let next = if y + 1 < axis.n_out { axis.span(y + 1).0 } else { axis.n_in };
                if has_groups {
                    let mut r = if y == 0 { 0 } else { first };
                    while r < next {
                        // Above two cells only the last row of a group can be, by a rounding of its bounds: `high - low` is
                        // 2, so a third cell needs `low` within two ulp of the next cell, which the row below has passed.
                        let is_irregular = r == first && count > 2;
                        let end = if r < first { 0 } else { y + 1 };
                        self.groups.store(r, end | if is_irregular { GROUP_IS_IRREGULAR } else { 0 });
                        found |= if is_irregular { HAS_IRREGULAR } else { 0 };
                        found |= if r != first { HAS_EMPTY } else { 0 };
                        r += 1;
                    }
                }
            }
            y += thread::block_dim_x();
        }
        found
    }

    /// End of the group of window row `r`, with its flag.
    ///
    /// # Safety
    /// `r` is below the window's height, and the groups have room.
    #[inline(always)]
    pub unsafe fn group_end(&self, r: u32) -> u32 {
        // SAFETY: the caller vouches for the row.
        unsafe { self.groups.load(r) }
    }

    /// First output row of the group of window row `r`.
    ///
    /// # Safety
    /// As [`group_end`](Self::group_end).
    #[inline(always)]
    pub unsafe fn group_start(&self, r: u32) -> u32 {
        // SAFETY: the caller vouches for the row.
        unsafe { if r > 0 { self.group_end(r - 1) & !GROUP_IS_IRREGULAR } else { 0 } }
    }

    /// The value of content row `y`, which blends the window rows above and below it; not for irregular groups.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn blend(&self, y: u32, above: f32, below: f32) -> f32 {
        // SAFETY: the caller vouches for the row.
        let [w0, w1] = unsafe {
            if self.has_weights {
                self.weights.load(y)
            } else {
                let geometry = Geometry::new(&masks::args(self.params), masks::kept_record(), self.image);
                let [_, w0, w1, _] = geometry.row_entry(y);
                [f32::from_bits(w0), f32::from_bits(w1)]
            }
        };
        // A row of one cell has a second weight of zero, which changes no finite value.
        if self.is_bilinear { math::fma(w0, above, w1 * below) } else { math::fma(below, w1, above * w0) }
    }
}
