//! The command line: `key=value`, for both directions or for one of them.

use std::collections::HashMap;

pub const HELP: &str = "\
usage: novacron-wan ns_a=A ns_b=B [key=value | ab.key=value | ba.key=value ...]

Joins two network namespaces by an emulated wide-area link until SIGINT or SIGTERM. Prints a line
with \"ready\" once packets flow, and one JSON line of counters at the end and on SIGUSR1.

of a direction (ab. or ba. for one, bare for both):
  rate=MBIT        bits sent per microsecond; 0 = no limit (default)
  delay=MS         one way, default 0
  queue=BYTES      what waits for the rate; default 1e12
  loss=SHARE       0 to 1, behind the queue: a lost packet has used the link; default 0
  burst=PACKETS    mean length of a burst of losses, default 1 = independent
  jitter=MS        0 to this is added to the delay, evenly; default 0
  jorder=0|1       1 (default): jitter does not overtake
  reorder=SHARE    of packets that are held back by rextra=MS
  overhead=BYTES   added to each packet on the link, default 0
  trace=FILE       mahimahi: one millisecond a line, 1504 bytes each; instead of rate
  seed=N           the same seed loses the same packets; default 1
of the whole:
  dev=NAME (wan0)  ip_a=, ip_b= (198.18.2.1, 198.18.2.2)  mtu=N (1500)  gso=0|1 (1)
  slack=US         packets leave in batches of at least this (100)
  rt=PRIORITY      SCHED_FIFO, 0 = not (default)";

/// How one direction treats packets. Times in ns.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionSettings {
    pub rate_bits_per_second: f64,
    pub delay_ns: u64,
    pub queue_bytes_max: u64,
    pub loss_share: f64,
    pub burst_packets: f64,
    pub jitter_ns: u64,
    pub jitter_keeps_order: bool,
    pub reorder_share: f64,
    pub reorder_extra_ns: u64,
    pub overhead_bytes: u64,
    /// Moments at which 1504 bytes may leave, ascending; the last one is the period.
    pub trace_ns: Option<Vec<u64>>,
    pub seed: u64,
}

/// Everything that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    pub namespaces: [String; 2],
    pub addresses: [String; 2],
    pub device: String,
    pub mtu: u32,
    pub segmentation_offload: bool,
    pub slack_ns: u64,
    pub realtime_priority: i32,
    pub directions: [DirectionSettings; 2],
}

const DIRECTION_KEYS: [&str; 12] = [
    "rate", "delay", "queue", "loss", "burst", "jitter", "jorder", "reorder", "rextra", "overhead",
    "trace", "seed",
];
const WHOLE_KEYS: [&str; 9] = ["ns_a", "ns_b", "dev", "ip_a", "ip_b", "mtu", "gso", "slack", "rt"];
/// Kernel limit of a device name.
const DEVICE_NAME_BYTES_MAX: usize = 15;
/// An hour: more is a mistake of units.
const MILLIS_MAX: f64 = 3_600_000.0;

struct Words<'a>(HashMap<&'a str, &'a str>);

impl Words<'_> {
    fn text(&self, key: &str, fallback: &str) -> String {
        self.0.get(key).copied().unwrap_or(fallback).to_owned()
    }

    fn of_direction(&self, direction: &str, key: &str) -> Option<&str> {
        let own = format!("{direction}.{key}");
        self.0.get(own.as_str()).or_else(|| self.0.get(key)).copied()
    }

    fn number(
        &self,
        direction: &str,
        key: &str,
        fallback: f64,
        range: (f64, f64),
    ) -> Result<f64, String> {
        let Some(text) = self.of_direction(direction, key) else { return Ok(fallback) };
        let number: f64 =
            text.parse().map_err(|_| format!("{key} wants a number, not {text:?}"))?;
        if (range.0..=range.1).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{key} is {} to {}, not {text}", range.0, range.1))
        }
    }

    fn millis(&self, direction: &str, key: &str) -> Result<u64, String> {
        Ok((self.number(direction, key, 0.0, (0.0, MILLIS_MAX))? * 1e6) as u64)
    }

    fn switch(&self, direction: &str, key: &str) -> Result<bool, String> {
        match self.of_direction(direction, key) {
            None | Some("1") => Ok(true),
            Some("0") => Ok(false),
            Some(other) => Err(format!("{key} is 0 or 1, not {other:?}")),
        }
    }

    fn direction(&self, name: &str) -> Result<DirectionSettings, String> {
        let trace_ns = match self.of_direction(name, "trace") {
            None => None,
            Some(path) => Some(read_trace(path)?),
        };
        let share = (0.0, 1.0);
        Ok(DirectionSettings {
            rate_bits_per_second: self.number(name, "rate", 0.0, (0.0, 1e6))? * 1e6,
            delay_ns: self.millis(name, "delay")?,
            queue_bytes_max: self.number(name, "queue", 1e12, (1500.0, 1e15))? as u64,
            loss_share: self.number(name, "loss", 0.0, share)?,
            burst_packets: self.number(name, "burst", 1.0, (1.0, 1e6))?,
            jitter_ns: self.millis(name, "jitter")?,
            jitter_keeps_order: self.switch(name, "jorder")?,
            reorder_share: self.number(name, "reorder", 0.0, share)?,
            reorder_extra_ns: self.millis(name, "rextra")?,
            overhead_bytes: self.number(name, "overhead", 0.0, (0.0, 1500.0))? as u64,
            trace_ns,
            seed: self.number(name, "seed", 1.0, (0.0, 9e15))? as u64,
        })
    }
}

fn read_trace(path: &str) -> Result<Vec<u64>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("trace {path}: {e}"))?;
    let moments = text
        .split_whitespace()
        .map(|word| word.parse::<u32>().map(|ms| u64::from(ms) * 1_000_000))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("trace {path}: a line that is no number of ms"))?;
    match moments.last() {
        Some(&last) if last > 0 && moments.is_sorted() => Ok(moments),
        _ => Err(format!("trace {path}: ascending ms that end after 0 are wanted")),
    }
}

impl Arguments {
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut known = HashMap::new();
        for word in words {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value"))?;
            let bare = key.strip_prefix("ab.").or_else(|| key.strip_prefix("ba."));
            let fits = match bare {
                Some(bare) => DIRECTION_KEYS.contains(&bare),
                None => DIRECTION_KEYS.contains(&key) || WHOLE_KEYS.contains(&key),
            };
            if !fits {
                return Err(format!("unknown key {key:?}"));
            }
            known.insert(key, value);
        }
        let words = Words(known);
        let namespaces = [words.text("ns_a", ""), words.text("ns_b", "")];
        if namespaces.iter().any(|name| name.is_empty() || name.contains(['/', '\0'])) {
            return Err("ns_a and ns_b name the two namespaces".to_owned());
        }
        let device = words.text("dev", "wan0");
        if device.is_empty() || device.len() > DEVICE_NAME_BYTES_MAX {
            return Err(format!("dev is 1 to {DEVICE_NAME_BYTES_MAX} characters"));
        }
        Ok(Self {
            namespaces,
            addresses: [words.text("ip_a", "198.18.2.1"), words.text("ip_b", "198.18.2.2")],
            device,
            mtu: words.number("", "mtu", 1500.0, (576.0, 9000.0))? as u32,
            segmentation_offload: words.switch("", "gso")?,
            slack_ns: (words.number("", "slack", 100.0, (0.0, 1e5))? * 1e3) as u64,
            realtime_priority: words.number("", "rt", 0.0, (0.0, 99.0))? as i32,
            directions: [words.direction("ab")?, words.direction("ba")?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn directions_differ_where_asked() {
        let line = "ns_a=x ns_b=y rate=100 ab.rate=50 delay=25 ba.loss=0.01 jorder=0 slack=250";
        let arguments = parse(line).expect("valid");
        let [ab, ba] = &arguments.directions;
        assert!((ab.rate_bits_per_second - 5e7).abs() < 1.0);
        assert!((ba.rate_bits_per_second - 1e8).abs() < 1.0);
        assert_eq!((ab.delay_ns, ba.delay_ns), (25_000_000, 25_000_000));
        assert!(ab.loss_share.abs() < 1e-12 && (ba.loss_share - 0.01).abs() < 1e-12);
        assert!(!ab.jitter_keeps_order);
        assert_eq!(arguments.slack_ns, 250_000);
    }

    #[test]
    fn each_mistake_is_named() {
        for (line, word) in [
            ("ns_a=x", "ns_b"),
            ("ns_a=x ns_b=y speed=1", "speed"),
            ("ns_a=x ns_b=y ab.dev=q", "ab.dev"),
            ("ns_a=x ns_b=y rate", "key=value"),
            ("ns_a=x ns_b=y loss=1.5", "loss"),
            ("ns_a=x ns_b=y loss=NaN", "loss"),
            ("ns_a=x ns_b=y delay=-1", "delay"),
            ("ns_a=x ns_b=y rate=fast", "fast"),
            ("ns_a=x ns_b=y gso=2", "gso"),
            ("ns_a=x ns_b=../y", "ns_b"),
            ("ns_a=x ns_b=y trace=/no/such/file", "trace"),
            ("ns_a=x ns_b=y dev=aaaaaaaaaaaaaaaa", "dev"),
        ] {
            let why = parse(line).expect_err(line);
            assert!(why.contains(word), "{line}: {why}");
        }
    }
}
