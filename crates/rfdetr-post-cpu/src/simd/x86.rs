//! AVX2 with FMA, and AVX-512.

use core::arch::x86_64::*;

use super::{Edges, Isa, Kernel, LANES, ORDINARY_MIN, ORDINARY_RANGE, write_below};

/// AVX2 with FMA, and the bit instructions that came with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// AVX-512 F, BW, DQ and VL, on top of [`Avx2`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx2 {
    /// The token, if this machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Self(()))
    }
}

impl Avx512 {
    /// The token, if this machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let has = Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Self(()))
    }
}

/// Zeros for the few bytes beside the vectors. The C library must not be called for none: its masked store of nothing
/// still touches the line, which the streamed stores around it then have to wait for (measured: 13,000 such calls took
/// 1.4 ms).
#[inline(always)]
fn fill_edge(edge: &mut [u8]) {
    if !edge.is_empty() {
        edge.fill(0);
    }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn vectorize_avx2<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
    kernel.run(isa)
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn vectorize_avx512<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
    kernel.run(isa)
}

impl Isa for Avx2 {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `detect` is the only way to a token, and it checked the features.
        unsafe { vectorize_avx2(self, kernel) }
    }

    #[inline(always)]
    fn positive_mask(self, values: &[f32; LANES]) -> u32 {
        // SAFETY: the token proves AVX2; both loads lie inside the 16 values.
        unsafe {
            let zero = _mm256_setzero_ps();
            let low = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_loadu_ps(values.as_ptr()), zero);
            let high = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_loadu_ps(values.as_ptr().add(8)), zero);
            _mm256_movemask_ps(low) as u32 | (_mm256_movemask_ps(high) as u32) << 8
        }
    }

    #[inline(always)]
    fn unusual_mask(self, values: &[f32; LANES]) -> u32 {
        let mut unusual = 0;
        // SAFETY: the token proves AVX2; both loads lie inside the 16 values.
        unsafe {
            let magnitude_bits = _mm256_set1_epi32(i32::MAX);
            let min = _mm256_set1_epi32(ORDINARY_MIN as i32);
            let last = _mm256_set1_epi32(ORDINARY_RANGE as i32 - 1);
            for half in [0, 8] {
                let bits = _mm256_loadu_si256(values.as_ptr().add(half).cast());
                let magnitude = _mm256_and_si256(bits, magnitude_bits);
                let above_min = _mm256_sub_epi32(magnitude, min);
                let inside = _mm256_cmpeq_epi32(_mm256_min_epu32(above_min, last), above_min);
                let zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
                let usual = _mm256_castsi256_ps(_mm256_or_si256(inside, zero));
                unusual |= (!_mm256_movemask_ps(usual) as u32 & 0xff) << half;
            }
        }
        unusual
    }

    #[inline(always)]
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32 {
        // SAFETY: the token proves AVX2 and FMA; all loads lie inside the 16 weights.
        unsafe {
            let (a, b, zero) = (_mm256_set1_ps(a), _mm256_set1_ps(b), _mm256_setzero_ps());
            let low = _mm256_mul_ps(a, _mm256_loadu_ps(wa.as_ptr()));
            let low = _mm256_fmadd_ps(b, _mm256_loadu_ps(wb.as_ptr()), low);
            let high = _mm256_mul_ps(a, _mm256_loadu_ps(wa.as_ptr().add(8)));
            let high = _mm256_fmadd_ps(b, _mm256_loadu_ps(wb.as_ptr().add(8)), high);
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(low, zero)) as u32;
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(high, zero)) as u32;
            (low | high << 8).count_ones()
        }
    }

    #[inline(always)]
    fn edges(
        self,
        rounded: &[f32; LANES],
        fused: &[f32; LANES],
        lower_first: bool,
        weights: (&[f32], &[f32]),
    ) -> Edges {
        let mut edges = ([0; LANES], [0; LANES]);
        let num_rows = weights.0.len() as i32;
        // SAFETY: the token proves AVX2 and FMA; loads and stores lie inside the 16 values.
        unsafe {
            let zero = _mm256_setzero_ps();
            let (r0, r1) = (_mm256_loadu_ps(rounded.as_ptr()), _mm256_loadu_ps(rounded.as_ptr().add(8)));
            let (f0, f1) = (_mm256_loadu_ps(fused.as_ptr()), _mm256_loadu_ps(fused.as_ptr().add(8)));
            // Positive rows: a true comparison is -1.
            let (mut c0, mut c1) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (&wr, &wf) in weights.0.iter().zip(weights.1) {
                let (wr, wf) = (_mm256_set1_ps(wr), _mm256_set1_ps(wf));
                let v0 = _mm256_fmadd_ps(f0, wf, _mm256_mul_ps(r0, wr));
                let v1 = _mm256_fmadd_ps(f1, wf, _mm256_mul_ps(r1, wr));
                c0 = _mm256_sub_epi32(c0, _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(v0, zero)));
                c1 = _mm256_sub_epi32(c1, _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(v1, zero)));
            }
            let n = _mm256_set1_epi32(num_rows);
            let (l0, l1) = if lower_first { (r0, r1) } else { (f0, f1) };
            let falls0 = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(l0, zero));
            let falls1 = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(l1, zero));
            let t0 = _mm256_blendv_epi8(_mm256_sub_epi32(n, c0), c0, falls0);
            let t1 = _mm256_blendv_epi8(_mm256_sub_epi32(n, c1), c1, falls1);
            let one = _mm256_set1_epi32(1);
            let (u0, u1) = (_mm256_andnot_si256(falls0, one), _mm256_andnot_si256(falls1, one));
            // Packing works inside 128-bit halves, so the middle quarters change places.
            let t = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(t0, t1));
            let u = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(u0, u1));
            let t = _mm_packus_epi16(_mm256_castsi256_si128(t), _mm256_extracti128_si256::<1>(t));
            let u = _mm_packus_epi16(_mm256_castsi256_si128(u), _mm256_extracti128_si256::<1>(u));
            _mm_storeu_si128(edges.0.as_mut_ptr().cast(), t);
            _mm_storeu_si128(edges.1.as_mut_ptr().cast(), u);
        }
        edges
    }

    #[inline(always)]
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32 {
        // SAFETY: the token proves AVX2; both loads lie inside the 16 values.
        unsafe {
            let (min, least) = (_mm256_set1_ps(min), _mm256_set1_ps(f32::NEG_INFINITY));
            let (low, high) = (_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8)));
            let not_below = (_mm256_cmp_ps::<_CMP_NLT_UQ>(low, min), _mm256_cmp_ps::<_CMP_NLT_UQ>(high, min));
            let infinite = (_mm256_cmp_ps::<_CMP_EQ_OQ>(low, least), _mm256_cmp_ps::<_CMP_EQ_OQ>(high, least));
            let low = _mm256_movemask_ps(_mm256_or_ps(not_below.0, infinite.0)) as u32;
            let high = _mm256_movemask_ps(_mm256_or_ps(not_below.1, infinite.1)) as u32;
            low | high << 8
        }
    }

    #[inline(always)]
    fn stream_zero(self, out: &mut [u8]) {
        // SAFETY: zeros are valid bytes, and so are any 32 bytes as a vector.
        let (head, body, tail) = unsafe { out.align_to_mut::<__m256i>() };
        fill_edge(head);
        for vector in body {
            // SAFETY: the token proves AVX2; the vector is aligned and ours to write.
            unsafe { _mm256_stream_si256(vector, _mm256_setzero_si256()) };
        }
        fill_edge(tail);
    }

    #[inline(always)]
    fn stream_below(self, row: u8, thresholds: &[u8], flips: &[u8], out: &mut [u8]) {
        // SAFETY: what is written below are valid bytes, and any 32 bytes are a vector.
        let (head, body, tail) = unsafe { out.align_to_mut::<__m256i>() };
        let (t, thresholds) = thresholds.split_at(head.len());
        let (u, flips) = flips.split_at(head.len());
        write_below(row, t, u, head);
        let (t, t_tail) = thresholds.as_chunks::<32>();
        let (u, u_tail) = flips.as_chunks::<32>();
        for (vector, (t, u)) in body.iter_mut().zip(t.iter().zip(u)) {
            // SAFETY: the token proves AVX2; loads are of 32 bytes; the vector is aligned and ours to write.
            unsafe {
                let t = _mm256_loadu_si256(t.as_ptr().cast());
                let u = _mm256_loadu_si256(u.as_ptr().cast());
                let not_above = _mm256_cmpeq_epi8(_mm256_min_epu8(t, _mm256_set1_epi8(row as i8)), t);
                let above = _mm256_andnot_si256(not_above, _mm256_set1_epi8(1));
                _mm256_stream_si256(vector, _mm256_xor_si256(above, u));
            }
        }
        write_below(row, t_tail, u_tail, tail);
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: every x86-64 machine has the instruction.
        unsafe { _mm_sfence() };
    }

    #[inline(always)]
    fn below_mask(self, row: u8, thresholds: &[u8; 64], flips: &[u8; 64]) -> u64 {
        // SAFETY: the token proves AVX2; all loads lie inside the 64 bytes.
        unsafe {
            let row = _mm256_set1_epi8(row as i8);
            let mut bits = 0;
            for half in [0, 32] {
                let t = _mm256_loadu_si256(thresholds.as_ptr().add(half).cast());
                let u = _mm256_loadu_si256(flips.as_ptr().add(half).cast());
                // Not above the row is what the unsigned minimum leaves as it is.
                let not_above = _mm256_cmpeq_epi8(_mm256_min_epu8(t, row), t);
                // The lowest bit of the flips, moved to the sign, where the mask is taken.
                let flip = _mm256_slli_epi16::<7>(u);
                let half_bits = !_mm256_movemask_epi8(_mm256_xor_si256(not_above, flip)) as u32;
                bits |= u64::from(half_bits) << half;
            }
            bits
        }
    }
}

impl Isa for Avx512 {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `detect` is the only way to a token, and it checked the features.
        unsafe { vectorize_avx512(self, kernel) }
    }

    #[inline(always)]
    fn positive_mask(self, values: &[f32; LANES]) -> u32 {
        // SAFETY: the token proves AVX-512F; the load is the 16 values.
        unsafe {
            let v = _mm512_loadu_ps(values.as_ptr());
            _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, _mm512_setzero_ps()).into()
        }
    }

    #[inline(always)]
    fn unusual_mask(self, values: &[f32; LANES]) -> u32 {
        // SAFETY: the token proves AVX-512F; the load is the 16 values.
        unsafe {
            let magnitude_bits = _mm512_set1_epi32(i32::MAX);
            let bits = _mm512_loadu_si512(values.as_ptr().cast());
            let above_min =
                _mm512_sub_epi32(_mm512_and_si512(bits, magnitude_bits), _mm512_set1_epi32(ORDINARY_MIN as i32));
            let nonzero = _mm512_test_epi32_mask(bits, magnitude_bits);
            let last = _mm512_set1_epi32(ORDINARY_RANGE as i32 - 1);
            _mm512_mask_cmpgt_epu32_mask(nonzero, above_min, last).into()
        }
    }

    #[inline(always)]
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32 {
        // SAFETY: the token proves AVX-512F; the loads are the 16 weights.
        unsafe {
            let product = _mm512_mul_ps(_mm512_set1_ps(a), _mm512_loadu_ps(wa.as_ptr()));
            let value = _mm512_fmadd_ps(_mm512_set1_ps(b), _mm512_loadu_ps(wb.as_ptr()), product);
            u32::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(value, _mm512_setzero_ps())).count_ones()
        }
    }

    #[inline(always)]
    fn edges(
        self,
        rounded: &[f32; LANES],
        fused: &[f32; LANES],
        lower_first: bool,
        weights: (&[f32], &[f32]),
    ) -> Edges {
        let mut edges = ([0; LANES], [0; LANES]);
        let num_rows = weights.0.len() as i32;
        // SAFETY: the token proves AVX-512F; loads and stores are the 16 values.
        unsafe {
            let (zero, one) = (_mm512_setzero_ps(), _mm512_set1_epi32(1));
            let (r, f) = (_mm512_loadu_ps(rounded.as_ptr()), _mm512_loadu_ps(fused.as_ptr()));
            let mut count = _mm512_setzero_si512();
            for (&wr, &wf) in weights.0.iter().zip(weights.1) {
                let value = _mm512_fmadd_ps(f, _mm512_set1_ps(wf), _mm512_mul_ps(r, _mm512_set1_ps(wr)));
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(value, zero);
                count = _mm512_mask_add_epi32(count, positive, count, one);
            }
            let lower = if lower_first { r } else { f };
            let rises = _mm512_cmp_ps_mask::<_CMP_NGT_UQ>(lower, zero);
            let threshold = _mm512_mask_sub_epi32(count, rises, _mm512_set1_epi32(num_rows), count);
            let flip = _mm512_maskz_mov_epi32(rises, one);
            _mm_storeu_si128(edges.0.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(threshold));
            _mm_storeu_si128(edges.1.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(flip));
        }
        edges
    }

    #[inline(always)]
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32 {
        // SAFETY: the token proves AVX-512F; the load is the 16 values.
        unsafe {
            let v = _mm512_loadu_ps(values.as_ptr());
            let not_below = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(v, _mm512_set1_ps(min));
            let infinite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(v, _mm512_set1_ps(f32::NEG_INFINITY));
            (not_below | infinite).into()
        }
    }

    #[inline(always)]
    fn stream_zero(self, out: &mut [u8]) {
        // SAFETY: zeros are valid bytes, and so are any 64 bytes as a vector.
        let (head, body, tail) = unsafe { out.align_to_mut::<__m512i>() };
        fill_edge(head);
        for vector in body {
            // SAFETY: the token proves AVX-512F; the vector is aligned and ours to write.
            unsafe { _mm512_stream_si512(vector, _mm512_setzero_si512()) };
        }
        fill_edge(tail);
    }

    #[inline(always)]
    fn stream_below(self, row: u8, thresholds: &[u8], flips: &[u8], out: &mut [u8]) {
        // SAFETY: what is written below are valid bytes, and any 64 bytes are a vector.
        let (head, body, tail) = unsafe { out.align_to_mut::<__m512i>() };
        let (t, thresholds) = thresholds.split_at(head.len());
        let (u, flips) = flips.split_at(head.len());
        write_below(row, t, u, head);
        let (t, t_tail) = thresholds.as_chunks::<64>();
        let (u, u_tail) = flips.as_chunks::<64>();
        for (vector, (t, u)) in body.iter_mut().zip(t.iter().zip(u)) {
            // SAFETY: the token proves AVX-512BW; loads are of 64 bytes; the vector is aligned and ours to write.
            unsafe {
                let t = _mm512_loadu_si512(t.as_ptr().cast());
                let u = _mm512_loadu_si512(u.as_ptr().cast());
                let above = _mm512_cmpgt_epu8_mask(t, _mm512_set1_epi8(row as i8));
                let above = _mm512_maskz_mov_epi8(above, _mm512_set1_epi8(1));
                _mm512_stream_si512(vector, _mm512_xor_si512(above, u));
            }
        }
        write_below(row, t_tail, u_tail, tail);
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: every x86-64 machine has the instruction.
        unsafe { _mm_sfence() };
    }

    #[inline(always)]
    fn below_mask(self, row: u8, thresholds: &[u8; 64], flips: &[u8; 64]) -> u64 {
        // Masks of 64 bits come from a mask register, and stores of its halves are slow (twice the time on Zen 4).
        Avx2(()).below_mask(row, thresholds, flips)
    }
}
