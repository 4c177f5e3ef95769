// SPDX-License-Identifier: GPL-2.0

//! The machine that a recording's header describes, with the module up.

use super::fields::Fields;
use crate::host::{bring_up_with, layout, td_params, Host, TdmrSpec};
use crate::instruments::Instrumented;
use crate::module::interp::Interpreter;
use crate::module::numbers::leaf;
use crate::module::{versions, Config, Regs};

/// Versions and values that the replayer stands for.
const FORMAT: u64 = 1;
const MODULE: &str = "TDX module ";
/// The version of a recording that names none.
const FIRST: &str = "1.5.01";
/// From this update of 1.5 on calls have R12 and R13.
const WITH_R12: u64 = 20;
const MAX_PA: u64 = 52;
/// Pages that PAGE.ADD copies from.
const SOURCE: &str = "source page k at 0x20000+k*4096, byte j = (37*k+j) mod 256, k<8";
const SOURCE_PAGES: u64 = 8;
/// Field TDX_FEATURES0.
const TDX_FEATURES0: u64 = 0x0A00_0003_0000_0008;
/// TSC ticks until a guest's yielding to the host's priority ends.
pub const HP_LOCK_TIMEOUT: u64 = 1_000_000_000;
/// Logical processors: one for each vCPU and the host's.
pub const LPS: usize = 3;

/// What of the header is needed later.
pub struct Header {
    pub tdr: u64,
    pub tdvpr: [u64; 2],
    pub tdmr: (u64, u64),
    /// Offset and size of its reserved areas.
    pub reserved: Vec<(u64, u64)>,
    /// Base and number of the pages that have an index.
    pub pages: (u64, u64),
}

/// What of the calls depends on the version of the module.
#[derive(Clone, Copy)]
pub struct Release {
    /// They have R12 and R13.
    pub r12: bool,
}

impl Release {
    /// The release that a recording names.
    pub fn of(version: &str) -> Result<Release, String> {
        let update = version.strip_prefix("1.5.").and_then(|u| u.parse().ok());
        let update: u64 = update.ok_or_else(|| format!("there is no TDX module {version}"))?;
        Ok(Release {
            r12: update >= WITH_R12,
        })
    }
}

fn expect<T: PartialEq + std::fmt::Display>(what: &str, got: T, known: T) -> Result<(), String> {
    match got == known {
        true => Ok(()),
        false => Err(format!("header.{what} is {got}; only {known} is supported")),
    }
}

fn tdmr(h: &mut Fields) -> Result<TdmrSpec, String> {
    let mut list = h.objects("tdmr")?;
    expect("tdmr: number of TDMRs", list.len(), 1)?;
    let mut t = list.remove(0);
    let mut reserved = Vec::new();
    for mut r in t.objects("rsvd")? {
        reserved.push((r.num("offset")?, r.num("size")?));
        r.end()?;
    }
    let tdmr = TdmrSpec {
        base: t.num("base")?,
        size: t.num("size")?,
        reserved,
    };
    t.end()?;
    // The host keeps the PAMT above, and its own structures below.
    let end = tdmr.base.checked_add(tdmr.size);
    let aligned = (tdmr.base | tdmr.size) & ((1 << 30) - 1) == 0;
    if !aligned || tdmr.base == 0 || tdmr.size == 0 || end.is_none_or(|e| e > layout::PAMT) {
        return Err("header.tdmr does not fit into this machine".into());
    }
    Ok(tdmr)
}

fn config(h: &mut Fields) -> Result<Config, String> {
    let small = |name: &str, v: u64, max: u64| match v <= max {
        true => Ok(v),
        false => Err(format!("header.{name} is {v}, above {max}")),
    };
    let mut seamrr = h.object("seamrr")?;
    let config = Config {
        hkid_start_bit: small("hkid_start_bit", h.num("hkid_start_bit")?, 58)? as u32,
        hkid_bits: small("hkid_bits", h.num("hkid_bits")?, 6)? as u32,
        hkid_in_entries: true,
        private_hkid_min: small("private_hkid_min", h.num("private_hkid_min")?, 63)? as u16,
        private_hkid_max: small("private_hkid_max", h.num("private_hkid_max")?, 63)? as u16,
        seamrr_base: seamrr.num("base")?,
        seamrr_size: seamrr.num("size")?,
        packages: 1,
        lps: LPS as u32,
        hp_lock_timeout: HP_LOCK_TIMEOUT,
    };
    seamrr.end()?;
    Ok(config)
}

/// The version that the header names, which must be known.
fn version(h: &mut Fields) -> Result<String, String> {
    let module = h.text("module")?;
    let version = match h.has("version") {
        true => h.text("version")?,
        false => FIRST.into(),
    };
    if !module.starts_with(&format!("{MODULE}{version} ")) {
        return Err(format!(
            "header.module is {module}, but its version {version}"
        ));
    }
    match versions().any(|known| known == version) {
        true => Ok(version),
        false => Err(format!("header.version: {version} is not supported")),
    }
}

/// TDX_FEATURES0 as the module reports it.
pub fn features0(module: &Instrumented<Host, Interpreter>) -> Result<u64, String> {
    let mut r = Regs {
        rdx: TDX_FEATURES0,
        ..Regs::default()
    };
    match module.seamcall(0, u64::from(leaf::SYS_RD), &mut r) {
        0 => Ok(r.r8),
        rax => Err(format!("TDX_FEATURES0: {rax:#x}")),
    }
}

/// Reads the header and makes its machine.
pub fn machine(
    mut h: Fields,
) -> Result<(Header, Release, Instrumented<Host, Interpreter>), String> {
    expect("type", h.text("type")?.as_str(), "header")?;
    expect("format", h.num("format")?, FORMAT)?;
    let named = h.has("version");
    let version = version(&mut h)?;
    let release = Release::of(&version)?;
    let features = h.num_if_any("features0")?;
    if named != features.is_some() || named != h.has("dynamic_pamt") {
        return Err("header: version, features0 and dynamic_pamt belong together".into());
    }
    let dynamic = h.flag("dynamic_pamt")?;
    if dynamic && !release.r12 {
        return Err(format!(
            "header.dynamic_pamt: TDX module {version} has none"
        ));
    }
    // Only says how the recording was made.
    h.num("seed")?;
    expect("max_pa", h.num("max_pa")?, MAX_PA)?;
    expect("num_l2_vms", h.num("num_l2_vms")?, 0)?;
    expect("src", h.text("src")?.as_str(), SOURCE)?;
    let config = config(&mut h)?;
    let global_hkid = h.num("global_hkid")?;
    // The calls name it themselves.
    h.num("td_hkid")?;
    let tdmr = tdmr(&mut h)?;
    let mut pool = h.object("page_pool")?;
    let pages = (pool.num("base")?, pool.num("n")?);
    pool.end()?;
    let mut pool = h.object("chunk_pool")?;
    pool.num("base")?;
    pool.num("n")?;
    pool.end()?;
    // Of these pages the calls make pairs.
    if dynamic {
        let mut pool = h.object("pair_pool")?;
        pool.num("base")?;
        pool.num("n")?;
        pool.end()?;
    }
    let header = Header {
        tdr: h.num("tdr")?,
        tdvpr: h.nums("tdvpr")?,
        tdmr: (tdmr.base, tdmr.size),
        reserved: tdmr.reserved.clone(),
        pages,
    };
    let within = |pa: u64| pa % 4096 == 0 && pa.wrapping_sub(tdmr.base) < tdmr.size;
    if !within(header.tdr) || !header.tdvpr.iter().all(|&pa| within(pa)) {
        return Err("header: TDR and TDVPR must be pages of the TDMR".into());
    }
    let (attributes, root_level, gpaw) = (h.num("attributes")?, h.num("eptp_pwl")?, h.num("gpaw")?);
    h.end()?;

    let module = Instrumented::new(Host::new(config), Interpreter);
    module.set_version(&version);
    bring_up_with(&module, &tdmr, global_hkid, dynamic);
    if let Some(features) = features {
        let got = features0(&module)?;
        expect("features0", format!("{features:#x}"), format!("{got:#x}"))?;
    }
    let host = module.platform();
    td_params(host, attributes, root_level, gpaw);
    for k in 0..SOURCE_PAGES {
        let page: Vec<u8> = (0..4096u64).map(|j| ((37 * k + j) % 256) as u8).collect();
        host.write_bytes(layout::SOURCE + k * 4096, &page);
    }
    Ok((header, release, module))
}
