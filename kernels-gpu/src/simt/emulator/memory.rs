//! Memory with a shadow: which bytes exist, which were written, and who touched each word last.
//!
//! The shadow has one cell for each 4-byte word. A cell holds the last plain write and one group of plain reads (the lanes
//! of one warp at one clock), which is all that most words ever need. Words touched by atomics, by narrower accesses, or by
//! readers that nothing orders get a list instead, exact to the byte and the lane; a plain write of the whole word ends it.

use std::panic::Location;
use std::rc::Rc;

use super::clock::{Knowledge, Stamp, View, lanes_of};
use super::fault::{FaultKind, Other, Place, Space};

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    ReadNc,
    Write,
    AtomicRead,
    AtomicWrite,
    /// Reads and writes in one.
    AtomicUpdate,
}

impl Kind {
    fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::AtomicWrite | Self::AtomicUpdate)
    }

    fn is_atomic(self) -> bool {
        matches!(self, Self::AtomicRead | Self::AtomicWrite | Self::AtomicUpdate)
    }

    fn conflicts(self, other: Self) -> bool {
        (self.is_write() || other.is_write()) && !(self.is_atomic() && other.is_atomic())
    }

    /// Whether a later access in conflict with `earlier`, itself ordered before `self`, conflicts with `self` too.
    fn replaces(self, earlier: Self) -> bool {
        match self {
            Self::Write => true,
            Self::Read | Self::ReadNc => !earlier.is_write(),
            Self::AtomicWrite | Self::AtomicUpdate => earlier.is_atomic(),
            Self::AtomicRead => earlier == Self::AtomicRead,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Read | Self::ReadNc => "read by",
            Self::Write => "written by",
            Self::AtomicRead => "read atomically by",
            Self::AtomicWrite | Self::AtomicUpdate => "updated atomically by",
        }
    }
}

/// One group of accesses in a word's list.
#[derive(Debug, Clone, Copy)]
struct Access {
    stamp: Stamp,
    lanes: u32,
    bytes: u8,
    kind: Kind,
    place: Place,
}

#[derive(Debug, Default)]
struct List {
    accesses: Vec<Access>,
    has_write: bool,
    /// What the last release, and the read-modify-writes since, attached to this word.
    released: Option<Rc<Knowledge>>,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    write: Stamp,
    reads: Stamp,
    write_place: Option<Place>,
    read_place: Option<Place>,
    read_lanes: u32,
    /// 1 + index of the word's list; zero for none.
    list: u32,
    /// Highest block that read the word by `load_nc`.
    nc_uid: u32,
}

const EMPTY: Cell = Cell {
    write: Stamp::NONE,
    reads: Stamp::NONE,
    write_place: None,
    read_place: None,
    read_lanes: 0,
    list: 0,
    nc_uid: 0,
};

/// Lists longer than this forget their oldest entry.
const MAX_LIST: usize = 256;

/// The other side of a race: `None` when the fault has none.
pub(super) type Found = (FaultKind, Option<(Stamp, Other)>);

/// A flat range of bytes with its shadow.
#[derive(Debug)]
pub(super) struct Memory {
    space: Space,
    base: u64,
    pub(super) bytes: Vec<u8>,
    /// A bit a byte: it exists.
    exists: Vec<u64>,
    /// A bit a byte: it was written.
    written: Vec<u64>,
    cells: Vec<Cell>,
    lists: Vec<List>,
    free_lists: Vec<u32>,
    listed_words: Vec<u32>,
}

/// Sets or clears `len` bits from `start`.
fn fill_bits(bits: &mut [u64], start: usize, len: usize, value: bool) {
    let end = start + len;
    let mut at = start;
    while at < end {
        let word_end = (((at >> 6) + 1) << 6).min(end);
        let count = word_end - at;
        let mask = (if count == 64 { u64::MAX } else { (1 << count) - 1 }) << (at & 63);
        if value {
            bits[at >> 6] |= mask;
        } else {
            bits[at >> 6] &= !mask;
        }
        at = word_end;
    }
}

impl Memory {
    pub(super) fn new(space: Space, base: u64) -> Self {
        Self {
            space,
            base,
            bytes: Vec::new(),
            exists: Vec::new(),
            written: Vec::new(),
            cells: Vec::new(),
            lists: Vec::new(),
            free_lists: Vec::new(),
            listed_words: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for `len` bytes in all, none of which exists yet.
    pub(super) fn grow(&mut self, len: usize) {
        let words = len.div_ceil(64);
        self.bytes.resize(words * 64, 0xa5);
        self.exists.resize(words, 0);
        self.written.resize(words, 0);
        self.cells.resize(words * 16, EMPTY);
    }

    /// Makes `len` bytes from `offset` exist, written or not.
    pub(super) fn add(&mut self, offset: usize, len: usize, written: bool) {
        fill_bits(&mut self.exists, offset, len, true);
        fill_bits(&mut self.written, offset, len, written);
    }

    pub(super) fn set_written(&mut self, offset: usize, len: usize) {
        fill_bits(&mut self.written, offset, len, true);
    }

    /// Forgets every byte below `end` and every access; nothing lies above.
    pub(super) fn clear(&mut self, end: usize) {
        let words = end.div_ceil(64).min(self.exists.len());
        self.exists[..words].fill(0);
        self.written[..words].fill(0);
        self.cells[..words * 16].fill(EMPTY);
        self.lists.clear();
        self.free_lists.clear();
        self.listed_words.clear();
    }

    /// Forgets every access.
    pub(super) fn forget(&mut self) {
        self.cells.fill(EMPTY);
        self.lists.clear();
        self.free_lists.clear();
        self.listed_words.clear();
    }

    /// Shared memory for the next block: as long as asked, nothing written. Cells of earlier blocks may stay, because
    /// their stamps name blocks of other clusters.
    pub(super) fn renew_shared(&mut self, len: usize) {
        if self.bytes.len() < len {
            self.grow(len);
        }
        self.exists.fill(0);
        self.written.fill(0);
        fill_bits(&mut self.exists, 0, len, true);
        for word in std::mem::take(&mut self.listed_words) {
            self.cells[word as usize].list = 0;
        }
        self.lists.clear();
        self.free_lists.clear();
    }

    pub(super) fn exists(&self, address: u64, len: usize) -> bool {
        let Some(offset) = address.checked_sub(self.base) else { return false };
        let offset = offset as usize;
        offset.checked_add(len).is_some_and(|end| end <= self.len())
            && (offset..offset + len).all(|at| self.exists[at >> 6] >> (at & 63) & 1 == 1)
    }

    pub(super) fn is_written(&self, address: u64, len: usize) -> bool {
        let offset = (address - self.base) as usize;
        (offset..offset + len).all(|at| self.written[at >> 6] >> (at & 63) & 1 == 1)
    }

    /// Bounds and alignment; the offset of the access on success.
    #[inline]
    fn locate(&self, address: u64, size: u32) -> Result<usize, Found> {
        let offset = address.wrapping_sub(self.base) as usize;
        if address & (size as u64 - 1) != 0 {
            return Err((FaultKind::Misaligned { space: self.space, address, bytes: size }, None));
        }
        let bits = ((1u64 << size) - 1) << (offset & 63);
        match self.exists.get(offset >> 6) {
            Some(exists) if exists & bits == bits => Ok(offset),
            _ => Err((FaultKind::OutOfBounds { space: self.space, address, bytes: size }, None)),
        }
    }

    /// Checks one access and enters it in the shadow; the offset of its bytes on success.
    #[inline]
    pub(super) fn access(
        &mut self,
        view: View<'_>,
        address: u64,
        size: u32,
        kind: Kind,
        place: Place,
    ) -> Result<usize, Found> {
        let offset = self.locate(address, size)?;
        let bits = ((1u64 << size) - 1) << (offset & 63);
        let written = &mut self.written[offset >> 6];
        if !matches!(kind, Kind::Write | Kind::AtomicWrite) && *written & bits != bits {
            return Err((FaultKind::Uninitialized { space: self.space, address, bytes: size }, None));
        }
        if kind.is_write() {
            *written |= bits;
        }
        let space = self.space;
        let fault = || FaultKind::Race { space, address, bytes: size };
        let first = offset >> 2;
        let count = (size as usize).div_ceil(4);
        for word in first..first + count {
            let cell = &mut self.cells[word];
            let me = view.lane.stamp;
            if kind == Kind::ReadNc {
                if cell.write.uid() >= view.uids.overlap && cell.write != Stamp::NONE {
                    let other = other_of(cell.write, 1 << (cell.write.lane() & 31), Kind::Write, cell.write_place);
                    return Err((FaultKind::NonCoherent { address }, Some(other)));
                }
                cell.nc_uid = cell.nc_uid.max(me.uid());
            } else if kind.is_write() && cell.nc_uid >= view.uids.launch {
                let other = other_of(cell.reads, cell.read_lanes, Kind::ReadNc, cell.read_place);
                return Err((FaultKind::NonCoherent { address }, Some(other)));
            }
            if cell.list != 0 || size < 4 || kind.is_atomic() {
                let bytes = if size < 4 { ((1u8 << size) - 1) << (offset & 3) } else { 15 };
                let found = self.access_list(view, word, bytes, kind, place);
                if let Err((nc, other)) = found {
                    return Err((if nc { FaultKind::NonCoherent { address } } else { fault() }, Some(other)));
                }
                continue;
            }
            let stale = |stamp: Stamp| space == Space::Shared && !view.is_of_cluster(stamp);
            if cell.write != Stamp::NONE && !cell.write.same_lane(me) {
                let lanes = 1 << (cell.write.lane() & 31);
                if !stale(cell.write) && !view.is_ordered(cell.write, lanes) {
                    return Err((fault(), Some(other_of(cell.write, lanes, Kind::Write, cell.write_place))));
                }
            }
            let reads_ordered = cell.read_lanes == 0
                || cell.reads == me.of_warp() && cell.read_lanes == 1 << (me.lane() & 31)
                || stale(cell.reads)
                || view.is_ordered(cell.reads, cell.read_lanes);
            if kind == Kind::Write {
                if !reads_ordered {
                    return Err((fault(), Some(other_of(cell.reads, cell.read_lanes, Kind::Read, cell.read_place))));
                }
                cell.write = me;
                cell.write_place = Some(place);
                cell.read_lanes = 0;
            } else if reads_ordered {
                cell.reads = me.of_warp();
                cell.read_lanes = 1 << (me.lane() & 31);
                cell.read_place = Some(place);
            } else if cell.reads == me.of_warp() {
                cell.read_lanes |= 1 << (me.lane() & 31);
            } else {
                let found = self.access_list(view, word, 15, kind, place);
                debug_assert!(found.is_ok(), "a read next to reads cannot conflict");
            }
        }
        Ok(offset)
    }

    /// The slow path: exact to the byte and the lane. Fails with (not coherent, other side).
    #[cold]
    fn access_list(
        &mut self,
        view: View<'_>,
        word: usize,
        bytes: u8,
        kind: Kind,
        place: Place,
    ) -> Result<(), (bool, (Stamp, Other))> {
        let me = view.lane.stamp;
        let at = self.list_of(word, view);
        let list = &mut self.lists[at];
        let mine = 1 << (me.lane() & 31);
        if !list.has_write && matches!(kind, Kind::Read | Kind::ReadNc) {
            // The common case: many warps read one word.
            let same =
                |access: &&mut Access| access.stamp == me.of_warp() && access.bytes == bytes && access.kind == kind;
            if let Some(access) = list.accesses.iter_mut().rev().find(same) {
                access.lanes |= mine;
                return Ok(());
            }
        }
        list.has_write |= kind.is_write();
        for access in &list.accesses {
            if access.bytes & bytes == 0 {
                continue;
            }
            if kind == Kind::ReadNc && access.kind.is_write() && access.stamp.uid() >= view.uids.overlap {
                return Err((true, other_of(access.stamp, access.lanes, access.kind, Some(access.place))));
            }
            if kind.conflicts(access.kind) && !view.is_ordered(access.stamp, access.lanes) {
                return Err((false, other_of(access.stamp, access.lanes, access.kind, Some(access.place))));
            }
        }
        if kind == Kind::Write && bytes == 15 {
            list.accesses.clear();
            list.has_write = false;
            list.released = None;
            self.free_lists.push(at as u32);
            let cell = &mut self.cells[word];
            *cell = Cell { write: me, write_place: Some(place), nc_uid: cell.nc_uid, ..EMPTY };
            return Ok(());
        }
        let mut merged = false;
        list.accesses.retain_mut(|access| {
            if access.kind == kind
                && access.bytes == bytes
                && access.stamp == me.of_warp()
                && std::ptr::eq(access.place, place)
            {
                access.lanes |= mine;
                merged = true;
                return true;
            }
            access.bytes & !bytes != 0 || !kind.replaces(access.kind) || !view.is_ordered(access.stamp, access.lanes)
        });
        if !merged {
            if list.accesses.len() == MAX_LIST {
                list.accesses.remove(0);
            }
            list.accesses.push(Access { stamp: me.of_warp(), lanes: mine, bytes, kind, place });
        }
        Ok(())
    }

    /// The word's list, made from its cell if it has none.
    fn list_of(&mut self, word: usize, view: View<'_>) -> usize {
        let cell = &mut self.cells[word];
        if cell.list != 0 {
            return cell.list as usize - 1;
        }
        let at = self.free_lists.pop().unwrap_or_else(|| {
            self.lists.push(List::default());
            self.lists.len() as u32 - 1
        }) as usize;
        cell.list = at as u32 + 1;
        if self.space == Space::Shared {
            self.listed_words.push(word as u32);
        }
        let list = &mut self.lists[at];
        let stale = |stamp: Stamp| self.space == Space::Shared && !view.is_of_cluster(stamp);
        if let (Some(place), false) = (cell.write_place, cell.write == Stamp::NONE || stale(cell.write)) {
            let lanes = 1 << (cell.write.lane() & 31);
            list.has_write = true;
            list.accesses.push(Access { stamp: cell.write.of_warp(), lanes, bytes: 15, kind: Kind::Write, place });
        }
        if let (Some(place), false) = (cell.read_place, cell.read_lanes == 0 || stale(cell.reads)) {
            let (stamp, lanes) = (cell.reads, cell.read_lanes);
            list.accesses.push(Access { stamp, lanes, bytes: 15, kind: Kind::Read, place });
        }
        cell.write = Stamp::NONE;
        cell.read_lanes = 0;
        at
    }

    /// What is attached to the word at `offset`, which an atomic access has just given a list.
    pub(super) fn released(&mut self, offset: usize) -> &mut Option<Rc<Knowledge>> {
        let list = self.cells[offset >> 2].list as usize - 1;
        &mut self.lists[list].released
    }

    /// The host wrote: no device access is left to race with.
    pub(super) fn forget_range(&mut self, offset: usize, len: usize) {
        for word in offset >> 2..(offset + len).div_ceil(4) {
            let list = self.cells[word].list;
            if list != 0 {
                self.lists[list as usize - 1] = List::default();
                self.free_lists.push(list - 1);
            }
            self.cells[word] = EMPTY;
        }
    }
}

fn other_of(stamp: Stamp, lanes: u32, kind: Kind, place: Option<&'static Location<'static>>) -> (Stamp, Other) {
    let lanes = lanes_of(lanes).map(|lane| stamp.warp() * 32 + lane).collect();
    // The engine fills in kernel and block, which the stamp only numbers.
    (stamp, Other { what: kind.what(), kernel: "", block: 0, lanes, place })
}
