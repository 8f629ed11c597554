//! What the checks of an image ask and answer.

use napi::Result;
use napi_derive::napi;
use novacron_session::{
    Checked, CheckedMemory, Exactness, MARK_BYTES, PlantedFaults, Repair, Skipped,
};

use crate::convert::{invalid, whole};

/// One comparison of an image; see CheckedImage in runners/data-plane/sessions.ts.
#[napi(object, use_nullable = true)]
pub struct NativeChecked {
    pub page_count: f64,
    pub wrong_page_count: f64,
    pub wall_ms: f64,
    pub cpu_ms: f64,
}

#[napi(object, use_nullable = true)]
pub struct NativeCheckedMemory {
    pub source: NativeChecked,
    pub target: NativeChecked,
    pub written_page_count: f64,
    pub wrong_page_count: f64,
}

#[napi(object, use_nullable = true)]
pub struct NativeRepair {
    pub repaired_page_count: f64,
    pub written_page_count: f64,
}

/// A fault that a lab plants; `null` where hosts are real.
#[napi(object, use_nullable = true)]
pub struct NativePlanted {
    /// read, skipped, received, decoded or stored.
    pub fault: String,
    /// Of read, decoded and stored.
    pub page: Option<f64>,
    /// Of skipped: 16 bytes in hex that every skipped page contains.
    pub mark: Option<String>,
}

impl From<Checked> for NativeChecked {
    fn from(checked: Checked) -> Self {
        Self {
            page_count: checked.pages as f64,
            wrong_page_count: checked.wrong as f64,
            wall_ms: checked.wall_micros as f64 / 1e3,
            cpu_ms: checked.cpu_micros as f64 / 1e3,
        }
    }
}

impl From<CheckedMemory> for NativeCheckedMemory {
    fn from(checked: CheckedMemory) -> Self {
        Self {
            source: checked.source.into(),
            target: checked.target.into(),
            written_page_count: checked.written_pages as f64,
            wrong_page_count: checked.wrong_pages as f64,
        }
    }
}

impl From<Repair> for NativeRepair {
    fn from(repair: Repair) -> Self {
        Self {
            repaired_page_count: repair.repaired_pages as f64,
            written_page_count: repair.written_pages as f64,
        }
    }
}

pub(crate) fn exactness(text: &str) -> Result<Exactness> {
    match text {
        "before-resume" => Ok(Exactness::BeforeResume),
        "after-resume" => Ok(Exactness::AfterResume),
        "off" => Ok(Exactness::Off),
        _ => Err(invalid("exactness is before-resume, after-resume or off")),
    }
}

pub(crate) fn planted(planted: Option<NativePlanted>) -> Result<PlantedFaults> {
    let Some(planted) = planted else { return Ok(PlantedFaults::default()) };
    let none = PlantedFaults::default();
    let page = planted.page.map(|page| whole(page, "page")).transpose()?;
    Ok(match planted.fault.as_str() {
        "read" => PlantedFaults { read: page, ..none },
        "received" => PlantedFaults { received: true, ..none },
        "decoded" => PlantedFaults { decoded: page, ..none },
        "stored" => PlantedFaults { stored: page, ..none },
        "skipped" => PlantedFaults { skipped: Some(skipped(page, planted.mark)?), ..none },
        _ => return Err(invalid("no such planted fault")),
    })
}

fn skipped(page: Option<u64>, mark: Option<String>) -> Result<Skipped> {
    let Some(mark) = mark else {
        return page.map(Skipped::Page).ok_or_else(|| invalid("a page or a mark is skipped"));
    };
    let number = u128::from_str_radix(&mark, 16).ok().filter(|_| mark.len() == MARK_BYTES * 2);
    number.map(|number| Skipped::Marked(number.to_be_bytes()))
        .ok_or_else(|| invalid("a mark is 16 bytes in hex"))
}
