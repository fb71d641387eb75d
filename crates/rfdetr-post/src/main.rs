//! The command line of rfdetr-post: `run`, `demo` and `info`.
#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
