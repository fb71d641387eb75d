//! The GPU suite on a machine without a GPU: it fails, and says why.

use std::process::Command;

#[test]
fn without_a_gpu_the_suite_fails() {
    if rfdetr_post_cuda::device_count().is_ok_and(|count| count > 0) {
        // `cargo xtask gpu-test` is for this machine.
        return;
    }
    for part in ["all", "fixtures", "images", "fuzz", "tickets"] {
        let output = Command::new(env!("CARGO_BIN_EXE_rfdetr-post-gpu-test")).arg(part).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{part}: {text}");
        assert!(text.contains("FAIL setup: "), "{part}: {text}");
        assert!(text.contains("driver") || text.contains("device"), "{part}: {text}");
        assert!(text.ends_with("0 passed, 1 failed\n"), "{part}: {text}");
    }
}
