//! The facade on the host. Names and contracts are those of `simt/device.rs`; every call is also a check.

/// Identity of the calling thread, and barriers over its block.
pub mod thread {
    use super::super::engine::{Call, identity, meet};
    use std::panic::Location;

    /// Index of the thread in its block.
    #[inline]
    pub fn thread_idx_x() -> u32 {
        identity().0
    }

    /// Index of the block in the grid.
    #[inline]
    pub fn block_idx_x() -> u32 {
        identity().1
    }

    /// Threads in a block.
    #[inline]
    pub fn block_dim_x() -> u32 {
        identity().2
    }

    /// Blocks in the grid.
    #[inline]
    pub fn grid_dim_x() -> u32 {
        identity().3
    }

    /// Waits for every thread of the block; orders all memory before it against all memory after it, in the block.
    #[track_caller]
    pub fn sync_threads() {
        meet(Call::Barrier, 0, 0, 0, Location::caller());
    }

    /// A barrier that returns in how many threads `predicate` was true.
    #[track_caller]
    pub fn sync_threads_count(predicate: bool) -> u32 {
        meet(Call::BarrierCount, 0, predicate as u32, 0, Location::caller())
    }

    /// A barrier that returns whether `predicate` was true in every thread.
    #[track_caller]
    pub fn sync_threads_and(predicate: bool) -> bool {
        meet(Call::BarrierAnd, 0, predicate as u32, 0, Location::caller()) != 0
    }

    /// A barrier that returns whether `predicate` was true in any thread.
    #[track_caller]
    pub fn sync_threads_or(predicate: bool) -> bool {
        meet(Call::BarrierOr, 0, predicate as u32, 0, Location::caller()) != 0
    }
}

/// Thread block clusters: blocks that run at the same time and write each other's shared memory.
pub mod cluster {
    use super::super::engine::{Call, cluster_identity, meet};
    use std::panic::Location;

    /// Index of the block in its cluster.
    #[inline]
    pub fn block_rank() -> u32 {
        cluster_identity().0
    }

    /// Blocks of the cluster.
    #[inline]
    pub fn num_blocks() -> u32 {
        cluster_identity().1
    }

    /// Waits for every thread of the cluster; orders all memory before it against all memory after it, in the cluster.
    #[track_caller]
    pub fn sync_cluster() {
        meet(Call::ClusterBarrier, 0, 0, 0, Location::caller());
    }
}

/// Operations over the 32 lanes of a warp.
pub mod warp {
    use super::super::engine::{Call, meet};
    use super::thread;
    use std::panic::Location;

    /// All 32 lanes.
    pub const FULL_MASK: u32 = u32::MAX;

    /// Index of the lane in its warp.
    #[inline]
    pub fn lane_id() -> u32 {
        thread::thread_idx_x() & 31
    }

    /// Index of the warp in its block.
    #[inline]
    pub fn warp_id() -> u32 {
        thread::thread_idx_x() >> 5
    }

    /// Waits for the lanes of `mask`; orders their memory before it against their memory after it.
    #[track_caller]
    pub fn sync_warp(mask: u32) {
        meet(Call::SyncWarp, mask, 0, 0, Location::caller());
    }

    /// The lanes of `mask` whose predicate is true.
    #[track_caller]
    pub fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
        meet(Call::Ballot, mask, predicate as u32, 0, Location::caller())
    }

    /// Whether any lane of `mask` has a true predicate.
    #[track_caller]
    pub fn warp_vote_any(mask: u32, predicate: bool) -> bool {
        meet(Call::Any, mask, predicate as u32, 0, Location::caller()) != 0
    }

    /// Whether every lane of `mask` has a true predicate.
    #[track_caller]
    pub fn warp_vote_all(mask: u32, predicate: bool) -> bool {
        meet(Call::All, mask, predicate as u32, 0, Location::caller()) != 0
    }

    /// The value that lane `lane & 31` passed in.
    #[track_caller]
    pub fn warp_shuffle_idx(mask: u32, value: u32, lane: u32) -> u32 {
        meet(Call::ShuffleIdx, mask, value, lane, Location::caller())
    }

    /// The value of the lane `delta` below; lanes below `delta` keep their own.
    #[track_caller]
    pub fn warp_shuffle_up(mask: u32, value: u32, delta: u32) -> u32 {
        meet(Call::ShuffleUp, mask, value, delta, Location::caller())
    }

    /// The value of the lane `delta` above; the upper `delta` lanes keep their own.
    #[track_caller]
    pub fn warp_shuffle_down(mask: u32, value: u32, delta: u32) -> u32 {
        meet(Call::ShuffleDown, mask, value, delta, Location::caller())
    }

    /// The value of the lane whose index differs by `lane_mask`.
    #[track_caller]
    pub fn warp_shuffle_xor(mask: u32, value: u32, lane_mask: u32) -> u32 {
        meet(Call::ShuffleXor, mask, value, lane_mask, Location::caller())
    }

    /// Sum over the lanes of `mask`, wrapping; valid in all of them.
    #[track_caller]
    pub fn warp_reduce_add(mask: u32, value: u32) -> u32 {
        meet(Call::ReduceAdd, mask, value, 0, Location::caller())
    }

    /// Least value over the lanes of `mask`; valid in all of them.
    #[track_caller]
    pub fn warp_reduce_min(mask: u32, value: u32) -> u32 {
        meet(Call::ReduceMin, mask, value, 0, Location::caller())
    }

    /// Greatest value over the lanes of `mask`; valid in all of them.
    #[track_caller]
    pub fn warp_reduce_max(mask: u32, value: u32) -> u32 {
        meet(Call::ReduceMax, mask, value, 0, Location::caller())
    }
}

mod element {
    /// What fits one load or store instruction. Sealed: the list in this file is all of it.
    pub trait Element: Copy + 'static {
        /// Size and alignment in bytes.
        const SIZE: u32;
    }

    macro_rules! elements {
        ($($type:ty),*) => { $(impl Element for $type { const SIZE: u32 = size_of::<$type>() as u32; })* };
    }

    elements!(u8, u16, u32, i32, f32, u64, [u32; 2], [f32; 2], [u32; 4], [f32; 4]);
}

macro_rules! atomics {
    ($space:expr, $index:ty; $($(#[$doc:meta])* $name:ident($before:ident, $value:ident) $order:ident => $after:expr;)*) => {
        $(
            $(#[$doc])*
            /// Returns the value before.
            ///
            /// # Safety
            /// The element lies inside the memory, and nobody accesses it other than atomically meanwhile.
            #[track_caller]
            pub unsafe fn $name(self, idx: $index, $value: u32) -> u32 {
                let address = self.element_address(idx);
                atomic($space, address, Kind::AtomicUpdate, Order::$order, Location::caller(), |$before| $after)
            }
        )*
    };
}

/// Dynamic shared memory.
pub mod shared {
    use super::super::engine::{Order, access, access_remote, atomic};
    use super::super::fault::Space;
    use super::super::memory::Kind;
    pub use super::element::Element;
    use std::marker::PhantomData;
    use std::panic::Location;

    /// An array in the dynamic shared memory of the block.
    #[derive(Debug, Clone, Copy)]
    pub struct Shared<T> {
        address: u32,
        element: PhantomData<T>,
    }

    impl<T: Element> Shared<T> {
        /// The array that begins `byte_offset` into the dynamic shared memory.
        ///
        /// # Safety
        /// `byte_offset` is a multiple of the size of `T` and lies inside what the launch asked for.
        #[inline]
        pub unsafe fn at(byte_offset: u32) -> Self {
            Self { address: byte_offset, element: PhantomData }
        }

        #[inline]
        fn element_address(self, idx: u32) -> u64 {
            self.address as u64 + idx as u64 * T::SIZE as u64
        }

        /// Reads element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, was written, and nobody writes it unordered with this.
        #[track_caller]
        #[inline]
        pub unsafe fn load(self, idx: u32) -> T {
            let bytes = access(Space::Shared, self.element_address(idx), T::SIZE, Kind::Read, Location::caller());
            // SAFETY: `access` checked bounds and that the bytes were written; every `Element` takes any bits.
            unsafe { bytes.cast::<T>().read_unaligned() }
        }

        /// Writes element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, and nobody accesses it unordered with this.
        #[track_caller]
        #[inline]
        pub unsafe fn store(self, idx: u32, value: T) {
            let bytes = access(Space::Shared, self.element_address(idx), T::SIZE, Kind::Write, Location::caller());
            // SAFETY: `access` checked bounds.
            unsafe { bytes.cast::<T>().write_unaligned(value) }
        }

        /// Reads element `idx` of the array at the same place in the shared memory of block `rank` of the cluster.
        ///
        /// # Safety
        /// As `load`, there. The cluster has such a block, it has begun, and it does not end before this.
        #[track_caller]
        #[inline]
        pub unsafe fn load_remote(self, rank: u32, idx: u32) -> T {
            let bytes = access_remote(rank, self.element_address(idx), T::SIZE, Kind::Read, Location::caller());
            // SAFETY: `access_remote` checked bounds and that the bytes were written; every `Element` takes any bits.
            unsafe { bytes.cast::<T>().read_unaligned() }
        }

        /// Writes element `idx` of the array at the same place in the shared memory of block `rank` of the cluster.
        ///
        /// # Safety
        /// As `store`, there. The cluster has such a block, it has begun, and it does not end before this.
        #[track_caller]
        #[inline]
        pub unsafe fn store_remote(self, rank: u32, idx: u32, value: T) {
            let bytes = access_remote(rank, self.element_address(idx), T::SIZE, Kind::Write, Location::caller());
            // SAFETY: `access_remote` checked bounds.
            unsafe { bytes.cast::<T>().write_unaligned(value) }
        }
    }

    /// Atomics of block scope that order no other memory.
    impl Shared<u32> {
        atomics! { Space::Shared, u32;
            /// Adds, wrapping.
            fetch_add(before, value) Relaxed => before.wrapping_add(value);
            /// Keeps the greater value.
            fetch_max(before, value) Relaxed => before.max(value);
            /// Keeps the smaller value.
            fetch_min(before, value) Relaxed => before.min(value);
            /// Sets bits.
            fetch_or(before, value) Relaxed => before | value;
            /// Replaces the value.
            exchange(_before, value) Relaxed => value;
        }
    }
}

/// Device memory.
pub mod global {
    use super::super::engine::{Order, access, atomic};
    use super::super::fault::Space;
    use super::super::memory::Kind;
    pub use super::element::Element;
    use std::marker::PhantomData;
    use std::panic::Location;

    /// An array in device memory, or in host memory mapped into it.
    #[repr(transparent)]
    #[derive(Debug, Clone, Copy)]
    pub struct Global<T> {
        address: u64,
        element: PhantomData<T>,
    }

    impl<T: Element> Global<T> {
        /// The array at `address`, which is a multiple of the size of `T`.
        #[inline]
        pub fn from_address(address: u64) -> Self {
            Self { address, element: PhantomData }
        }

        /// Address of the first element.
        #[inline]
        pub fn address(self) -> u64 {
            self.address
        }

        #[inline]
        fn element_address(self, idx: usize) -> u64 {
            self.address.wrapping_add((idx as u64).wrapping_mul(T::SIZE as u64))
        }

        /// Reads element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, was written, and nobody writes it unordered with this.
        #[track_caller]
        #[inline]
        pub unsafe fn load(self, idx: usize) -> T {
            let bytes = access(Space::Global, self.element_address(idx), T::SIZE, Kind::Read, Location::caller());
            // SAFETY: `access` checked bounds and that the bytes were written; every `Element` takes any bits.
            unsafe { bytes.cast::<T>().read_unaligned() }
        }

        /// [`load`](Self::load) that is issued here, not where its value is used first.
        ///
        /// # Safety
        /// As `load`.
        #[track_caller]
        #[inline]
        pub unsafe fn load_early(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { self.load(idx) }
        }

        /// Reads element `idx` past the coherent cache.
        ///
        /// # Safety
        /// As `load`, and nobody writes the element while this kernel or one that it overlaps runs.
        #[track_caller]
        #[inline]
        pub unsafe fn load_nc(self, idx: usize) -> T {
            let bytes = access(Space::Global, self.element_address(idx), T::SIZE, Kind::ReadNc, Location::caller());
            // SAFETY: as in `load`.
            unsafe { bytes.cast::<T>().read_unaligned() }
        }

        /// [`load_nc`](Self::load_nc) that is issued here, not where its value is used first.
        ///
        /// # Safety
        /// As `load_nc`.
        #[track_caller]
        #[inline]
        pub unsafe fn load_nc_early(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { self.load_nc(idx) }
        }

        /// Writes element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, and nobody accesses it unordered with this.
        #[track_caller]
        #[inline]
        pub unsafe fn store(self, idx: usize, value: T) {
            let bytes = access(Space::Global, self.element_address(idx), T::SIZE, Kind::Write, Location::caller());
            // SAFETY: `access` checked bounds.
            unsafe { bytes.cast::<T>().write_unaligned(value) }
        }

        /// Writes element `idx`, which no kernel will read soon.
        ///
        /// # Safety
        /// As `store`.
        #[track_caller]
        #[inline]
        pub unsafe fn store_streaming(self, idx: usize, value: T) {
            // SAFETY: passed on to the caller.
            unsafe { self.store(idx, value) }
        }
    }

    macro_rules! ordered {
        (load $($(#[$doc:meta])* $name:ident $order:ident;)*) => {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The element lies inside the memory, was written, and is only accessed atomically meanwhile.
                #[track_caller]
                pub unsafe fn $name(self, idx: usize) -> u32 {
                    let address = self.element_address(idx);
                    atomic(Space::Global, address, Kind::AtomicRead, Order::$order, Location::caller(), |before| before)
                }
            )*
        };
        (store $($(#[$doc:meta])* $name:ident $order:ident;)*) => {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The element lies inside the memory, and is only accessed atomically meanwhile.
                #[track_caller]
                pub unsafe fn $name(self, idx: usize, value: u32) {
                    let address = self.element_address(idx);
                    atomic(Space::Global, address, Kind::AtomicWrite, Order::$order, Location::caller(), |_| value);
                }
            )*
        };
    }

    impl Global<u32> {
        atomics! { Space::Global, usize;
            /// Adds, wrapping; device scope, orders no other memory.
            fetch_add(before, value) Relaxed => before.wrapping_add(value);
            /// Keeps the greater value; device scope, orders no other memory.
            fetch_max(before, value) Relaxed => before.max(value);
            /// Keeps the smaller value; device scope, orders no other memory.
            fetch_min(before, value) Relaxed => before.min(value);
            /// Sets bits; device scope, orders no other memory.
            fetch_or(before, value) Relaxed => before | value;
            /// Replaces the value; device scope, orders no other memory.
            exchange(_before, value) Relaxed => value;
            /// Adds, wrapping; acquire and release, device scope.
            fetch_add_acq_rel(before, value) AcqRel => before.wrapping_add(value);
            /// Adds, wrapping; acquire and release, system scope.
            fetch_add_acq_rel_system(before, value) AcqRel => before.wrapping_add(value);
        }
        ordered! { load
            /// Reads element `idx` anew each time; orders no other memory.
            load_volatile Relaxed;
            /// Reads element `idx`; what follows sees what its writer released. Device scope.
            load_acquire Acquire;
        }
        ordered! { store
            /// Writes element `idx` at once; orders no other memory.
            store_volatile Relaxed;
            /// Writes element `idx` after everything before it. Device scope.
            store_release Release;
            /// Writes element `idx` after everything before it, for the host too.
            store_release_system Release;
        }
    }
}

/// The argument record, read in place.
pub mod params {
    use super::super::engine::fail_here;
    use super::super::fault::{FaultKind, Space};
    use super::element::Element;
    use std::panic::Location;

    /// The argument record of the running entry, for reads at an index known only at run time.
    #[derive(Debug, Clone, Copy)]
    pub struct Params {
        record: *const u8,
        len: u32,
    }

    impl Params {
        pub(in super::super) fn new<A>(args: &A) -> Self {
            Self { record: std::ptr::from_ref(args).cast(), len: size_of::<A>() as u32 }
        }

        /// The record itself: a device has registers to save.
        #[inline]
        pub fn anew(self) -> Self {
            self
        }

        /// Reads a `T` that begins `byte_offset` into the argument record.
        ///
        /// # Safety
        /// A `T` lies there, at a multiple of its size.
        #[track_caller]
        #[inline]
        pub unsafe fn load<T: Element>(self, byte_offset: u32) -> T {
            let (space, address, bytes) = (Space::Params, byte_offset as u64, T::SIZE);
            if byte_offset as u64 + T::SIZE as u64 > self.len as u64 {
                fail_here(FaultKind::OutOfBounds { space, address, bytes }, Location::caller());
            }
            if !byte_offset.is_multiple_of(T::SIZE) {
                fail_here(FaultKind::Misaligned { space, address, bytes }, Location::caller());
            }
            // SAFETY: the range was checked above; the record is a `Copy` value that outlives the run.
            unsafe { self.record.add(byte_offset as usize).cast::<T>().read_unaligned() }
        }
    }
}

/// Memory fences: they order, they do not wait.
pub mod fence {
    use super::super::engine;
    use std::panic::Location;

    /// Acquire and release fence of device scope.
    #[track_caller]
    pub fn device() {
        engine::fence(Location::caller());
    }

    /// Acquire and release fence of system scope.
    #[track_caller]
    pub fn system() {
        engine::fence(Location::caller());
    }
}

/// Programmatic dependent launch: two grids of one stream that overlap.
pub mod grid {
    use super::super::engine;
    use std::panic::Location;

    /// Waits until the grid before this one in the stream has ended and its memory is visible.
    #[track_caller]
    pub fn depend_wait() {
        engine::depend_wait(Location::caller());
    }

    /// Lets the next grid of the stream start once every block of this one has called this or ended.
    #[track_caller]
    pub fn launch_dependents() {
        engine::launch_dependents(Location::caller());
    }
}

/// Arithmetic whose rounding is part of the contract.
pub mod math {
    /// The value, of which the compiler knows nothing, each time anew: a loop with such a bound is not unrolled, and one
    /// with such a condition inside is not made twice.
    pub fn opaque(value: u32) -> u32 {
        std::hint::black_box(value)
    }

    /// `a * b + c`, rounded once, to nearest.
    #[inline]
    pub fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    /// `a * b + c`, rounded once, toward minus infinity.
    pub fn fma_rd(a: f32, b: f32, c: f32) -> f32 {
        // The product of two f32 is exact in f64; the sum is an f64 and, by Knuth's two-sum, the exact rest.
        let (product, c) = (a as f64 * b as f64, c as f64);
        let sum = product + c;
        let c_part = sum - product;
        let rest = (product - (sum - c_part)) + (c - c_part);
        if sum == 0.0 {
            // An exact zero is negative in this direction unless both terms were positive zeros.
            let both_positive = product == 0.0 && product.is_sign_positive() && c.is_sign_positive();
            return if both_positive { 0.0 } else { -0.0 };
        }
        let nearest = sum as f32;
        let is_above = nearest as f64 > sum || (nearest as f64 == sum && rest < 0.0);
        if is_above { nearest.next_down() } else { nearest }
    }

    /// `a / b`, rounded to nearest.
    #[inline]
    pub fn div(a: f32, b: f32) -> f32 {
        a / b
    }

    /// `1 / x`, rounded to nearest: what `div(1.0, x)` is, in fewer steps.
    #[inline]
    pub fn reciprocal(x: f32) -> f32 {
        1.0 / x
    }

    /// About `a / b`, and less exact than on the device: whoever relies on it is found out.
    #[inline]
    pub fn div_approx(a: f32, b: f32) -> f32 {
        f32::from_bits((a / b).to_bits() & !0xffff)
    }

    /// 2 to the `x`: subnormal input and output become zero, as on the device, but the value is the correctly rounded
    /// one where the device's is an approximation with an error of up to 2 ulp. Bits may differ.
    pub fn ex2_approx_ftz(x: f32) -> f32 {
        let flush = |value: f32| if value.is_subnormal() { 0.0f32.copysign(value) } else { value };
        flush((flush(x) as f64).exp2() as f32)
    }

    /// The nearest whole number, ties to even.
    #[inline]
    pub fn rne(x: f32) -> f32 {
        x.round_ties_even()
    }

    /// An IEEE half as `f32`; exact. A NaN may change its payload.
    pub fn f16_to_f32(bits: u16) -> f32 {
        let sign = if bits >> 15 == 1 { -1.0f32 } else { 1.0 };
        let (exponent, fraction) = (bits >> 10 & 31, bits & 0x3ff);
        match exponent {
            // Subnormals count in units of 2^-24.
            0 => sign * (fraction as f32 * f32::from_bits(103 << 23)),
            31 if fraction == 0 => sign * f32::INFINITY,
            31 => f32::from_bits(0x7fff_ffff),
            _ => f32::from_bits((bits as u32 & 0x8000) << 16 | (exponent as u32 + 112) << 23 | (fraction as u32) << 13),
        }
    }

    /// A bfloat16 as `f32`; exact.
    #[inline]
    pub fn bf16_to_f32(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::math;

    /// Values with few bits and near exponents, so that `a * b + c` is exact in an i128 of units of 2^-80.
    fn sample(random: &mut super::super::Random) -> (f32, i128) {
        let mantissa = (random.next() % (1 << 25)) as i128 - (1 << 24);
        let exponent = random.below(30) as i32 - 20;
        (mantissa as f32 * (exponent as f32).exp2(), mantissa << (exponent + 20))
    }

    fn units(value: f32) -> i128 {
        // 2^40 units a whole number; all f32 here are multiples of 2^-40.
        (value as f64 * 40f64.exp2()) as i128
    }

    #[test]
    fn fma_rd_is_the_greatest_value_not_above() {
        let mut random = super::super::Random(5);
        for _ in 0..200_000 {
            let ((a, exact_a), (b, exact_b), (c, exact_c)) =
                (sample(&mut random), sample(&mut random), sample(&mut random));
            // `exact_*` count 2^-20, so the product counts 2^-40.
            let exact = exact_a * exact_b + (exact_c << 20);
            let result = math::fma_rd(a, b, c);
            assert!(units(result) <= exact, "{a} * {b} + {c} = {result}, above");
            assert!(result.abs() < 1.0 || units(result.next_up()) > exact, "{a} * {b} + {c} = {result}, not greatest");
        }
        assert_eq!(math::fma_rd(1.0, 1.0, -1.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(math::fma_rd(0.0, 1.0, 0.0).to_bits(), 0);
        assert_eq!(math::fma_rd(f32::MAX, 2.0, 0.0), f32::MAX);
        assert_eq!(math::fma_rd(f32::MAX, -2.0, 0.0), f32::NEG_INFINITY);
        assert_eq!(math::fma_rd(f32::INFINITY, 1.0, 1.0), f32::INFINITY);
        assert!(math::fma_rd(f32::INFINITY, 0.0, 1.0).is_nan());
        assert_eq!(math::fma_rd(1.0, 1.0, -1e-30), 1f32.next_down());
        assert_eq!(math::fma_rd(1.0, 1.0, 1e-30), 1.0);
    }

    #[test]
    fn every_half() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64 / 1024.0);
            let magnitude = match exponent {
                0 => fraction * (-14f64).exp2(),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + fraction) * ((exponent - 15) as f64).exp2(),
            };
            let expected = if bits >> 15 == 1 { -magnitude } else { magnitude } as f32;
            let got = math::f16_to_f32(bits);
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:#06x}: {got}");
        }
    }

    #[test]
    fn rounding() {
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(math::rne), [0.0, 2.0, 2.0, -0.0, -2.0]);
        assert_eq!(math::bf16_to_f32(0x3f80), 1.0);
        assert_eq!(math::ex2_approx_ftz(3.0), 8.0);
        assert_eq!(math::ex2_approx_ftz(-140.0), 0.0);
    }
}
