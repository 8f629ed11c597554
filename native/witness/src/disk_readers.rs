//! Threads that read the data disk past the guest's cache, each into one buffer, for ever: at any
//! moment the host's disk is writing into guest memory. What is read is not looked at.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::pattern::{self, Choice, PAGE_BYTES, Page};

/// Pages a read: 512 KiB, which virtio-blk carries in one request (at most 254 segments).
const READ_PAGES: usize = 128;

/// Starts `count` readers of a disk or file of any size; one that fails says so and ends.
pub(crate) fn start(path: &Path, count: u64, seed: u64) {
    for number in 0..count {
        let path = PathBuf::from(path);
        std::thread::spawn(move || {
            let Err(error) = read_for_ever(&path, seed.wrapping_add(number));
            println!("witness: a reader of {} ended: {error}", path.display());
        });
    }
}

fn read_for_ever(path: &Path, seed: u64) -> io::Result<std::convert::Infallible> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut buffer = vec![Page::zeroed(); READ_PAGES];
    let bytes = (READ_PAGES * PAGE_BYTES) as u64;
    // A block device has no length in its metadata.
    let length = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    let places = u32::try_from(length / bytes).map_err(io::Error::other)?;
    if places == 0 {
        return Err(io::Error::other(format!("{length} bytes are less than one read")));
    }
    let mut choice = Choice::new(seed);
    loop {
        let place = u64::from(choice.below(places));
        file.read_exact_at(pattern::as_bytes_mut(&mut buffer), place * bytes)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_or_missing_ends_a_reader() {
        let path = std::env::temp_dir().join(format!("witness-reader-{}", std::process::id()));
        assert!(read_for_ever(&path, 1).is_err(), "no such disk");
        std::fs::write(&path, [1; PAGE_BYTES]).expect("room");
        assert!(read_for_ever(&path, 1).is_err(), "too small");
        std::fs::remove_file(&path).expect("removed");
    }
}
