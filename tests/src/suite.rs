//! What the programs of the GPU suite share: where fixtures are, and requests that differ.

use std::{fmt::Display, path::PathBuf};

use rfdetr_post_core::{DType, MaskFormat};

use crate::{
    case::{OwnedTensor, RequestCase},
    fixtures::{self, FORMATS, Fixture},
    random::Random,
};

/// Takes the fixtures from the first folder that has them: the flag's, one beside the program, one in the folder above,
/// or the source tree's.
pub fn use_fixtures(flag: Option<PathBuf>) -> Result<(), String> {
    fixtures::find(flag)
        .map(fixtures::set_root)
        .ok_or_else(|| "no folder of fixtures: expected --fixtures DIR".to_string())
}

/// Requests for other crates' tensors: every element type, batches, pads, with and without masks; in every mask format
/// that they can have.
pub fn few_fixtures() -> Vec<(String, RequestCase)> {
    let files = [
        ("upstream", "nano_312x176"),
        ("upstream", "batch2_mixed"),
        ("torch_cpu", "f16_inputs"),
        ("torch_cpu", "bf16_inputs"),
        ("torch_cpu", "batch3_mixed"),
        ("torch_cpu", "strange_masks_77x52"),
        ("torch_cpu", "letterbox_portrait_211x397"),
        ("torch_cpu", "boxes_letterbox"),
    ];
    let mut cases = Vec::new();
    for (folder, name) in files {
        let case = Fixture::load(folder, name).case;
        let formats = if case.masks.is_some() { &FORMATS[..] } else { &FORMATS[..1] };
        cases.extend(formats.iter().map(|&mask_format| {
            let case = case.with_options(|options| options.mask_format = mask_format);
            (format!("{folder}/{name} as {}", mask_format.name()), case)
        }));
    }
    cases
}

/// Three requests of one plan with different answers: the queries in other orders, with other scores.
pub fn variants(mask_format: MaskFormat) -> Vec<RequestCase> {
    let case = Fixture::load("upstream", "nano_312x176").case;
    let case = case.with_options(|options| options.mask_format = mask_format);
    let queries = case.logits.shape[1];
    let variant = |shift: usize| {
        let mut order: Vec<usize> = (0..queries).collect();
        Random::new(shift as u64).shuffle(&mut order);
        let mut case = case.clone();
        case.boxes = case.boxes.permute_queries(&order);
        case.masks = case.masks.as_ref().map(|masks| masks.permute_queries(&order));
        let logits = case.logits.permute_queries(&order).widened();
        let logits = logits.iter().map(|x| x - 0.21 * shift as f32).collect();
        case.logits = OwnedTensor::new(logits, &case.logits.shape, DType::F32);
        case
    };
    (0..3).map(variant).collect()
}

/// Anything that can be shown, as text.
pub fn text(error: impl Display) -> String {
    error.to_string()
}

/// An error that says `what`, unless it is so.
pub fn ensure(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what.to_string()) }
}

#[cfg(test)]
mod tests {
    use rfdetr_post_core::plan::{DeviceLimits, Plan};

    use super::*;
    use crate::compare;

    /// Requests in flight that had one answer could be mixed up unseen.
    #[test]
    fn variants_differ() {
        let answers: Vec<_> = variants(MaskFormat::Rle).iter().map(RequestCase::reference).collect();
        for (i, j) in [(0, 1), (1, 2), (0, 2)] {
            assert!(compare::compare(&answers[i], &answers[j]).is_err(), "variants {i} and {j}");
        }
    }

    #[test]
    fn few_fixtures_have_every_element_type() {
        let cases = few_fixtures();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            assert!(cases.iter().any(|(_, case)| case.logits.dtype() == dtype), "{dtype:?}");
        }
        assert!(cases.iter().any(|(_, case)| case.masks.is_none()));
        assert!(cases.iter().any(|(_, case)| case.metas.len() > 2));
    }

    /// Who runs them plans once: no mask is longer than the room of a default plan. So for the variants.
    #[test]
    fn masks_fit_a_default_plan() {
        let variants = FORMATS.iter().flat_map(|&format| variants(format)).map(|case| ("variant".to_string(), case));
        for (name, case) in few_fixtures().into_iter().chain(variants) {
            let plan = Plan::new(case.plan_spec().unwrap(), DeviceLimits::new(4)).unwrap();
            let rows = case.reference().images.into_iter().flat_map(|image| image.rows);
            let longest = rows.map(|row| row.mask_len).max().unwrap_or(0);
            let is_run_length = case.options.mask_format.is_run_length();
            assert!(!is_run_length || longest <= plan.mask_capacity, "{name}: {longest} of {}", plan.mask_capacity);
        }
    }

    #[test]
    fn a_panic_or_nothing_at_all_is_a_failure() {
        use std::process::ExitCode;

        use crate::tally::Sum;

        assert_eq!(Sum::default().finish(), ExitCode::from(1));
        let mut sum = Sum::default();
        sum.add("good", || Ok("one".to_string()));
        sum.add("panicking", || panic!("on purpose"));
        assert_eq!((sum.passed, sum.failed), (1, 1));
        assert_eq!(sum.finish(), ExitCode::from(1));
        let mut sum = Sum::default();
        sum.add("good", || Ok("one".to_string()));
        assert_eq!(sum.finish(), ExitCode::from(0));
    }
}
