//! The few float functions that `core` lacks: each rounds once, to nearest even, on every machine.

/// `a * b + c`, rounded once.
#[inline]
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(feature = "std")]
    return f32::mul_add(a, b, c);
    #[cfg(not(feature = "std"))]
    return libm::fmaf(a, b, c);
}

/// The nearest integer, halves to even.
#[inline]
pub(crate) fn rne(x: f32) -> f32 {
    libm::rintf(x)
}

/// The nearest integer, halves to even.
#[inline]
pub(crate) fn rne_f64(x: f64) -> f64 {
    libm::rint(x)
}
