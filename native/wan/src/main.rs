//! `novacron-wan`: see `--help`.

use novacron_wan::arguments::{Arguments, HELP};
use novacron_wan::emulator;
use std::process::ExitCode;

/// The arguments make no sense; nothing was set up.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::parse(&words) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("novacron-wan: {why} (--help explains the arguments)");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match emulator::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("novacron-wan: {why}");
            ExitCode::FAILURE
        }
    }
}
