//! `novacron-volume gate|link --config FILE`: see the crate's head.

use novacron_volume::{config, gate, link};
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: novacron-volume gate --config FILE    serves volumes to hosts, until SIGTERM
       novacron-volume link --config FILE    leads one VMM to one volume; started by host runners";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match texts[..] {
        ["gate", "--config", path] => config::read(Path::new(path)).and_then(|it| gate::run(&it)),
        ["link", "--config", path] => config::read(Path::new(path)).and_then(|it| link::run(&it)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("novacron-volume: {why}");
            ExitCode::FAILURE
        }
    }
}
