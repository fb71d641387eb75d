//! The taps of one axis of the resize, as the reference has them, and their groups.
//!
//! Taps depend on the sizes of input and output only, so they are built once and cached by [`Axes`].
#![forbid(unsafe_code)]

use std::sync::Arc;

use rfdetr_post_core::MaskResize;

use crate::simd::LANES;

/// One axis: `n_in` cells become `n_out` pixels.
#[derive(Debug)]
pub(crate) struct Axis {
    pub(crate) n_in: usize,
    pub(crate) n_out: usize,
    /// Pixel `i` has the taps `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
    /// Cell and weight of each tap, in the order of the arithmetic: the first product is rounded, the others fused.
    taps: Vec<(u32, f32)>,
    /// The same in groups, if the axis has the form that the crossings need.
    pub(crate) groups: Option<Groups>,
}

/// The pixels of an axis by the pair of cells that they lie between. Group `k` of `n_in + 1` lies between the cells
/// `k - 1` and `k`; the first and the last lie outside the outermost cell and see it only.
///
/// What [`Groups::new`] has checked for every group, because `crossing.rs` builds on it:
/// G1. weights are 0 or in 2^-60..=2, and the larger of the two is at least 1/4;
/// G2. from pixel to pixel the weight of the upper cell does not fall and that of the lower cell does not rise.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Group `k` is the pixels `starts[k]..starts[k + 1]`.
    pub(crate) starts: Vec<u32>,
    /// Pixels of the largest group.
    pub(crate) largest: usize,
    /// Weights of a group lie `stride` apart: a multiple of [`LANES`], filled up with zeros.
    pub(crate) stride: usize,
    /// Weights of the cell whose product is rounded.
    pub(crate) rounded: Vec<f32>,
    /// Weights of the cell whose product is fused.
    pub(crate) fused: Vec<f32>,
    /// Whether the rounded product is that of the lower cell.
    pub(crate) lower_first: bool,
}

impl Axis {
    /// The taps of `n_in` cells to `n_out` pixels; both positive.
    pub(crate) fn new(n_in: usize, n_out: usize, resize: MaskResize) -> Self {
        let mut axis = Self { n_in, n_out, starts: vec![0], taps: Vec::new(), groups: None };
        for i in 0..n_out {
            match resize {
                MaskResize::Antialias => antialias_taps(n_in, n_out, i, &mut axis.taps),
                MaskResize::Bilinear => bilinear_taps(n_in, n_out, i, &mut axis.taps),
            }
            axis.starts.push(axis.taps.len() as u32);
        }
        axis.groups = Groups::new(&axis, resize);
        axis
    }

    /// An axis that copies.
    pub(crate) fn identity(n: usize) -> Self {
        let starts = (0..=n as u32).collect();
        let taps = (0..n as u32).map(|i| (i, 1.0)).collect();
        Self { n_in: n, n_out: n, starts, taps, groups: None }
    }

    /// The taps of pixel `i`.
    #[inline(always)]
    pub(crate) fn taps(&self, i: usize) -> &[(u32, f32)] {
        &self.taps[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

impl Axis {
    /// The lowest cell that pixel `i` sees. It does not fall from pixel to pixel.
    pub(crate) fn first_cell(&self, i: usize) -> usize {
        self.ends(i).0
    }

    /// One more than the highest cell that pixel `i` sees. It does not fall from pixel to pixel.
    pub(crate) fn end_cell(&self, i: usize) -> usize {
        self.ends(i).1 + 1
    }

    /// The pixels that see a cell of a range.
    pub(crate) fn pixels_that_see(&self, (first, end): (usize, usize)) -> (usize, usize) {
        let search = |reached: &dyn Fn(usize) -> bool| {
            let (mut low, mut high) = (0, self.n_out);
            while low < high {
                let middle = low + (high - low) / 2;
                if reached(middle) { high = middle } else { low = middle + 1 }
            }
            low
        };
        let start = search(&|i| self.end_cell(i) > first);
        (start, search(&|i| self.first_cell(i) >= end).max(start))
    }

    /// Taps are in ascending or descending order.
    fn ends(&self, i: usize) -> (usize, usize) {
        let taps = self.taps(i);
        let (a, b) = (taps[0].0 as usize, taps[taps.len() - 1].0 as usize);
        (a.min(b), a.max(b))
    }
}

/// Spec 5.3, profile TC: the three fused operations are nvcc's contractions, and the sums round on their own.
fn antialias_taps(n_in: usize, n_out: usize, i: usize, taps: &mut Vec<(u32, f32)>) {
    let s = n_in as f32 / n_out as f32;
    let p = i as f32 + 0.5;
    let (support, inverse) = if s >= 1.0 { (s, (1.0 / f64::from(s)) as f32) } else { (1.0, 1.0) };
    let low = s.mul_add(p, -support) + 0.5;
    let high = s.mul_add(p, support) + 0.5;
    let first = (low as i64).max(0);
    let last = (high as i64).min(n_in as i64);
    let d = (-s).mul_add(p, first as f32);
    let begin = taps.len();
    let mut total = 0.0;
    for cell in first..last {
        let t = (((cell - first) as f32 + d) + 0.5) * inverse;
        let weight = if t.abs() < 1.0 { 1.0 - t.abs() } else { 0.0 };
        total += weight;
        taps.push((cell as u32, weight));
    }
    if total != 0.0 {
        taps[begin..].iter_mut().for_each(|(_, weight)| *weight /= total);
    }
}

/// Spec 5.6. The product of the upper cell is the rounded one.
fn bilinear_taps(n_in: usize, n_out: usize, i: usize, taps: &mut Vec<(u32, f32)>) {
    let s = n_in as f32 / n_out as f32;
    let p = i as f32 + 0.5;
    let u = s.mul_add(p, -0.5).max(0.0);
    let lower = (u as usize).min(n_in - 1);
    let upper = lower + usize::from(lower < n_in - 1);
    let upper_weight = u - lower as f32;
    taps.push((upper as u32, upper_weight));
    taps.push((lower as u32, 1.0 - upper_weight));
}

impl Groups {
    fn new(axis: &Axis, resize: MaskResize) -> Option<Self> {
        let lower_first = resize == MaskResize::Antialias;
        let n_in = axis.n_in;
        // Group, lower weight and upper weight of each pixel.
        let pixel = |i: usize| -> Option<(usize, f32, f32)> {
            let mut taps = axis.taps(i);
            // Cells are finite where groups are used, so an outermost tap of weight zero adds nothing.
            while taps.len() > 2 && taps[0].1 == 0.0 {
                taps = &taps[1..];
            }
            while taps.len() > 2 && taps[taps.len() - 1].1 == 0.0 {
                taps = &taps[..taps.len() - 1];
            }
            match *taps {
                [(0, weight)] => Some((0, 0.0, weight)),
                [(cell, weight)] if cell as usize == n_in - 1 => Some((n_in, weight, 0.0)),
                [(a, wa), (b, wb)] if a == b => {
                    Some((n_in, if lower_first { wa } else { wb }, if lower_first { wb } else { wa }))
                }
                [(a, wa), (b, wb)] if lower_first && b == a + 1 => Some((b as usize, wa, wb)),
                [(b, wb), (a, wa)] if !lower_first && b == a + 1 => Some((b as usize, wa, wb)),
                _ => None,
            }
        };
        let mut starts = vec![0u32];
        let mut largest = 0;
        let mut previous = (0.0, 0.0);
        for i in 0..axis.n_out {
            let (group, lower, upper) = pixel(i)?;
            let known = |w: f32| w == 0.0 || (2f32.powi(-60)..=2.0).contains(&w);
            if !known(lower) || !known(upper) || lower.max(upper) < 0.25 {
                return None;
            }
            if group + 1 < starts.len() {
                return None;
            }
            if group + 1 > starts.len() {
                starts.resize(group + 1, i as u32);
            } else if i > starts[group] as usize && (lower > previous.0 || upper < previous.1) {
                return None;
            }
            largest = largest.max(i + 1 - starts[group] as usize);
            previous = (lower, upper);
        }
        starts.resize(n_in + 2, axis.n_out as u32);
        let stride = largest.next_multiple_of(LANES);
        let mut groups = Self { starts, largest, stride, rounded: Vec::new(), fused: Vec::new(), lower_first };
        let len = stride.checked_mul(n_in + 1).filter(|&len| len <= 1 << 22)?;
        groups.rounded.resize(len, 0.0);
        groups.fused.resize(len, 0.0);
        for k in 0..=n_in {
            let (start, end) = (groups.starts[k] as usize, groups.starts[k + 1] as usize);
            for i in start..end {
                let (_, lower, upper) = pixel(i)?;
                let (rounded, fused) = if lower_first { (lower, upper) } else { (upper, lower) };
                groups.rounded[k * stride + i - start] = rounded;
                groups.fused[k * stride + i - start] = fused;
            }
        }
        Some(groups)
    }

    /// The cells of group `k` as (rounded, fused), of `n_in` cells.
    #[inline(always)]
    pub(crate) fn cells(&self, k: usize, n_in: usize) -> (usize, usize) {
        let (lower, upper) = (k.saturating_sub(1), k.min(n_in - 1));
        if self.lower_first { (lower, upper) } else { (upper, lower) }
    }

    /// The pixels of group `k`.
    #[inline(always)]
    pub(crate) fn pixels(&self, k: usize) -> (usize, usize) {
        (self.starts[k] as usize, self.starts[k + 1] as usize)
    }
}

/// The last axes that were built.
#[derive(Debug, Default)]
pub(crate) struct Axes {
    cache: Vec<(Key, Arc<Axis>)>,
    next: usize,
}

/// Sizes and resize; none copies.
type Key = (usize, usize, Option<MaskResize>);

/// Axes kept. Two for each image size and grid in use.
const CACHED_AXES: usize = 32;

impl Axes {
    /// The axes (horizontal, vertical) of a resize from `n_w x n_h` cells to `width x height` pixels.
    pub(crate) fn get(
        &mut self,
        (n_w, n_h): (usize, usize),
        (width, height): (usize, usize),
        resize: MaskResize,
    ) -> [Arc<Axis>; 2] {
        // Equal sizes are copied, whatever the resize.
        let resize = ((n_w, n_h) != (width, height)).then_some(resize);
        [(n_w, width, resize), (n_h, height, resize)].map(|key| self.axis(key))
    }

    fn axis(&mut self, key: Key) -> Arc<Axis> {
        if let Some((_, axis)) = self.cache.iter().find(|(cached, _)| *cached == key) {
            return Arc::clone(axis);
        }
        let (n_in, n_out, resize) = key;
        let axis = Arc::new(match resize {
            Some(resize) => Axis::new(n_in, n_out, resize),
            None => Axis::identity(n_in),
        });
        let entry = (key, Arc::clone(&axis));
        if self.cache.len() < CACHED_AXES {
            self.cache.push(entry);
        } else {
            self.cache[self.next % CACHED_AXES] = entry;
            self.next += 1;
        }
        axis
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every image that is not smaller than the grid takes the fast path.
    #[test]
    fn enlargements_have_groups() {
        for n_in in [1, 2, 3, 7, 78, 96, 108, 126, 156, 192] {
            for n_out in (n_in..300).chain([300, 427, 480, 640, 720, 1000, 1080, 1920, 2160, 3000, 3840, 4000]) {
                for resize in [MaskResize::Antialias, MaskResize::Bilinear] {
                    assert!(Axis::new(n_in, n_out, resize).groups.is_some(), "{n_in} -> {n_out}, {resize:?}");
                }
            }
        }
    }

    #[test]
    fn groups_lie_between_their_cells() {
        let axis = Axis::new(4, 10, MaskResize::Antialias);
        let groups = axis.groups.as_ref().unwrap();
        assert_eq!(groups.starts, [0, 1, 4, 6, 9, 10]);
        assert_eq!((groups.cells(0, 4), groups.cells(2, 4), groups.cells(4, 4)), ((0, 0), (1, 2), (3, 3)));
        let bilinear = Axis::new(4, 10, MaskResize::Bilinear);
        let groups = bilinear.groups.as_ref().unwrap();
        assert_eq!(groups.starts, [0, 0, 4, 6, 9, 10]);
        assert_eq!((groups.cells(1, 4), groups.cells(4, 4)), ((1, 0), (3, 3)));
    }

    #[test]
    fn pixels_see_what_their_taps_say() {
        for (n_in, n_out) in [(1, 1), (1, 7), (5, 3), (40, 9), (9, 40), (33, 33), (200, 1), (64, 63)] {
            for resize in [MaskResize::Antialias, MaskResize::Bilinear] {
                let axis = Axis::new(n_in, n_out, resize);
                for first in 0..n_in {
                    for end in [first + 1, (first + 3).min(n_in), n_in] {
                        let (start, stop) = axis.pixels_that_see((first, end));
                        for i in 0..n_out {
                            let sees = axis.taps(i).iter().any(|tap| (first..end).contains(&(tap.0 as usize)));
                            // Without antialias a reduction skips cells, and a pixel may step over the range.
                            assert!(!sees || (start..stop).contains(&i), "{n_in} -> {n_out}: {first}..{end}, {i}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn axes_are_kept() {
        let mut axes = Axes::default();
        let [a, _] = axes.get((4, 5), (10, 12), MaskResize::Antialias);
        let [b, _] = axes.get((4, 6), (10, 7), MaskResize::Antialias);
        assert!(Arc::ptr_eq(&a, &b));
        for n_out in 1..100 {
            axes.get((4, 4), (n_out, n_out), MaskResize::Bilinear);
        }
        assert!(axes.cache.len() <= CACHED_AXES);
    }
}
