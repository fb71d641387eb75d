//! Run lengths, areas and boxes by brute force, written apart from the reference.

/// COCO's counts of a mask `[height, width]`: lists all pixels column by column, then measures runs of equal values.
pub fn counts(mask: &[u8], width: usize, height: usize) -> Vec<u32> {
    let column_major: Vec<bool> =
        (0..width * height).map(|position| mask[(position % height) * width + position / height] == 1).collect();
    let mut counts: Vec<u32> = column_major.chunk_by(|a, b| a == b).map(|run| run.len() as u32).collect();
    if column_major.first() == Some(&true) {
        counts.insert(0, 0);
    }
    counts
}

/// COCO's compressed string, by the smallest number of 5-bit digits that holds each difference in two's complement.
pub fn string(counts: &[u32]) -> Vec<u8> {
    let mut string = Vec::new();
    for (i, &count) in counts.iter().enumerate() {
        let base = if i < 3 { 0 } else { i64::from(counts[i - 2]) };
        let difference = i64::from(count) - base;
        let fits = |digits: u32| {
            let half = 1i64 << (5 * digits - 1);
            (-half..half).contains(&difference)
        };
        let digits = (1..).find(|&digits| fits(digits)).unwrap_or(1);
        for digit in 0..digits {
            let value = difference.div_euclid(1 << (5 * digit)).rem_euclid(32) as u8;
            string.push(b'0' + value + if digit + 1 < digits { 32 } else { 0 });
        }
    }
    string
}

/// The counts of a well-formed compressed string.
pub fn decode(string: &[u8]) -> Vec<u32> {
    let mut counts: Vec<u32> = Vec::new();
    for number in string.split_inclusive(|&byte| byte < b'0' + 32) {
        let digits: Vec<i64> = number.iter().map(|&byte| i64::from((byte - b'0') % 32)).collect();
        let unsigned: i64 = digits.iter().rev().fold(0, |value, digit| value * 32 + digit);
        let range = 1i64 << (5 * digits.len());
        let difference = if unsigned >= range / 2 { unsigned - range } else { unsigned };
        let base = if counts.len() < 3 { 0 } else { i64::from(counts[counts.len() - 2]) };
        counts.push((base + difference) as u32);
    }
    counts
}

/// The mask `[height, width]` of counts: writes every run out, then transposes.
pub fn dense(counts: &[u32], width: usize, height: usize) -> Vec<u8> {
    let column_major: Vec<u8> =
        counts.iter().enumerate().flat_map(|(i, &count)| vec![(i % 2) as u8; count as usize]).collect();
    assert_eq!(column_major.len(), width * height, "the counts fill the mask");
    (0..width * height).map(|position| column_major[position % width * height + position / width]).collect()
}

/// Number of foreground pixels, and left, top, right, bottom of the foreground, half-open; zeros when there is none.
pub fn area_and_box(mask: &[u8], width: usize, height: usize) -> (u32, [u32; 4]) {
    let column = |x: usize| (0..height).any(|y| mask[y * width + x] == 1);
    let row = |y: usize| mask[y * width..(y + 1) * width].contains(&1);
    let area = mask.iter().map(|&pixel| u32::from(pixel)).sum();
    let tight = || {
        Some([
            (0..width).find(|&x| column(x))? as u32,
            (0..height).find(|&y| row(y))? as u32,
            (0..width).rfind(|&x| column(x))? as u32 + 1,
            (0..height).rfind(|&y| row(y))? as u32 + 1,
        ])
    };
    (area, tight().unwrap_or_default())
}
