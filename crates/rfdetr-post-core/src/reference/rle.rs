//! Stage 4: COCO run lengths (spec 6).

use alloc::vec::Vec;

use crate::error::{Error, Result};

/// The counts of a dense mask `[height, width]`: column-major, alternating, background first.
///
/// Only the first count may be 0. They sum to the number of pixels.
pub fn encode_counts(mask: &[u8], width: usize, height: usize) -> Vec<u32> {
    let mut counts = Vec::new();
    let mut foreground = false;
    let mut run = 0;
    for x in 0..width {
        for y in 0..height {
            let pixel = mask[y * width + x] != 0;
            if pixel != foreground {
                counts.push(run);
                run = 0;
                foreground = pixel;
            }
            run += 1;
        }
    }
    counts.push(run);
    counts
}

/// COCO's compressed string of counts: from the fourth count on, the difference to the count two before, in groups of
/// five bits, low first.
pub fn encode_string(counts: &[u32]) -> Vec<u8> {
    let mut string = Vec::new();
    for (i, &count) in counts.iter().enumerate() {
        let mut x = i64::from(count);
        if i > 2 {
            x -= i64::from(counts[i - 2]);
        }
        loop {
            let group = (x & 0x1f) as u8;
            x >>= 5;
            let done = if group & 0x10 == 0 { x == 0 } else { x == -1 };
            string.push(48 + group + if done { 0 } else { 32 });
            if done {
                break;
            }
        }
    }
    string
}

/// The counts of COCO's compressed string.
///
/// Errors: a byte outside the alphabet, a group that does not end, a count outside `u32`.
pub fn decode_string(string: &[u8]) -> Result<Vec<u32>> {
    let mut counts: Vec<u32> = Vec::new();
    let mut position = 0;
    while position < string.len() {
        let start = position;
        let mut x = 0i64;
        let mut shift = 0;
        loop {
            let error = |message| Error::Rle { message, position };
            let &byte = string.get(position).ok_or_else(|| error("the string ends inside a count"))?;
            if !(48..112).contains(&byte) {
                return Err(error("a byte outside the alphabet"));
            }
            if shift > 35 {
                return Err(error("a count of more than eight groups"));
            }
            let group = i64::from(byte - 48);
            x |= (group & 0x1f) << shift;
            shift += 5;
            position += 1;
            if group & 0x20 == 0 {
                if group & 0x10 != 0 {
                    x |= -1 << shift;
                }
                break;
            }
        }
        if counts.len() > 2 {
            x += i64::from(counts[counts.len() - 2]);
        }
        counts.push(u32::try_from(x).map_err(|_| Error::Rle { message: "a count outside u32", position: start })?);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn numbers_of_the_spec() {
        // The fifth count is coded as the difference to the third, so a zero there leaves the number itself.
        let coded = |value: i64| {
            let base: u32 = 1 << 30;
            let counts = [0, base, 0, (i64::from(base) + value) as u32];
            let string = encode_string(&counts);
            let prefix = encode_string(&counts[..3]).len();
            string[prefix..].to_vec()
        };
        for (value, text) in [
            (0, "0"),
            (1, "1"),
            (15, "?"),
            (16, "`0"),
            (31, "o0"),
            (32, "P1"),
            (511, "o?"),
            (512, "P`0"),
            (307_200, "PP\\9"),
            (12_000_000, "PhV^;"),
            (-1, "O"),
            (-16, "@"),
            (-17, "_O"),
            (-512, "P@"),
            (-513, "o_O"),
        ] {
            assert_eq!(coded(value), text.as_bytes(), "{value}");
        }
    }

    #[test]
    fn worked_example_of_the_spec() {
        let rows = ["00000", "01110", "01010", "01110", "00000", "00001"];
        let mask: Vec<u8> = rows.iter().flat_map(|row| row.bytes().map(|b| b - b'0')).collect();
        let counts = encode_counts(&mask, 5, 6);
        assert_eq!(counts, [7, 3, 3, 1, 1, 1, 3, 3, 7, 1]);
        assert_eq!(encode_string(&counts), b"733NN0224N");
        assert_eq!(decode_string(b"733NN0224N").unwrap(), counts);
    }

    #[test]
    fn whole_masks_of_the_spec() {
        let string = |mask: &[u8], width, height| encode_string(&encode_counts(mask, width, height));
        assert_eq!(string(&vec![0; 480 * 640], 640, 480), b"PP\\9");
        assert_eq!(string(&vec![1; 480 * 640], 640, 480), b"0PP\\9");
        assert_eq!(string(&[0], 1, 1), b"1");
        assert_eq!(string(&[1], 1, 1), b"01");
        let mut corner = vec![0; 480 * 640];
        corner[0] = 1;
        assert_eq!(string(&corner, 640, 480), b"01oo[9");
    }

    #[test]
    fn damaged_strings_are_refused() {
        let message = |string: &[u8]| match decode_string(string) {
            Err(Error::Rle { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message(b"P"), "the string ends inside a count");
        assert_eq!(message(b"7 "), "a byte outside the alphabet");
        assert_eq!(message(b"O"), "a count outside u32");
        assert_eq!(message(b"oooooooooo0"), "a count of more than eight groups");
        assert!(decode_string(b"").unwrap().is_empty());
    }
}
