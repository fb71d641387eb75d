//! Support for the tests that span crates: cases, fixtures, comparison, oracle and strategies.
//!
//! The tests form a chain: upstream's answers = the reference = the fast CPU path = the emulated kernels = the GPU.
//! Every link uses this crate:
//!
//! - [`case`]: an owned request, as fixtures and strategies make it;
//! - [`compare`]: the first difference of two answers, by name; floats by bits, all NaNs equal;
//! - [`cpu`]: the fast CPU path, by instruction set, held to the reference;
//! - [`edge_cases`]: every edge case of the specification, by name;
//! - [`emulated`]: the kernels under the emulator;
//! - [`fixtures`]: the answers of others, read from `tests/fixtures`;
//! - [`golden`]: an implementation held to those answers;
//! - [`grids`]: random requests with grids around the sizes of machine words;
//! - [`host`]: what the host does to a result and its buffers, as far as the emulator looks on;
//! - [`oracle`]: an independent implementation in f64 with an argued error bound;
//! - [`plain`]: brute-force run lengths, areas and boxes;
//! - [`strategies`]: random, lopsided, hostile requests for `proptest`;
//! - [`random`]: the seeded generator that fills their tensors;
//! - [`suite`]: what the programs of the GPU suite share;
//! - [`tally`]: counts and failures of many cases on many threads, for programs.
#![deny(unsafe_code)]

pub mod case;
pub mod compare;
pub mod cpu;
pub mod edge_cases;
pub mod emulated;
pub mod fixtures;
pub mod golden;
pub mod grids;
pub mod host;
pub mod oracle;
pub mod plain;
pub mod random;
pub mod strategies;
pub mod suite;
pub mod tally;
