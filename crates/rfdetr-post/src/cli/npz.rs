//! Reads and writes NumPy's `.npz`: a zip archive of `.npy` arrays.
//!
//! The header of an `.npy` array is a line of Python, of which only what NumPy writes for plain arrays is accepted:
//! three keys, a type, a flag and a tuple of numbers. Sizes are checked against the archive before anything is
//! allocated, and data is read piece by piece, so a header that lies costs an error and no memory.

use std::io::{Cursor, Read, Seek, Write};

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::tensors::{Array, ArrayData, element_count};

/// An archive whose directory was read.
pub struct Npz<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
}

impl<'a> Npz<'a> {
    /// Reads the directory of an archive.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let archive = ZipArchive::new(Cursor::new(bytes)).context("not a whole .npz (zip) archive")?;
        Ok(Self { archive })
    }

    /// The names of all arrays.
    pub fn names(&self) -> Vec<String> {
        // A name that is not text names no array.
        let names = self.archive.file_names().flatten();
        names.filter_map(|name| name.strip_suffix(".npy").map(str::to_owned)).collect()
    }

    /// Reads the array `name`. None if the archive has none of this name.
    pub fn read(&mut self, name: &str) -> Result<Option<Array>> {
        let Some(index) = self.archive.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
        let mut entry = self.archive.by_index(index)?;
        let size = entry.size();
        read_npy(&mut entry, size).map(Some)
    }
}

/// Reads one `.npy` array of `size` bytes, header included.
fn read_npy(mut reader: impl Read, size: u64) -> Result<Array> {
    let mut start = [0; 10];
    reader.read_exact(&mut start).context("ends inside the header")?;
    ensure!(start.starts_with(b"\x93NUMPY"), "is no .npy array: expected it to begin with \\x93NUMPY");
    let (header_len, start_len) = match start[6] {
        1 => (usize::from(u16::from_le_bytes([start[8], start[9]])), 10),
        2 | 3 => {
            let mut rest = [0; 2];
            reader.read_exact(&mut rest).context("ends inside the header")?;
            (u32::from_le_bytes([start[8], start[9], rest[0], rest[1]]) as usize, 12)
        }
        version => bail!("has .npy version {version}, expected 1, 2 or 3"),
    };
    // NumPy itself refuses headers above 10,000 bytes.
    ensure!(header_len <= 1 << 16, "has a header of {header_len} bytes, expected at most {}", 1 << 16);
    let mut header = vec![0; header_len];
    reader.read_exact(&mut header).context("ends inside the header")?;
    let header = Header::parse(&header)?;

    let elements = element_count(&header.shape)?;
    let bytes = elements.checked_mul(header.element.size()).context("has a shape that overflows")?;
    let body = size.saturating_sub((start_len + header_len) as u64);
    ensure!(body == bytes as u64, "holds {body} bytes, its shape {:?} needs {bytes}", header.shape);
    let data = match header.element {
        Element::F32 => ArrayData::F32(read_elements(&mut reader, elements)?),
        Element::F16 => {
            let bits: Vec<u16> = read_elements(&mut reader, elements)?;
            ArrayData::F16(bits.into_iter().map(f16::from_bits).collect())
        }
        Element::I32 => ArrayData::I32(read_elements(&mut reader, elements)?),
        Element::I64 => ArrayData::I64(read_elements(&mut reader, elements)?),
        Element::U8 => ArrayData::U8(read_elements(&mut reader, elements)?),
    };
    // The archive checks its checksum when the end is reached.
    ensure!(reader.read(&mut [0]).context("is damaged")? == 0, "goes on after its data");
    Ok(Array { shape: header.shape, data })
}

/// Reads little-endian elements piece by piece, so that memory grows only as fast as data comes.
fn read_elements<T: bytemuck::Pod>(mut reader: impl Read, count: usize) -> Result<Vec<T>> {
    const PIECE: usize = 1 << 20;
    ensure!(cfg!(target_endian = "little"), "reading .npz files needs a little-endian machine");
    let mut elements = Vec::new();
    while elements.len() < count {
        let (old, piece) = (elements.len(), PIECE.min(count - elements.len()));
        elements.try_reserve(piece).context("does not fit into memory")?;
        elements.resize(old + piece, T::zeroed());
        reader.read_exact(bytemuck::cast_slice_mut(&mut elements[old..])).context("is damaged")?;
    }
    Ok(elements)
}

/// The element types that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F32,
    F16,
    I32,
    I64,
    U8,
}

impl Element {
    fn parse(descr: &str) -> Result<Self> {
        Ok(match descr {
            "<f4" => Self::F32,
            "<f2" => Self::F16,
            "<i4" => Self::I32,
            "<i8" => Self::I64,
            "|u1" | "<u1" => Self::U8,
            "|V2" | "<V2" => {
                bail!("has type `{descr}`, expected f32 or f16 (NumPy cannot name bf16: use .safetensors)")
            }
            _ => bail!("has type `{descr}`, expected f32 or f16 in little-endian order (`<f4` or `<f2`)"),
        })
    }

    const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 => 2,
            Self::I64 => 8,
            Self::U8 => 1,
        }
    }
}

/// What an `.npy` header says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    element: Element,
    shape: Vec<usize>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }`.
    fn parse(bytes: &[u8]) -> Result<Self> {
        const MALFORMED: &str = "has a malformed .npy header";
        let mut text = Text(std::str::from_utf8(bytes).context(MALFORMED)?);
        let (mut element, mut fortran, mut shape) = (None, None, None);
        text.expect("{").context(MALFORMED)?;
        while !text.take("}") {
            let key = text.string().context(MALFORMED)?;
            text.expect(":").context(MALFORMED)?;
            match key {
                "descr" => match text.string() {
                    Some(descr) => element = Some(Element::parse(descr)?),
                    None => bail!("has a structured type, expected f32 or f16"),
                },
                "fortran_order" if text.take("True") => fortran = Some(true),
                "fortran_order" if text.take("False") => fortran = Some(false),
                "shape" => shape = Some(text.tuple().context(MALFORMED)?),
                _ => bail!("{MALFORMED}: unexpected key or value at `{key}`"),
            }
            if !text.take(",") {
                text.expect("}").context(MALFORMED)?;
                break;
            }
        }
        let (Some(element), Some(fortran), Some(shape)) = (element, fortran, shape) else {
            bail!("{MALFORMED}: expected `descr`, `fortran_order` and `shape`")
        };
        // One order serves arrays with at most one axis longer than 1.
        ensure!(
            !fortran || shape.iter().filter(|&&side| side > 1).count() < 2,
            "is stored in Fortran order, expected C order (numpy.ascontiguousarray)"
        );
        Ok(Self { element, shape })
    }
}

/// The rest of a header.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Skips `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        match self.0.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Option<()> {
        self.take(token).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(string)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        let mut numbers = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            let text = self.0.trim_start();
            let len = text.find(|c: char| !c.is_ascii_digit())?;
            numbers.push(text[..len].parse().ok()?);
            self.0 = &text[len..];
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Some(numbers)
    }
}

/// Writes arrays to an archive, one after the other.
pub struct NpzWriter<W: Write + Seek> {
    zip: ZipWriter<W>,
}

impl<W: Write + Seek> NpzWriter<W> {
    /// Begins an archive.
    pub fn new(writer: W) -> Self {
        Self { zip: ZipWriter::new(writer) }
    }

    /// Writes one array of the NumPy type `descr`, such as `<f4`.
    pub fn write<T: bytemuck::Pod>(&mut self, name: &str, descr: &str, shape: &[usize], data: &[T]) -> Result<()> {
        let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
        // NumPy aligns the data to 64 bytes.
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let options = SimpleFileOptions::default().large_file(size_of_val(data) > (1 << 30));
        self.zip.start_file(format!("{name}.npy"), options)?;
        self.zip.write_all(b"\x93NUMPY\x01\x00")?;
        self.zip.write_all(&(header.len() as u16).to_le_bytes())?;
        self.zip.write_all(header.as_bytes())?;
        self.zip.write_all(bytemuck::cast_slice(data))?;
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<W> {
        Ok(self.zip.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Array> {
        read_npy(bytes, bytes.len() as u64)
    }

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", read(bytes).unwrap_err())
    }

    #[test]
    fn arrays_round_trip() {
        let mut writer = NpzWriter::new(Cursor::new(Vec::new()));
        writer.write("a", "<f4", &[2, 3], &[1f32, 2.0, 3.0, 4.0, f32::INFINITY, -0.5]).unwrap();
        writer.write("b", "|u1", &[3], &[1u8, 2, 3]).unwrap();
        writer.write("c", "<f2", &[], &[f16::from_f32(1.5)]).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        let mut npz = Npz::new(&bytes).unwrap();
        let mut names = npz.names();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        let a = npz.read("a").unwrap().unwrap();
        assert_eq!(a.shape, [2, 3]);
        assert_eq!(a.data, ArrayData::F32(vec![1.0, 2.0, 3.0, 4.0, f32::INFINITY, -0.5]));
        assert_eq!(npz.read("b").unwrap().unwrap().data, ArrayData::U8(vec![1, 2, 3]));
        assert_eq!(npz.read("c").unwrap().unwrap().shape, [0usize; 0]);
        assert!(npz.read("d").unwrap().is_none());
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let header = Header::parse(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 100, 4), }   \n").unwrap();
        assert_eq!(header, Header { element: Element::F32, shape: vec![1, 100, 4] });
        let header = Header::parse(b"{\"shape\":(7,),\"fortran_order\":True,\"descr\":\"|u1\"}").unwrap();
        assert_eq!(header, Header { element: Element::U8, shape: vec![7] });
        assert_eq!(Header::parse(b"{'descr': '<i8', 'fortran_order': False, 'shape': ()}").unwrap().shape, [0usize; 0]);
    }

    #[test]
    fn malformed_headers_are_named() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}";
        assert!(read(&npy(good, &[0; 8])).is_ok());
        assert!(error(b"\x93NUM").contains("ends inside the header"));
        assert!(error(b"PK45678901").contains("is no .npy array"));
        assert!(error(&[b"\x93NUMPY\x09\x00".as_slice(), &[0; 9]].concat()).contains("version 9"));
        for (header, message) in [
            ("", "malformed"),
            ("{", "malformed"),
            ("[]", "malformed"),
            ("{'descr': '<f4', 'fortran_order': False}", "expected `descr`, `fortran_order` and `shape`"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2", "malformed"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", "malformed"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "malformed"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}", "fortran_order"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", "has type `<f8`, expected f32 or f16"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}", "has type `>f4`"),
            ("{'descr': '|V2', 'fortran_order': False, 'shape': (4,)}", "use .safetensors"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", "structured"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1, 1)}", ""),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", "Fortran order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "holds 8 bytes, its shape [3] needs 12"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "overflow"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}", "overflow"),
        ] {
            let bytes = npy(header, &[0; 8]);
            match read(&bytes) {
                Ok(_) => assert_eq!(message, "", "{header}"),
                Err(err) => {
                    let text = format!("{err:#}");
                    assert!(text.contains(message) && !message.is_empty(), "{header}: {text}");
                }
            }
        }
    }

    #[test]
    fn data_that_ends_early_costs_no_memory() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}";
        let bytes = npy(header, &[0; 8]);
        // The archive's directory can lie about the size, too.
        let claimed = bytes.len() as u64 - 8 + 4_000_000_000_000;
        let err = read_npy(&bytes[..], claimed).unwrap_err();
        assert!(format!("{err:#}").contains("is damaged"), "{err:#}");
    }

    #[test]
    fn damaged_archives_are_errors() {
        let mut writer = NpzWriter::new(Cursor::new(Vec::new()));
        writer.write("a", "<f4", &[100], &[1f32; 100]).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        for len in 0..bytes.len() {
            if let Ok(mut npz) = Npz::new(&bytes[..len]) {
                assert!(!matches!(npz.read("a"), Ok(Some(_))), "cut to {len} bytes");
            }
        }
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x55;
            if let Ok(mut npz) = Npz::new(&damaged) {
                let _ = npz.read("a");
            }
        }
    }
}
