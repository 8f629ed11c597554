//! The gate's epoch, durable beside the disk that it guards.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// An epoch in a file of its own; it only ever rises.
#[derive(Debug)]
pub struct EpochFile {
    path: PathBuf,
    epoch: Mutex<u64>,
}

impl EpochFile {
    /// Reads the epoch; 0 when there is no file yet. A file that holds anything else is an error,
    /// never a fresh start.
    pub fn open(path: &Path) -> io::Result<Self> {
        let epoch = match fs::read_to_string(path) {
            Ok(text) => text.trim_end().parse().map_err(|_| {
                io::Error::new(ErrorKind::InvalidData, format!("{} holds no epoch", path.display()))
            })?,
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        Ok(Self { path: path.to_owned(), epoch: Mutex::new(epoch) })
    }

    pub fn epoch(&self) -> u64 {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the epoch if it is `expected` and would not fall; answers whether it is `epoch` now,
    /// on disk. Repeating a raise that succeeded answers true.
    pub fn compare_and_set(&self, expected: u64, epoch: u64) -> io::Result<bool> {
        let mut present = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if *present == epoch {
            return Ok(true);
        }
        if *present != expected || epoch < *present {
            return Ok(false);
        }
        let draft = self.path.with_extension("new");
        let mut file = File::create(&draft)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        *present = epoch;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_only_and_survives() {
        let path = std::env::temp_dir().join(format!("novacron-epoch-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let file = EpochFile::open(&path).expect("opened");
        assert_eq!(file.epoch(), 0);
        assert!(file.compare_and_set(0, 5).expect("written"));
        assert!(file.compare_and_set(0, 5).expect("a repeat"));
        assert!(!file.compare_and_set(0, 6).expect("somebody else was first"));
        assert!(!file.compare_and_set(5, 4).expect("it never falls"));
        assert_eq!(EpochFile::open(&path).expect("opened again").epoch(), 5);
        fs::write(&path, "five").expect("written");
        assert!(EpochFile::open(&path).is_err());
        fs::remove_file(&path).expect("removed");
    }
}
