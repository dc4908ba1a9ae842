//! The program `millpond`, built beside the tests so that they can start it, and have it killed at a fail-point.

fn main() -> std::process::ExitCode {
    millpond_failpoint::arm();
    millpond::cli::main()
}
