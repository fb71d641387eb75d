//! The program of `cargo xtask cpu-test`: it passes where it should, fails where it must, and says so in its exit code.

use std::process::{Command, Output};

use rfdetr_post_cpu::SimdLevel;

fn run(args: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rfdetr-post-cpu-test")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
fn every_level_is_counted() {
    let (output, text) = run(&["parity", "--cases", "40", "--seed", "1", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for level in SimdLevel::available() {
        assert!(text.contains(&format!("\n{}: 40 cases, 0 failed\n", level.name())), "{text}");
    }
    assert!(text.ends_with("1 passed, 0 failed\n"), "{text}");
}

#[test]
fn the_same_seed_gives_the_same_requests() {
    let counts = |threads| {
        let (_, text) = run(&["parity", "--cases", "60", "--seed", "9", "--threads", threads, "--simd", "portable"]);
        let line = text.lines().find(|line| line.starts_with("PASS parity: ")).unwrap_or_else(|| panic!("{text}"));
        line.rsplit_once(" (").unwrap().0.to_owned()
    };
    assert_eq!(counts("1"), counts("3"));
}

/// A machine has the instructions of one architecture only.
#[test]
fn a_level_that_the_machine_lacks_is_refused() {
    let missing = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    for name in [missing, "avx1024"] {
        let (output, text) = run(&["parity", "--cases", "1", "--simd", name]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("got {name}, and this machine has portable")), "{text}");
    }
}

#[test]
fn missing_fixtures_are_a_failure() {
    let folder = std::env::temp_dir().join("no-fixtures-here");
    std::fs::create_dir_all(folder.join("upstream")).unwrap();
    let (output, text) = run(&["golden", "--fixtures", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL golden dense: panicked"), "{text}");
}
