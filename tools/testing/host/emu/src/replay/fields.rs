// SPDX-License-Identifier: GPL-2.0

//! Records of a recording, read so that nothing in them goes unnoticed: a field that is
//! not there, of another type, or of a name that nobody asked for is an error.

use serde_json::{Map, Value};

/// The fields of one JSON object that have not been taken yet.
pub struct Fields {
    /// What the object is, for messages.
    what: String,
    left: Map<String, Value>,
}

impl Fields {
    /// A line of a recording.
    pub fn parse(line: &str) -> Result<Fields, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("no JSON: {e}"))?;
        Fields::of("record", value)
    }

    fn of(what: &str, value: Value) -> Result<Fields, String> {
        match value {
            Value::Object(left) => Ok(Fields {
                what: what.into(),
                left,
            }),
            other => Err(format!("{what}: an object expected, got {other}")),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    fn take(&mut self, name: &str) -> Result<Value, String> {
        self.left
            .remove(name)
            .ok_or_else(|| format!("{}: field {name} is missing", self.what))
    }

    pub fn num(&mut self, name: &str) -> Result<u64, String> {
        let value = self.take(name)?;
        number(&value)
            .ok_or_else(|| format!("{}.{name}: a number expected, got {value}", self.what))
    }

    pub fn num_if_any(&mut self, name: &str) -> Result<Option<u64>, String> {
        self.has(name).then(|| self.num(name)).transpose()
    }

    pub fn signed(&mut self, name: &str) -> Result<i64, String> {
        let value = self.take(name)?;
        let bad = || format!("{}.{name}: a number expected, got {value}", self.what);
        value.as_i64().ok_or_else(bad)
    }

    pub fn text(&mut self, name: &str) -> Result<String, String> {
        match self.take(name)? {
            Value::String(s) => Ok(s),
            other => Err(format!("{}.{name}: text expected, got {other}", self.what)),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, String> {
        if !self.has(name) {
            return Ok(false);
        }
        let value = self.take(name)?;
        let bad = || format!("{}.{name}: true or false expected, got {value}", self.what);
        value.as_bool().ok_or_else(bad)
    }

    pub fn object(&mut self, name: &str) -> Result<Fields, String> {
        let value = self.take(name)?;
        Fields::of(&format!("{}.{name}", self.what), value)
    }

    fn list(&mut self, name: &str) -> Result<Vec<Value>, String> {
        match self.take(name)? {
            Value::Array(list) => Ok(list),
            other => Err(format!(
                "{}.{name}: a list expected, got {other}",
                self.what
            )),
        }
    }

    pub fn objects(&mut self, name: &str) -> Result<Vec<Fields>, String> {
        let what = format!("{}.{name}", self.what);
        self.list(name)?
            .into_iter()
            .map(|v| Fields::of(&what, v))
            .collect()
    }

    /// A list of numbers.
    pub fn all_nums(&mut self, name: &str) -> Result<Vec<u64>, String> {
        let list = self.list(name)?;
        let bad = || format!("{}.{name}: numbers expected", self.what);
        let numbers: Option<Vec<u64>> = list.iter().map(number).collect();
        numbers.ok_or_else(bad)
    }

    /// A list of exactly `N` numbers.
    pub fn nums<const N: usize>(&mut self, name: &str) -> Result<[u64; N], String> {
        let list = self.list(name)?;
        let bad = || format!("{}.{name}: {N} numbers expected", self.what);
        let numbers: Option<Vec<u64>> = list.iter().map(number).collect();
        numbers.and_then(|n| n.try_into().ok()).ok_or_else(bad)
    }

    /// All fields are taken now.
    pub fn end(self) -> Result<(), String> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("{}: unknown field {name}", self.what)),
        }
    }
}

fn number(v: &Value) -> Option<u64> {
    match v {
        Value::String(s) => u64::from_str_radix(s.strip_prefix("0x")?, 16).ok(),
        Value::Number(n) => n.as_u64(),
        _ => None,
    }
}
