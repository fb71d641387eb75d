//! Rows of bits: to bytes, to words of another alignment, and to toggles.
#![forbid(unsafe_code)]

use crate::runs::Toggles;

/// Writes the bits of a row as bytes 0 and 1.
#[inline(always)]
pub(crate) fn expand(bits: &[u64], out: &mut [u8]) {
    for (&word, out) in bits.iter().zip(out.chunks_mut(64)) {
        let mut bytes = [0; 64];
        for (i, bytes) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = spread((word >> (8 * i)) as u8).to_le_bytes();
        }
        out.copy_from_slice(&bytes[..out.len()]);
    }
}

/// Bit `i` as byte `i`.
#[inline(always)]
fn spread(bits: u8) -> u64 {
    let each = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    ((each + 0x7f7f_7f7f_7f7f_7f7f) | each) >> 7 & 0x0101_0101_0101_0101
}

/// Writes the bits of a row to bit `offset` on of a row of u32 words that is zero there.
#[inline(always)]
pub(crate) fn place(bits: &[u64], offset: usize, out: &mut [u32]) {
    let (word, shift) = (offset / 32, offset % 32);
    for (i, &bits) in bits.iter().enumerate() {
        let wide = u128::from(bits) << shift;
        for (j, out) in out.iter_mut().skip(word + 2 * i).take(3).enumerate() {
            *out |= (wide >> (32 * j)) as u32;
        }
    }
}

/// Transposes a block of 64 x 64 bits: bit `x` of word `y` becomes bit `y` of word `x`.
#[inline(always)]
pub(crate) fn transpose(block: &mut [u64; 64]) {
    let mut width = 32;
    let mut mask = u64::MAX >> 32;
    while width > 0 {
        let mut y = 0;
        while y < 64 {
            let t = (block[y] >> width ^ block[y + width]) & mask;
            block[y] ^= t << width;
            block[y + width] ^= t;
            y = (y + width + 1) & !width;
        }
        width /= 2;
        mask ^= mask << width;
    }
}

/// Transposes rows of bits: `to[x]` has the `height` bits of column `x`, in `height.div_ceil(64)` words.
#[inline(always)]
pub(crate) fn transpose_rows(rows: &[u64], words: usize, height: usize, width: usize, to: &mut Vec<u64>) {
    let tall = height.div_ceil(64);
    to.clear();
    to.resize(width * tall, 0);
    for block_y in 0..tall {
        for block_x in 0..words {
            let mut block = [0; 64];
            for (y, block) in block.iter_mut().enumerate().take(height - block_y * 64) {
                *block = rows[(block_y * 64 + y) * words + block_x];
            }
            if block.iter().fold(0, |any, bits| any | bits) == 0 {
                continue;
            }
            transpose(&mut block);
            for (x, &block) in block.iter().enumerate().take(width - block_x * 64) {
                to[(block_x * 64 + x) * tall + block_y] = block;
            }
        }
    }
}

/// Pushes the toggles of a column of bits; the first bit lies at `position`.
#[inline(always)]
pub(crate) fn push_toggles(column: &[u64], height: usize, position: u32, toggles: &mut Toggles) {
    let mut toggles = toggles.cursor(height + 1);
    let mut carry = 0;
    for (i, &bits) in column.iter().enumerate() {
        let mut changes = bits ^ (bits << 1 | carry);
        carry = bits >> 63;
        if (i + 1) * 64 > height {
            changes &= (1 << (height % 64)) - 1;
            carry = bits >> (height % 64 - 1) & 1;
        }
        while changes != 0 {
            toggles.push(position + i as u32 * 64 + changes.trailing_zeros());
            changes &= changes - 1;
        }
    }
    if carry != 0 {
        toggles.push(position + height as u32);
    }
    toggles.keep();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_transposes() {
        let mut block: [u64; 64] = std::array::from_fn(|i| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let before = block;
        transpose(&mut block);
        for (y, x) in (0..64).flat_map(|y| (0..64).map(move |x| (y, x))) {
            assert_eq!(before[y] >> x & 1, block[x] >> y & 1, "{y}, {x}");
        }
    }

    #[test]
    fn bytes_spread() {
        for bits in 0..=255u8 {
            let bytes = spread(bits).to_le_bytes();
            assert!((0..8).all(|i| bytes[i] == bits >> i & 1), "{bits}");
        }
    }

    #[test]
    fn rows_are_placed_at_any_bit() {
        for offset in 0..70 {
            let bits = [0x8000_0000_0000_0001u64, 5];
            let mut out = [0u32; 7];
            place(&bits, offset, &mut out);
            let set: Vec<_> = (0..224).filter(|i| out[i / 32] >> (i % 32) & 1 == 1).collect();
            assert_eq!(set, [offset, offset + 63, offset + 64, offset + 66]);
        }
    }
}
