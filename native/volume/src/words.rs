//! What a host asks of a gate and what the gate answers: the hello of a lane, and one line.
//!
//! ```text
//!   hello   novacron-volume/1 open|view|raise|look VM VOLUME EPOCH
//!   answer  ok EPOCH \n  |  refused EPOCH why \n  |  failed EPOCH why \n      EPOCH: the gate's
//! ```
//! After `ok` to an `open` or a `view` the lane carries NBD; every other lane ends with its answer.

use novacron_transport::{LaneError, LaneReader, LaneWriter};

const PROTOCOL: &str = "novacron-volume/1";
/// Longest answer: a reason is one sentence.
const ANSWER_BYTES_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// An NBD connection of the writer, under exactly the gate's epoch.
    Open,
    /// An NBD connection that only reads and ends with the next raise: of a VMM that waits for its
    /// guest. The epoch is 0.
    View,
    /// The gate goes up to the epoch; answered when no lower write is in flight or queued.
    Raise,
    /// Where the gate stands; changes nothing.
    Look,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub wish: Wish,
    pub vm: String,
    pub volume: String,
    pub epoch: u64,
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let wish = match self.wish {
            Wish::Open => "open",
            Wish::View => "view",
            Wish::Raise => "raise",
            Wish::Look => "look",
        };
        format!("{PROTOCOL} {wish} {} {} {}", self.vm, self.volume, self.epoch).into_bytes()
    }

    /// `None` for anything else than `encode` gives.
    pub fn decode(hello: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(hello).ok()?.split(' ').collect();
        let [PROTOCOL, wish, vm, volume, epoch] = words[..] else { return None };
        let wish = match wish {
            "open" => Wish::Open,
            "view" => Wish::View,
            "raise" => Wish::Raise,
            "look" => Wish::Look,
            _ => return None,
        };
        let epoch = epoch.bytes().all(|digit| digit.is_ascii_digit()).then(|| epoch.parse().ok())??;
        Some(Self { wish, vm: vm.to_owned(), volume: volume.to_owned(), epoch })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Ok { epoch: u64 },
    /// Never while the gate stands where it does.
    Refused { epoch: u64, why: String },
    /// Not now; it may be asked again.
    Failed { epoch: u64, why: String },
}

impl Answer {
    pub fn encode(&self) -> Vec<u8> {
        let text = match self {
            Self::Ok { epoch } => format!("ok {epoch}"),
            Self::Refused { epoch, why } => format!("refused {epoch} {why}"),
            Self::Failed { epoch, why } => format!("failed {epoch} {why}"),
        };
        let mut line: Vec<u8> = text.replace('\n', " ").into_bytes();
        line.truncate(ANSWER_BYTES_MAX - 1);
        line.push(b'\n');
        line
    }

    pub fn decode(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let (kind, epoch) = (words.next()?, words.next()?.parse().ok()?);
        let why = words.next().unwrap_or_default().to_owned();
        match kind {
            "ok" => Some(Self::Ok { epoch }),
            "refused" => Some(Self::Refused { epoch, why }),
            "failed" => Some(Self::Failed { epoch, why }),
            _ => None,
        }
    }
}

/// Sends the answer at once.
pub fn say(writer: &mut LaneWriter, answer: &Answer) -> Result<(), LaneError> {
    writer.write_all(&answer.encode())?;
    writer.flush()
}

/// Reads the answer and not a byte more: NBD may follow.
pub fn hear(reader: &mut LaneReader) -> Result<Answer, LaneError> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < ANSWER_BYTES_MAX {
        reader.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            let text = String::from_utf8_lossy(&line);
            return Answer::decode(&text).ok_or(LaneError::Protocol("an answer that none knows"));
        }
        line.push(byte[0]);
    }
    Err(LaneError::Protocol("an answer without end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        for wish in [Wish::Open, Wish::View, Wish::Raise, Wish::Look] {
            let request =
                Request { wish, vm: "vm-a".into(), volume: "vm-a-data".into(), epoch: 7 };
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in [
            Answer::Ok { epoch: 3 },
            Answer::Refused { epoch: 4, why: "the gate is higher".into() },
            Answer::Failed { epoch: 0, why: String::new() },
        ] {
            let line = answer.encode();
            let text = std::str::from_utf8(&line[..line.len() - 1]).expect("text");
            assert_eq!(Answer::decode(text), Some(answer));
        }
    }

    #[test]
    fn anything_else_is_no_request() {
        for text in [
            "",
            "novacron-volume/1 open a b",
            "novacron-volume/2 open a b 1",
            "novacron-volume/1 write a b 1",
            "novacron-volume/1 open a b -1",
            "novacron-volume/1 open a b 1 c",
            "novacron-volume/1 open a b 99999999999999999999",
            "novacron-volume/1 open a b ",
        ] {
            assert_eq!(Request::decode(text.as_bytes()), None, "{text}");
        }
    }
}
