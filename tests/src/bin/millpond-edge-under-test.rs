//! The program `millpond-edge`, built beside the tests so that they can start it.

fn main() -> std::process::ExitCode {
    millpond_edge::cli::main()
}
