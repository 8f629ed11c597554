//! The epoch of a volume, durable beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file of one volume's epoch: digits and a line's end.
#[derive(Debug)]
pub struct EpochFile {
    path: PathBuf,
    kept: Mutex<u64>,
}

/// Why an epoch was not kept.
#[derive(Debug)]
pub enum NotKept {
    /// The file holds this higher one.
    Lower(u64),
    /// Nothing has changed.
    Io(io::Error),
}

impl EpochFile {
    /// A new one stands at 0. Fails on a damaged file: guessing would let an old writer in.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kept = match fs::read_to_string(path) {
            Ok(text) => text.trim_end().parse().map_err(|_| {
                let what = format!("{}: {text:?} is no epoch", path.display());
                io::Error::new(ErrorKind::InvalidData, what)
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), kept: Mutex::new(kept) })
    }

    pub fn epoch(&self) -> u64 {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compare and set: durable when it returns. The same epoch again is no change.
    pub fn raise(&self, epoch: u64) -> Result<(), NotKept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < *kept {
            return Err(NotKept::Lower(*kept));
        }
        if epoch > *kept {
            write_durably(&self.path, &format!("{epoch}\n")).map_err(NotKept::Io)?;
            *kept = epoch;
        }
        Ok(())
    }
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("fresh");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_falls_and_outlives_its_process() {
        let folder = std::env::temp_dir().join(format!("volume-epoch-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("data.epoch");
        let epochs = EpochFile::open(&path).expect("new");
        assert_eq!(epochs.epoch(), 0);
        epochs.raise(4).expect("raised");
        epochs.raise(4).expect("a repeat");
        assert!(matches!(epochs.raise(3), Err(NotKept::Lower(4))));
        assert_eq!(EpochFile::open(&path).expect("kept").epoch(), 4);
        fs::write(&path, "4x").expect("damaged");
        assert!(EpochFile::open(&path).is_err());
        fs::remove_dir_all(&folder).expect("removed");
    }
}
