//! The inputs that all benches share.

pub use rfdetr_post_core::bench::{Inputs, Scene};
