//! TUN devices in other network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// `IFF_TUN`, `IFF_NO_PI`, `IFF_VNET_HDR`.
const INTERFACE_FLAGS: u16 = 0x0001 | 0x1000 | 0x4000;
/// Checksums, TCP over IPv4 and IPv6, its ECN, UDP over both: the kernel hands over large buffers.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40;
/// Bytes of struct ifreq.
const IFREQ_BYTES: usize = 40;
const INTERFACE_FLAGS_AT: usize = 16;
/// Buffers that the kernel keeps for us; none of them is to be lost unseen.
const QUEUE_BUFFERS: u32 = 20_000;

/// Makes the device `name` in `namespace`; it vanishes when the descriptor is closed.
pub fn open(namespace: &str, name: &str, offload: bool) -> io::Result<OwnedFd> {
    let own = File::open("/proc/self/ns/net")?;
    let other = File::open(format!("/run/netns/{namespace}"))?;
    enter(&other)?;
    let opened = open_here(name, offload);
    enter(&own)?;
    opened
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: an open descriptor; this program has one thread.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

fn open_here(name: &str, offload: bool) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a literal path that ends in zero.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) };
    check(fd)?;
    // SAFETY: the kernel has just given it to us.
    let device = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = [0_u8; IFREQ_BYTES];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[INTERFACE_FLAGS_AT..INTERFACE_FLAGS_AT + 2]
        .copy_from_slice(&INTERFACE_FLAGS.to_le_bytes());
    // SAFETY: a whole ifreq, whose name is shorter than its field and ends in zero.
    check(unsafe { libc::ioctl(fd, TUNSETIFF, request.as_mut_ptr()) })?;
    if offload {
        // SAFETY: plain numbers.
        check(unsafe { libc::ioctl(fd, TUNSETOFFLOAD, OFFLOADS) })?;
    }
    Ok(device)
}

/// Gives the device its address and brings it up.
pub fn configure(
    namespace: &str,
    name: &str,
    addresses: (&str, &str),
    mtu: u32,
) -> Result<(), String> {
    let (own, peer) = addresses;
    let (mtu, queue) = (mtu.to_string(), QUEUE_BUFFERS.to_string());
    let steps: [&[&str]; 3] = [
        &["link", "set", name, "mtu", &mtu, "txqueuelen", &queue, "up"],
        &["addr", "add", own, "peer", peer, "dev", name],
        &["link", "set", "lo", "up"],
    ];
    for step in steps {
        let output = Command::new("ip")
            .args(["-n", namespace])
            .args(step)
            .output()
            .map_err(|e| format!("ip: {e}"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("ip -n {namespace} {}: {}", step.join(" "), why.trim()));
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
