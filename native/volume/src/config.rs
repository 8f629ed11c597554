//! What both ends are told: JSON files, written by an operator (gate) or by a host runner (link).

use novacron_transport::LinkError;
use novacron_transport::tls::{CredentialFiles, Credentials};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Files of a certificate and of the list of those taken back.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    pub cert_path: PathBuf,
    pub key_path: PathBuf,
    pub ca_path: PathBuf,
    /// The authority's `revoked.json`; its signature is checked by who puts it there.
    pub revoked_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

impl Endpoint {
    pub fn socket(self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// One export of the NBD server beside the gate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    pub name: String,
    /// The only VM that it belongs to: epochs are counted a VM.
    pub vm: String,
    /// Unix socket of the NBD server, which exports the volume under its name.
    pub socket: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GateConfig {
    pub version: u8,
    pub listen: Endpoint,
    pub tls: Tls,
    /// Where the epochs are kept: on the disk that the volumes are on.
    pub state_dir: PathBuf,
    pub volumes: Vec<VolumeConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkConfig {
    pub version: u8,
    pub vm: String,
    pub volume: String,
    pub server: Endpoint,
    /// `novacron://volume/NAME`, which the server's certificate must carry.
    pub server_identity: String,
    pub tls: Tls,
    /// Socket for the VMM, given to `uid`.
    pub socket: PathBuf,
    pub uid: u32,
    /// Holds the epoch of the VMM's incarnation, as digits, or `view` before it has one; read at
    /// each connection.
    pub epoch_path: PathBuf,
    /// Says which process this is; the link ends when it is removed or names another.
    pub record_path: PathBuf,
}

/// Reads a configuration; the error names the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[derive(Deserialize)]
struct Revoked {
    serials: Vec<String>,
}

/// Serials that are refused, one a line.
pub fn revoked_serials(tls: &Tls) -> Result<String, LinkError> {
    let Some(path) = &tls.revoked_path else { return Ok(String::new()) };
    let list: Revoked = read(path).map_err(LinkError::Credentials)?;
    Ok(list.serials.join("\n"))
}

/// Reads certificate, key, authority and revocation list as they are now.
pub fn credentials(tls: &Tls) -> Result<Credentials, LinkError> {
    let credentials = Credentials::load(&CredentialFiles {
        ca: tls.ca_path.clone(),
        certificate: tls.cert_path.clone(),
        key: tls.key_path.clone(),
        revoked: None,
    })?;
    credentials.revoked().replace(&revoked_serials(tls)?)?;
    Ok(credentials)
}
