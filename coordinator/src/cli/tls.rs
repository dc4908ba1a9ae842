//! `millpond tls …`, which needs no server.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::failure::{FAILED, Failure, USAGE};
use super::output::Out;
use crate::authority::{self, Made, Unmade};

/// What every server is called on its own machine.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make an authority (CA) and a certificate of it for this server's listeners.
    Init {
        /// Where the files go. Made if it is not there; nothing in it is written over.
        #[arg(long, value_name = "DIR", default_value = "tls")]
        dir: PathBuf,
        /// A host name or address by which clients reach the server, beside localhost; may be repeated.
        #[arg(long = "name", value_name = "HOST")]
        names: Vec<String>,
        /// Days until the server's certificate ends. The authority lasts ten years.
        #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3_650))]
        days: u32,
    },
}

pub(super) fn run(command: Command, out: &Out) -> Result<(), Failure> {
    let Command::Init { dir, names, days } = command;
    let mut all = names;
    all.extend(OWN.map(str::to_owned));
    let mut seen = BTreeSet::new();
    all.retain(|name| seen.insert(name.clone()));
    let made = authority::init(&dir, &all, days).map_err(|unmade| {
        let exit = if matches!(unmade, Unmade::Name(_) | Unmade::There(_)) { USAGE } else { FAILED };
        let failure = Failure::new(exit, unmade.to_string());
        match unmade {
            Unmade::There(_) => failure.hint("name another directory with --dir, or move the old files away"),
            _ => failure,
        }
    })?;
    out.show(&made, show);
    Ok(())
}

fn show(out: &Out, made: &Made) {
    let Made { ca_file, ca_key_file, cert_file, key_file, names, days } = made;
    // The server may run elsewhere than where this was typed.
    let full =
        |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
    out.line(format!(
        "A certificate for {}, good for {days} days. Write into the configuration:\n\n\
         [tls]\n\
         cert_file = {:?}\n\
         key_file = {:?}\n\
         ca_file = {:?}\n\n\
         Clients need a copy of {}; `member add` prints it. {} signs certificates and nothing else needs it: keep \
         it away from the server, best offline.",
        names.join(", "),
        full(cert_file),
        full(key_file),
        full(ca_file),
        ca_file.display(),
        ca_key_file.display(),
    ));
}
