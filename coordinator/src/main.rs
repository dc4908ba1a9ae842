//! The program `millpond`.

fn main() -> std::process::ExitCode {
    millpond::cli::main()
}
