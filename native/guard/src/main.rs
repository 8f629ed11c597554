//! `novacron-guard`: see `--help`.

use novacron_guard::arguments::{Arguments, HELP, Parsed};
use novacron_guard::daemon;
use std::process::ExitCode;

/// The arguments make no sense; nothing was started.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Help) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Parsed::Run(arguments)) => match daemon::start(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("novacron-guard: {why}");
                ExitCode::FAILURE
            }
        },
        Err(why) => {
            eprintln!("novacron-guard: {why} (--help explains the arguments)");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
