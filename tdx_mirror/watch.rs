// SPDX-License-Identifier: GPL-2.0

//! What an operator sees of the module: figures, files in debugfs, recordings, tracepoints.

mod access;
mod cursor;
pub(crate) mod debugfs;
pub(crate) mod figures;
mod folder;
pub(crate) mod record;
pub(crate) mod registry;
mod rows;
pub(crate) mod stats;
pub(crate) mod td_files;
pub(crate) mod trace;
