//! The digest of an image, range by range, and the comparison of several.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;

/// Why an image has no digest.
#[derive(Debug)]
pub(crate) enum DigestError {
    Io(io::Error),
    /// The thread that read it ended without an answer.
    Reader,
}

impl fmt::Display for DigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(cause) => write!(f, "{cause}"),
            Self::Reader => f.write_str("a reader ended without an answer"),
        }
    }
}

impl Error for DigestError {}

impl From<io::Error> for DigestError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

/// One image: blake3 over all range digests, and what stood behind it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageDigest {
    pub(crate) bytes: u64,
    /// Ranges that hold something else than zeros.
    pub(crate) data_ranges: usize,
    pub(crate) digest: String,
    #[serde(skip)]
    ranges: Vec<blake3::Hash>,
}

/// Next data at or after `offset`; the file's end when only a hole follows.
fn next_data(file: &File, offset: u64, end: u64) -> io::Result<u64> {
    // SAFETY: takes an open descriptor and an offset; moves the descriptor's position, which nothing
    // here uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, libc::SEEK_DATA) };
    if found >= 0 {
        return Ok(found as u64);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(end),
        // A file system without holes: everything is data.
        Some(libc::EINVAL) => Ok(offset),
        _ => Err(error),
    }
}

/// Digests a file in ranges of `range_bytes`, the last one shorter where the size says so.
pub(crate) fn digest_image(path: &Path, range_bytes: u64) -> Result<ImageDigest, DigestError> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut buffer = vec![0; range_bytes as usize];
    let zeros = blake3::hash(&buffer);
    let mut ranges = Vec::with_capacity(bytes.div_ceil(range_bytes) as usize);
    let mut data_ranges = 0;
    let mut data_at = next_data(&file, 0, bytes)?;
    let mut offset = 0;
    while offset < bytes {
        let length = range_bytes.min(bytes - offset);
        if data_at < offset {
            data_at = next_data(&file, offset, bytes)?;
        }
        let is_hole = data_at >= offset + length;
        let zeros_here =
            if length == range_bytes { zeros } else { blake3::hash(&vec![0; length as usize]) };
        let hash = if is_hole {
            zeros_here
        } else {
            let range = &mut buffer[..length as usize];
            file.read_exact_at(range, offset)?;
            blake3::hash(range)
        };
        data_ranges += usize::from(hash != zeros_here);
        ranges.push(hash);
        offset += length;
    }
    let mut all = blake3::Hasher::new();
    for range in &ranges {
        all.update(range.as_bytes());
    }
    Ok(ImageDigest { bytes, data_ranges, digest: all.finalize().to_hex().to_string(), ranges })
}

/// Numbers of the ranges that are not the same in all images; one that an image lacks differs.
pub(crate) fn compare(images: &[ImageDigest]) -> Vec<usize> {
    let count = images.iter().map(|image| image.ranges.len()).max().unwrap_or(0);
    let Some(first) = images.first() else { return Vec::new() };
    (0..count)
        .filter(|&number| {
            images.iter().any(|image| image.ranges.get(number) != first.ranges.get(number))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const RANGE: u64 = 65_536;

    struct Image(PathBuf);
    impl Image {
        fn new(name: &str, bytes: u64, writes: &[(u64, &[u8])]) -> Self {
            let path = std::env::temp_dir()
                .join(format!("image-digest-{}-{name}", std::process::id()));
            let file = File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            for (offset, data) in writes {
                file.write_all_at(data, *offset).unwrap();
            }
            Self(path)
        }
        fn digest(&self) -> ImageDigest {
            digest_image(&self.0, RANGE).unwrap()
        }
    }
    impl Drop for Image {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn written_zeros_are_equal_to_a_hole() {
        let size = 10 * RANGE + 100;
        let sparse = Image::new("sparse", size, &[(3 * RANGE + 5, b"data")]);
        let full = Image::new("full", size, &[(0, &vec![0; size as usize]), (3 * RANGE + 5, b"data")]);
        let images = [sparse.digest(), full.digest()];
        assert_eq!(images[0].digest, images[1].digest);
        assert_eq!((images[0].data_ranges, images[1].data_ranges), (1, 1));
        assert_eq!(compare(&images), Vec::<usize>::new());
    }

    #[test]
    fn one_changed_byte_names_its_range_and_nothing_else() {
        let size = 64 * RANGE;
        for offset in [0, RANGE - 1, 17 * RANGE + 9, size - 1] {
            let a = Image::new("a", size, &[(17 * RANGE, b"12345678")]);
            let b = Image::new("b", size, &[(17 * RANGE, b"12345678"), (offset, b"!")]);
            let images = [a.digest(), b.digest()];
            assert_ne!(images[0].digest, images[1].digest);
            assert_eq!(compare(&images), vec![(offset / RANGE) as usize]);
        }
    }

    #[test]
    fn an_image_that_is_too_short_differs_where_it_ends() {
        let a = Image::new("long", 4 * RANGE, &[]);
        let b = Image::new("short", 3 * RANGE, &[]);
        assert_eq!(compare(&[a.digest(), b.digest()]), vec![3]);
    }

    #[test]
    fn data_at_the_end_of_a_range_after_a_hole_is_found() {
        let image = Image::new("end", 8 * RANGE, &[(RANGE - 1, b"x"), (7 * RANGE, b"y")]);
        assert_eq!(image.digest().data_ranges, 2);
    }
}
