//! Reference = emulated kernels, bit for bit, under hostile schedules.

use proptest::prelude::*;
use rfdetr_post_tests::{
    compare, emulated,
    strategies::{self, Limits},
};

proptest! {
    #![proptest_config(strategies::config(2000))]

    /// Every option of a request, several schedules and launch shapes.
    #[test]
    fn emulated_kernels_equal_the_reference(case in strategies::requests_within(Limits::small()), seed in any::<u64>()) {
        let request = case.request().unwrap();
        // One sort in shared memory bounds `num_select` on the GPU; more is refused when the plan is made.
        prop_assume!(request.num_select() <= rfdetr_post_core::packed::MAX_SELECT as usize);
        if let Err(difference) = compare::check(&request, |request| emulated::answer(request, seed)) {
            prop_assert!(false, "seed {seed}: {difference}");
        }
    }
}
