//! `millpond-edge`.

fn main() -> std::process::ExitCode {
    millpond_edge::cli::main()
}
