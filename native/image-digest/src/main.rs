//! `novacron-image-digest RANGE_BYTES FILE...`: blake3 of every range of raw images, and which
//! ranges differ from those of the first file. Prints one JSON object. Holes count as zeros and cost
//! nothing. For the lab: whoever calls it sees to it that nobody writes meanwhile.

mod ranges;

use std::process::ExitCode;
use std::thread;

use serde::Serialize;

use ranges::{DigestError, ImageDigest, compare, digest_image};

/// Ranges that differ are named up to so many; more help nobody.
const NAMED_MAX: usize = 16;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: u32,
    range_bytes: u64,
    images: Vec<ImageDigest>,
    /// Ranges that are not the same in every image.
    unequal_count: usize,
    /// The first of them, by number.
    unequal: Vec<usize>,
}

fn report(range_bytes: u64, paths: &[String]) -> Result<Report, DigestError> {
    let images = thread::scope(|scope| {
        let readers: Vec<_> = paths.iter()
            .map(|path| scope.spawn(move || digest_image(path.as_ref(), range_bytes)))
            .collect();
        readers.into_iter()
            .map(|reader| reader.join().unwrap_or(Err(DigestError::Reader)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let unequal = compare(&images);
    Ok(Report {
        version: 1,
        range_bytes,
        unequal_count: unequal.len(),
        unequal: unequal.into_iter().take(NAMED_MAX).collect(),
        images,
    })
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let range_bytes = words.first().and_then(|text| text.parse::<u64>().ok())
        .filter(|bytes| (4_096..=1 << 30).contains(bytes));
    let (Some(range_bytes), [_, paths @ ..]) = (range_bytes, words.as_slice()) else {
        eprintln!("novacron-image-digest RANGE_BYTES (4096 to 1 GiB) FILE...");
        return ExitCode::from(2);
    };
    match report(range_bytes, paths).map(|report| serde_json::to_string(&report)) {
        Ok(Ok(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("novacron-image-digest: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("novacron-image-digest: {error}");
            ExitCode::FAILURE
        }
    }
}
