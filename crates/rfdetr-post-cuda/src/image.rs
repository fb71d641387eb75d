//! The kernels in this crate, as machine code and as PTX, and which of them a device gets.

use std::fmt;

use crate::error::{Error, Result};

/// Major and minor number.
type ComputeCapability = (i32, i32);

/// PTX by architecture, oldest first. That of sm_90 has programmatic dependent launch.
const PTX: [(ComputeCapability, &str); 2] =
    [((7, 5), include_str!("../ptx/rfdetr_post_sm_75.ptx")), ((9, 0), include_str!("../ptx/rfdetr_post_sm_90.ptx"))];

/// Machine code by architecture, oldest first: what `cargo xtask build-ptx` assembles.
const CUBINS: [(ComputeCapability, &Aligned<[u8]>); 4] = [
    ((7, 5), &Aligned(*include_bytes!("../ptx/rfdetr_post_sm_75.cubin"))),
    ((8, 0), &Aligned(*include_bytes!("../ptx/rfdetr_post_sm_80.cubin"))),
    ((8, 6), &Aligned(*include_bytes!("../ptx/rfdetr_post_sm_86.cubin"))),
    ((9, 0), &Aligned(*include_bytes!("../ptx/rfdetr_post_sm_90.cubin"))),
];

/// Bytes at an address that suits the header of an ELF file.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// Which of the kernels in this crate to load. The answer is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelChoice {
    /// Machine code, if there is some for the device and the driver takes it; otherwise PTX.
    Auto,
    /// The newest PTX that suits the device. The driver compiles it, which takes long the first time on a machine.
    Ptx,
    /// The PTX of the oldest architecture, on any device: for tests.
    OldestPtx,
}

/// Kernels as the driver takes them, by the compute capability that they were made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelImage {
    /// Machine code.
    Cubin((i32, i32)),
    /// Text that the driver compiles.
    Ptx((i32, i32)),
}

impl KernelImage {
    /// What is loaded for a choice: machine code to try first, and the PTX for when there is none or it is refused.
    fn candidates(choice: KernelChoice, capability: ComputeCapability) -> (Option<Self>, Self) {
        let oldest = PTX[0].0;
        let suits = PTX.iter().map(|ptx| ptx.0).rfind(|&made_for| made_for <= capability);
        match choice {
            KernelChoice::Auto => (cubin_for(capability).map(Self::Cubin), Self::Ptx(suits.unwrap_or(oldest))),
            KernelChoice::Ptx => (None, Self::Ptx(suits.unwrap_or(oldest))),
            KernelChoice::OldestPtx => (None, Self::Ptx(oldest)),
        }
    }

    /// Whether the second kernel waits for the first one itself, and so may be launched before that has ended.
    pub(crate) fn waits_for_launch_before(self) -> bool {
        self.is_made_for_9()
    }

    /// Whether the blocks of the run-length kernels form clusters.
    pub(crate) fn has_clusters(self) -> bool {
        self.is_made_for_9()
    }

    fn is_made_for_9(self) -> bool {
        let (Self::Cubin(made_for) | Self::Ptx(made_for)) = self;
        made_for >= (9, 0)
    }

    /// The kernels themselves.
    pub(crate) fn code(self) -> Option<Code> {
        match self {
            Self::Cubin(made_for) => {
                CUBINS.iter().find(|cubin| cubin.0 == made_for).map(|cubin| Code::Cubin(&cubin.1.0))
            }
            Self::Ptx(made_for) => PTX.iter().find(|ptx| ptx.0 == made_for).map(|ptx| Code::Ptx(ptx.1)),
        }
    }
}

impl fmt::Display for KernelImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cubin((major, minor)) => write!(f, "cubin of sm_{major}{minor}"),
            Self::Ptx((major, minor)) => write!(f, "PTX of sm_{major}{minor}"),
        }
    }
}

/// The newest machine code that a device runs: of its major version, and not of a newer minor one.
fn cubin_for(capability: ComputeCapability) -> Option<ComputeCapability> {
    let (major, minor) = capability;
    CUBINS.iter().map(|cubin| cubin.0).rfind(|made_for| made_for.0 == major && made_for.1 <= minor)
}

/// What the driver is given.
#[derive(Clone, Copy)]
pub(crate) enum Code {
    /// A whole ELF file, aligned to 16 bytes.
    Cubin(&'static [u8]),
    /// PTX without a null at its end.
    Ptx(&'static str),
}

/// What a postprocessor has loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedKernels {
    /// The kernels.
    pub image: KernelImage,
    /// What the driver said of the machine code that was tried first, if it refused that.
    pub refused: Option<Error>,
}

impl fmt::Display for LoadedKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refused {
            None => write!(f, "{}", self.image),
            Some(error) => write!(f, "{}, because the cubin was refused: {error}", self.image),
        }
    }
}

/// Loads kernels with `load_image`. Machine code that cannot be loaded, whatever the reason (most likely a driver that is
/// older than the assembler), leaves the decision to the PTX: its error is the error.
pub(crate) fn load<T>(
    choice: KernelChoice,
    capability: ComputeCapability,
    mut load_image: impl FnMut(KernelImage) -> Result<T>,
) -> Result<(T, LoadedKernels)> {
    let (cubin, ptx) = KernelImage::candidates(choice, capability);
    let mut refused = None;
    if let Some(image) = cubin {
        match load_image(image) {
            Ok(loaded) => return Ok((loaded, LoadedKernels { image, refused })),
            Err(error) => refused = Some(error),
        }
    }
    Ok((load_image(ptx)?, LoadedKernels { image: ptx, refused }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rfdetr_post_core::packed::shared;

    use super::*;

    const REFUSED: fn(u32) -> Error =
        |code| Error::Driver { call: "cuModuleLoadData", code, name: "a name".to_string(), is_sticky: false };

    /// Machine code runs on its own major version, from its own minor version on.
    #[test]
    fn machine_code_is_chosen_by_major_and_minor() {
        let expected = [
            ((7, 5), Some((7, 5))),
            ((8, 0), Some((8, 0))),
            ((8, 5), Some((8, 0))),
            ((8, 6), Some((8, 6))),
            ((8, 7), Some((8, 6))),
            ((8, 9), Some((8, 6))),
            ((9, 0), Some((9, 0))),
            ((9, 3), Some((9, 0))),
            ((10, 0), None),
            ((11, 0), None),
            ((12, 0), None),
            ((12, 6), None),
        ];
        for (capability, made_for) in expected {
            assert_eq!(cubin_for(capability), made_for, "{capability:?}");
        }
        // Older than all of its major version.
        assert_eq!(cubin_for((7, 2)), None);
    }

    #[test]
    fn ptx_is_the_newest_that_suits() {
        for (capability, made_for) in [
            ((7, 5), (7, 5)),
            ((8, 0), (7, 5)),
            ((8, 9), (7, 5)),
            ((9, 0), (9, 0)),
            ((10, 3), (9, 0)),
            ((12, 0), (9, 0)),
        ] {
            let (_, ptx) = KernelImage::candidates(KernelChoice::Auto, capability);
            assert_eq!(ptx, KernelImage::Ptx(made_for), "{capability:?}");
            assert_eq!(KernelImage::candidates(KernelChoice::Ptx, capability), (None, ptx), "{capability:?}");
            let oldest = (None, KernelImage::Ptx((7, 5)));
            assert_eq!(KernelImage::candidates(KernelChoice::OldestPtx, capability), oldest, "{capability:?}");
        }
    }

    /// Loads in the manner of a driver that refuses `refused`; returns what was tried, too.
    fn load_but(
        refused: &[(KernelImage, Error)],
        choice: KernelChoice,
        capability: ComputeCapability,
    ) -> (Result<LoadedKernels>, Vec<KernelImage>) {
        let mut tried = Vec::new();
        let result = load(choice, capability, |image| {
            tried.push(image);
            refused.iter().find(|refused| refused.0 == image).map_or(Ok(image), |refused| Err(refused.1.clone()))
        });
        let result = result.map(|(loaded, kernels)| {
            assert_eq!(loaded, kernels.image);
            kernels
        });
        (result, tried)
    }

    #[test]
    fn refused_machine_code_falls_back_to_ptx() {
        let (cubin, ptx) = (KernelImage::Cubin((8, 6)), KernelImage::Ptx((7, 5)));
        let (got, tried) = load_but(&[], KernelChoice::Auto, (8, 9));
        assert_eq!(got, Ok(LoadedKernels { image: cubin, refused: None }));
        assert_eq!(tried, [cubin]);
        // INVALID_IMAGE, NO_BINARY_FOR_GPU, UNSUPPORTED_PTX_VERSION, and one that nobody thought of.
        for code in [200, 209, 222, 999] {
            let (got, tried) = load_but(&[(cubin, REFUSED(code))], KernelChoice::Auto, (8, 9));
            assert_eq!(got, Ok(LoadedKernels { image: ptx, refused: Some(REFUSED(code)) }));
            assert_eq!(tried, [cubin, ptx]);
        }
        // Where the PTX does not load either, its error is the answer.
        let (got, tried) = load_but(&[(cubin, REFUSED(209)), (ptx, REFUSED(2))], KernelChoice::Auto, (8, 9));
        assert_eq!(got, Err(REFUSED(2)));
        assert_eq!(tried, [cubin, ptx]);
    }

    #[test]
    fn ptx_is_loaded_where_it_was_asked_for_or_nothing_else_is_there() {
        for (choice, capability, made_for) in [
            (KernelChoice::Auto, (10, 0), (9, 0)),
            (KernelChoice::Ptx, (9, 0), (9, 0)),
            (KernelChoice::Ptx, (8, 0), (7, 5)),
            (KernelChoice::OldestPtx, (9, 0), (7, 5)),
        ] {
            let (got, tried) = load_but(&[], choice, capability);
            let image = KernelImage::Ptx(made_for);
            assert_eq!(got, Ok(LoadedKernels { image, refused: None }), "{choice:?} {capability:?}");
            assert_eq!(tried, [image], "{choice:?} {capability:?}");
        }
    }

    /// Only kernels that wait for the launch before them may begin early.
    #[test]
    fn early_launches_are_for_kernels_that_wait() {
        for (made_for, text) in PTX {
            let waits = text.contains("griddepcontrol.wait");
            assert_eq!(KernelImage::Ptx(made_for).waits_for_launch_before(), waits, "{made_for:?}");
        }
        for (made_for, _) in CUBINS {
            let (_, ptx) = KernelImage::candidates(KernelChoice::Auto, made_for);
            let waits = ptx.waits_for_launch_before();
            assert_eq!(KernelImage::Cubin(made_for).waits_for_launch_before(), waits, "{made_for:?}");
        }
    }

    /// A grid is a whole number of clusters only where there are clusters.
    #[test]
    fn clusters_are_those_of_the_kernels() {
        for (made_for, text) in PTX {
            let directive = format!(".reqnctapercluster {}, 1, 1", shared::masks::RLE_CLUSTER);
            let has_clusters = KernelImage::Ptx(made_for).has_clusters();
            assert_eq!(text.matches(&directive).count(), if has_clusters { 2 } else { 0 }, "{made_for:?}");
        }
        for (made_for, _) in CUBINS {
            let (_, ptx) = KernelImage::candidates(KernelChoice::Auto, made_for);
            assert_eq!(KernelImage::Cubin(made_for).has_clusters(), ptx.has_clusters(), "{made_for:?}");
        }
    }

    /// Each file is a whole ELF file of NVIDIA's for the architecture that the table says, and the table is the folder.
    #[test]
    fn the_embedded_files_are_what_the_table_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx");
        let in_folder = |extension: &str| {
            let mut names: Vec<String> = std::fs::read_dir(&folder)
                .unwrap()
                .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
                .filter(|name| name.ends_with(extension))
                .collect();
            names.sort();
            names
        };
        let name =
            |made_for: ComputeCapability, kind: &str| format!("rfdetr_post_sm_{}{}.{kind}", made_for.0, made_for.1);
        assert_eq!(in_folder(".cubin"), CUBINS.map(|cubin| name(cubin.0, "cubin")));
        assert_eq!(in_folder(".ptx"), PTX.map(|ptx| name(ptx.0, "ptx")));
        for (made_for, text) in PTX {
            assert!(text.contains(&format!(".target sm_{}{}", made_for.0, made_for.1)), "{made_for:?}");
        }
        for (made_for, _) in CUBINS {
            let Some(Code::Cubin(bytes)) = KernelImage::Cubin(made_for).code() else { panic!("{made_for:?}") };
            assert!(bytes.as_ptr().addr().is_multiple_of(16));
            assert!(bytes.starts_with(b"\x7fELF\x02\x01"), "{made_for:?}");
            let number = |at: usize, len: usize| {
                bytes[at..at + len].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
            };
            assert_eq!(number(18, 2), 190, "the machine is CUDA");
            // Where the architecture stands in the flags is a matter of the ABI's version.
            let flags = number(48, 4);
            let architecture = if bytes[8] <= 7 { flags & 0xff } else { flags >> 8 & 0xff };
            assert_eq!(architecture, (made_for.0 * 10 + made_for.1) as u64, "{made_for:?}");
            let end_of = |table: u64, entry: u64, count: u64| table + entry * count;
            let sections = end_of(number(40, 8), number(58, 2), number(60, 2));
            let segments = end_of(number(32, 8), number(54, 2), number(56, 2));
            assert_eq!(sections.max(segments), bytes.len() as u64, "{made_for:?}: cut off, or followed by something");
        }
    }
}
