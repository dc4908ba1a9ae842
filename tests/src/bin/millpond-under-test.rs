//! The program `millpond`, built beside the tests so that they can start it.

fn main() -> std::process::ExitCode {
    millpond::cli::main()
}
