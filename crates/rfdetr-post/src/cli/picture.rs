//! Pictures: PNG and JPEG in, PNG out. The kind is told by the first bytes, not by the name.

use std::io::{Cursor, Write};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rfdetr_post::Size;
use zune_jpeg::JpegDecoder;

/// Bytes that decoding may take; 4 GiB of pixels are no picture.
const MAX_BYTES: usize = 1 << 32;

/// Red, green, blue, one byte each, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    data: Vec<u8>,
}

/// The kinds that we read.
enum Kind {
    Png,
    Jpeg,
}

impl Kind {
    fn of(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Ok(Self::Png)
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            Ok(Self::Jpeg)
        } else {
            bail!("is neither PNG nor JPEG")
        }
    }
}

/// The size of an encoded picture, from its header.
pub fn size(bytes: &[u8]) -> Result<Size> {
    match Kind::of(bytes)? {
        Kind::Png => {
            let mut decoder = png::Decoder::new(Cursor::new(bytes));
            let info = decoder.read_header_info().context("damaged PNG")?;
            Ok(Size::new(info.width, info.height))
        }
        Kind::Jpeg => {
            let mut decoder = JpegDecoder::new(Cursor::new(bytes));
            decoder.decode_headers().map_err(|err| anyhow!("damaged JPEG: {err}"))?;
            let (width, height) = decoder.dimensions().context("damaged JPEG: no size")?;
            Ok(Size::new(width.try_into()?, height.try_into()?))
        }
    }
}

impl Picture {
    /// Decodes a PNG or JPEG. Transparency is dropped, 16 bits become 8, gray becomes color.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        match Kind::of(bytes)? {
            Kind::Png => decode_png(bytes).context("damaged PNG"),
            Kind::Jpeg => {
                let size = size(bytes)?;
                let data = JpegDecoder::new(Cursor::new(bytes)).decode();
                let data = data.map_err(|err| anyhow!("damaged JPEG: {err}"))?;
                ensure!(data.len() as u64 == size.area() * 3, "damaged JPEG: its colors are not understood");
                Ok(Self { size, data })
            }
        }
    }

    /// Columns.
    pub const fn width(&self) -> u32 {
        self.size.width
    }

    /// Rows.
    pub const fn height(&self) -> u32 {
        self.size.height
    }

    /// The pixel at column `x`, row `y`. None outside the picture.
    pub fn pixel_mut(&mut self, x: i64, y: i64) -> Option<&mut [u8]> {
        let (width, height) = (i64::from(self.size.width), i64::from(self.size.height));
        if !(0..width).contains(&x) || !(0..height).contains(&y) {
            return None;
        }
        let start = (y * width + x) as usize * 3;
        self.data.get_mut(start..start + 3)
    }

    /// Writes a PNG.
    pub fn write_png(&self, writer: impl Write) -> Result<()> {
        write(writer, self.size, png::ColorType::Rgb, &self.data)
    }
}

#[cfg(test)]
impl Picture {
    /// A black picture.
    pub fn black(width: u32, height: u32) -> Self {
        Self { size: Size::new(width, height), data: vec![0; (width * height * 3) as usize] }
    }

    /// All pixels, row-major.
    pub fn pixels(&self) -> impl Iterator<Item = [u8; 3]> + '_ {
        self.data.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]])
    }
}

fn decode_png(bytes: &[u8]) -> Result<Picture> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: MAX_BYTES });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let len = reader.output_buffer_size().filter(|&len| len <= MAX_BYTES).context("too large")?;
    let mut data = Vec::new();
    data.try_reserve_exact(len).context("too large")?;
    data.resize(len, 0);
    let info = reader.next_frame(&mut data)?;
    data.truncate(info.buffer_size());
    let data = match info.color_type {
        png::ColorType::Rgb => data,
        png::ColorType::Rgba => data.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        png::ColorType::Grayscale => data.iter().flat_map(|&gray| [gray; 3]).collect(),
        png::ColorType::GrayscaleAlpha => data.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        png::ColorType::Indexed => bail!("its palette was not expanded"),
    };
    Ok(Picture { size: Size::new(info.width, info.height), data })
}

/// Writes one byte a pixel as a gray PNG.
pub fn write_gray_png(writer: impl Write, size: Size, data: &[u8]) -> Result<()> {
    write(writer, size, png::ColorType::Grayscale, data)
}

fn write(writer: impl Write, size: Size, color: png::ColorType, data: &[u8]) -> Result<()> {
    let mut encoder = png::Encoder::new(writer, size.width, size.height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(data)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![9, 8, 7, 1, 2, 3]);
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        bytes
    }

    #[test]
    fn every_kind_of_png_becomes_rgb() {
        use png::{BitDepth::*, ColorType::*};
        for (color, depth, data, expected) in [
            (Rgb, Eight, vec![1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (Rgba, Eight, vec![1, 2, 3, 0, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]),
            (Rgb, Sixteen, vec![1, 99, 2, 99, 3, 99, 4, 99, 5, 99, 6, 99], [1, 2, 3, 4, 5, 6]),
            (Grayscale, Eight, vec![7, 8], [7, 7, 7, 8, 8, 8]),
            (Grayscale, One, vec![0b0100_0000], [0, 0, 0, 255, 255, 255]),
            (GrayscaleAlpha, Eight, vec![7, 0, 8, 0], [7, 7, 7, 8, 8, 8]),
            (Indexed, Eight, vec![1, 0], [1, 2, 3, 9, 8, 7]),
        ] {
            let bytes = encode(color, depth, &data);
            assert_eq!(size(&bytes).unwrap(), Size::new(2, 1));
            assert_eq!(Picture::decode(&bytes).unwrap().data, expected, "{color:?} {depth:?}");
        }
    }

    #[test]
    fn jpegs_become_rgb() {
        let red = include_bytes!("../../tests/data/red.jpg");
        assert_eq!(size(red).unwrap(), Size::new(60, 40));
        let mut picture = Picture::decode(red).unwrap();
        let [r, g, b] = picture.pixel_mut(50, 20).unwrap() else { panic!("three channels") };
        assert!(r.abs_diff(200) < 12 && g.abs_diff(30) < 12 && b.abs_diff(200) < 12, "{r} {g} {b}");
        let mut gray = Picture::decode(include_bytes!("../../tests/data/gray.jpg")).unwrap();
        let pixel = gray.pixel_mut(59, 39).unwrap();
        assert!(pixel.iter().all(|channel| channel.abs_diff(77) < 4), "{pixel:?}");
    }

    #[test]
    fn pictures_round_trip() {
        let mut picture = Picture::black(3, 2);
        picture.pixel_mut(2, 1).unwrap().copy_from_slice(&[1, 2, 3]);
        assert!(picture.pixel_mut(3, 0).is_none() && picture.pixel_mut(0, -1).is_none());
        let mut bytes = Vec::new();
        picture.write_png(&mut bytes).unwrap();
        assert_eq!(Picture::decode(&bytes).unwrap(), picture);
    }

    #[test]
    fn damaged_pictures_are_errors() {
        let error = |bytes: &[u8]| format!("{:#}", Picture::decode(bytes).unwrap_err());
        assert_eq!(error(b"GIF89a"), "is neither PNG nor JPEG");
        assert!(error(b"\x89PNG\r\n\x1a\n").contains("damaged PNG"));
        assert!(error(b"\xff\xd8\xff\xe0").contains("damaged JPEG"));
        let bytes = encode(png::ColorType::Rgb, png::BitDepth::Eight, &[1, 2, 3, 4, 5, 6]);
        for len in 0..bytes.len() - 12 {
            assert!(Picture::decode(&bytes[..len]).is_err(), "cut to {len} bytes");
        }
        // What is left of a JPEG may still be shown; it must not panic.
        let jpeg = include_bytes!("../../tests/data/red.jpg");
        for len in 0..jpeg.len() {
            let _ = Picture::decode(&jpeg[..len]);
            let mut damaged = jpeg.to_vec();
            damaged[len] ^= 0x5a;
            let _ = Picture::decode(&damaged);
        }
    }
}
