// SPDX-License-Identifier: GPL-2.0
//! Figures as debugfs gives them: files of `name value` lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde::Serialize;

/// The content of a stats file. Names in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Figures {
    values: BTreeMap<String, u64>,
    #[serde(skip)]
    order: Vec<String>,
}

impl Figures {
    /// Parses `name value` lines. A line of another form is an error; a name that is not
    /// known is kept, since modules may have more figures than this program knows.
    pub fn parse(text: &str) -> Result<Self> {
        let mut figures = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let Some((name, value)) = line.split_once(' ') else {
                bail!("line {}: '{line}' is not 'name value'", number + 1);
            };
            let value = value
                .trim()
                .parse()
                .with_context(|| format!("line {}: '{line}' has no number", number + 1))?;
            if figures.values.insert(name.to_string(), value).is_none() {
                figures.order.push(name.to_string());
            }
        }
        if figures.order.is_empty() {
            bail!("no figures");
        }
        Ok(figures)
    }

    /// A figure, 0 if there is none of that name.
    pub fn get(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or(0)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(String::as_str)
    }
}

/// A TD's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TdName {
    /// Number since the module was loaded.
    pub td: u64,
    /// Process that made it.
    pub pid: u64,
}

impl TdName {
    /// From the folder's name, PID-TD.
    pub fn parse(folder: &str) -> Option<Self> {
        let (pid, td) = folder.split_once('-')?;
        Some(Self {
            td: td.parse().ok()?,
            pid: pid.parse().ok()?,
        })
    }

    pub fn folder(&self) -> String {
        format!("{}-{}", self.pid, self.td)
    }
}

/// The module's folder in debugfs, or a copy of it.
#[derive(Clone, Debug)]
pub struct Source {
    root: PathBuf,
}

impl Source {
    pub fn new(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            bail!(
                "there is no folder {}: is tdx_mirror loaded, debugfs mounted, and are you root?",
                root.display()
            );
        }
        Ok(Self { root: root.into() })
    }

    fn read(&self, path: &Path) -> Result<String> {
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
    }

    /// All TDs, ordered by their numbers.
    pub fn tds(&self) -> Result<Vec<TdName>> {
        let mut tds = Vec::new();
        for entry in fs::read_dir(&self.root)
            .with_context(|| format!("{} cannot be read", self.root.display()))?
        {
            if let Some(name) = entry?.file_name().to_str().and_then(TdName::parse) {
                tds.push(name);
            }
        }
        tds.sort();
        Ok(tds)
    }

    /// A TD by its number or by its folder's name.
    pub fn td(&self, wanted: &str) -> Result<TdName> {
        let found = self
            .tds()?
            .into_iter()
            .find(|td| wanted == td.folder() || wanted.parse() == Ok(td.td));
        found.with_context(|| format!("there is no TD {wanted}; 'list' shows those that live"))
    }

    /// The sums over all TDs, or the figures of one.
    pub fn figures(&self, td: Option<&TdName>) -> Result<Figures> {
        let folder = td.map_or(self.root.clone(), |td| self.root.join(td.folder()));
        let path = folder.join("stats");
        Figures::parse(&self.read(&path)?).with_context(|| path.display().to_string())
    }

    /// A file of a TD.
    pub fn file(&self, td: &TdName, name: &str) -> Result<String> {
        self.read(&self.root.join(td.folder()).join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Source {
        Source::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")).unwrap()
    }

    #[test]
    fn recorded_figures() {
        let source = recorded();
        let td = source.td("3").unwrap();
        assert_eq!(td, TdName { td: 3, pid: 167 });
        assert_eq!(source.td("167-3").unwrap(), td);
        let figures = source.figures(Some(&td)).unwrap();
        assert_eq!(figures.get("mapped"), 2389);
        assert_eq!(figures.get("pages_mapped"), 24);
        assert_eq!(figures.get("freeze_cycles_4096"), 1638);
        assert_eq!(figures.names().next(), Some("td"));
        assert_eq!(source.figures(None).unwrap().get("tds_created"), 8);
    }

    #[test]
    fn two_tds_in_order() {
        let tds = recorded().tds().unwrap();
        assert_eq!(tds.iter().map(|td| td.td).collect::<Vec<_>>(), [3, 8]);
    }

    #[test]
    fn unknown_names_stay_and_missing_are_zero() {
        let figures = Figures::parse("mapped 3\nbrand_new 18446744073709551615\n").unwrap();
        assert_eq!(figures.get("brand_new"), u64::MAX);
        assert_eq!(figures.get("zapped"), 0);
        assert_eq!(figures.names().collect::<Vec<_>>(), ["mapped", "brand_new"]);
    }

    #[test]
    fn damaged_files() {
        for text in [
            "",
            "\n",
            "mapped\n",
            "mapped x\n",
            "mapped -1\n",
            "mapped 3 4\n",
        ] {
            assert!(Figures::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_of_folders() {
        for folder in ["stats", "-", "7-", "-7", "a-7", "7-a", "7-8-9"] {
            assert_eq!(TdName::parse(folder), None, "{folder}");
        }
    }

    #[test]
    fn absent() {
        assert!(Source::new(Path::new("/nonexistent")).is_err());
        assert!(recorded().td("4").is_err());
    }
}
