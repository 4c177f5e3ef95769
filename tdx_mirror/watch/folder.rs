// SPDX-License-Identifier: GPL-2.0

//! Folders in debugfs, and what `files.c` asks about the files in them.

use core::{
    cell::UnsafeCell,
    ptr::NonNull, //
};
use kernel::{
    ffi::{
        c_char,
        c_int,
        c_long,
        c_longlong,
        c_ulong,
        c_void, //
    },
    prelude::*,
    seq_file::SeqFile,
    str::CStr,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use super::cursor::{
    Cursor,
    Node, //
};
use super::record;
use crate::bindings;

/// A folder in debugfs, which goes with all that is in it when this is dropped. Without debugfs
/// there is none, and nothing in it.
pub(crate) struct Folder(*mut c_void);

// SAFETY: debugfs has locks of its own.
unsafe impl Send for Folder {}
// SAFETY: As above.
unsafe impl Sync for Folder {}

impl Folder {
    /// The folder `name` in `parent`, or at the top. Sleeps.
    pub(crate) fn new(name: &CStr, parent: Option<&Self>) -> Self {
        let parent = parent.map_or(core::ptr::null_mut(), |parent| parent.0);
        // SAFETY: The name ends with NUL, and the parent is what debugfs answered for a folder.
        Self(unsafe { bindings::tdx_mirror_files_folder(name.as_char_ptr(), parent) })
    }

    /// Makes a file that is about `node`. Sleeps.
    ///
    /// # Safety
    ///
    /// `node` stays where it is until this folder is dropped.
    pub(crate) unsafe fn text(&self, name: &CStr, mode: u16, node: &Node) {
        let node = core::ptr::from_ref(node).cast_mut().cast();
        // SAFETY: As in `new()`. Nobody writes to the node, which stays by the safety requirements.
        unsafe { bindings::tdx_mirror_files_text(name.as_char_ptr(), mode, self.0, node) };
    }

    /// Makes the file of the recording. Sleeps.
    pub(crate) fn record(&self, name: &CStr) {
        // SAFETY: As in `new()`.
        unsafe { bindings::tdx_mirror_files_record(name.as_char_ptr(), self.0) };
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // SAFETY: It is what debugfs answered, and not removed before.
        unsafe { bindings::tdx_mirror_files_remove(self.0) };
    }
}

fn errno(result: Result<bool>) -> c_int {
    result.map_or_else(Error::to_errno, c_int::from)
}

fn count(result: Result<usize>) -> c_long {
    match result {
        Ok(count) => c_long::try_from(count).unwrap_or(c_long::MAX),
        Err(error) => error.to_errno() as c_long,
    }
}

/// A file that is open. What is written to it does not wait for its reader.
struct Open {
    node: Node,
    /// The reader's alone, of which a seq_file has one at a time.
    cursor: UnsafeCell<Cursor>,
}

/// The node of a file that is open.
///
/// # Safety
///
/// `open` came from [`tdx_mirror_text_open()`] and is not closed during `'a`.
unsafe fn node_of<'a>(open: *mut c_void) -> &'a Node {
    // SAFETY: By the safety requirements; the cursor is no part of what is referred to.
    unsafe { &(*open.cast::<Open>()).node }
}

/// The cursor of a file that is open.
///
/// # Safety
///
/// `open` came from [`tdx_mirror_text_open()`], is not closed during `'a`, and the caller has the
/// lock of its seq_file.
unsafe fn cursor_of<'a>(open: *mut c_void) -> &'a mut Cursor {
    // SAFETY: By the safety requirements.
    unsafe { &mut *(*open.cast::<Open>()).cursor.get() }
}

fn open(node: &Node) -> Result<*mut c_void> {
    let open = Open {
        node: node.clone(),
        cursor: UnsafeCell::new(Cursor::new(node.clone())),
    };
    Ok(KBox::into_raw(KBox::new(open, GFP_KERNEL_ACCOUNT)?).cast())
}

/// Opens a file.
///
/// # Safety
///
/// `node` is one that [`Folder::text()`] was given, whose folder is there, and `cursor` may be
/// written.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_open(node: *mut c_void, cursor: *mut *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    match open(unsafe { &*node.cast::<Node>() }) {
        Ok(made) => {
            // SAFETY: By the safety requirements.
            unsafe { cursor.write(made) };
            0
        }
        Err(error) => error.to_errno(),
    }
}

/// Closes a file.
///
/// # Safety
///
/// `cursor` came from [`tdx_mirror_text_open()`] and is used by nobody any more.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_close(cursor: *mut c_void) {
    // SAFETY: By the safety requirements.
    drop(unsafe { KBox::from_raw(cursor.cast::<Open>()) });
}

/// Whether a file may be read; 0 or an errno.
///
/// # Safety
///
/// `cursor` came from [`tdx_mirror_text_open()`] and is not closed.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_ready(cursor: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    errno(unsafe { node_of(cursor) }.is_ready().map(|()| false))
}

/// Begins to read at a row.
///
/// # Safety
///
/// As of [`cursor_of()`].
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_start(cursor: *mut c_void, index: u64) -> c_int {
    // SAFETY: `seq_operations` are called with the lock of the seq_file.
    errno(unsafe { cursor_of(cursor) }.start(index))
}

/// Goes on to a row.
///
/// # Safety
///
/// As of [`cursor_of()`].
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_next(cursor: *mut c_void, index: u64) -> c_int {
    // SAFETY: As in `tdx_mirror_text_start()`.
    errno(unsafe { cursor_of(cursor) }.next(index))
}

/// Shows the row.
///
/// # Safety
///
/// As of [`cursor_of()`]; `seq_file` is the one that the reader has.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_show(cursor: *mut c_void, seq_file: *mut c_void) {
    // SAFETY: By the safety requirements.
    let to = unsafe { SeqFile::from_raw(seq_file.cast()) };
    // SAFETY: As in `tdx_mirror_text_start()`.
    unsafe { cursor_of(cursor) }.show(to);
}

/// Ends what was begun.
///
/// # Safety
///
/// As of [`cursor_of()`].
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_stop(cursor: *mut c_void) {
    // SAFETY: As in `tdx_mirror_text_start()`.
    unsafe { cursor_of(cursor) }.stop();
}

/// Takes what was written to a file; 0 or an errno.
///
/// # Safety
///
/// As of [`tdx_mirror_text_ready()`]; `text` is `len` bytes long.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_text_write(
    cursor: *mut c_void,
    text: *const c_char,
    len: c_ulong,
) -> c_int {
    // SAFETY: By the safety requirements.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), len) };
    // SAFETY: As above.
    let stored = unsafe { node_of(cursor) }.store(text);
    errno(stored.map(|()| false))
}

/// Reads the recording from an offset on.
///
/// # Safety
///
/// `offset` is NULL or the caller's alone.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_record_read(
    user: *mut c_void,
    len: c_ulong,
    offset: *mut c_longlong,
) -> c_long {
    let Some(mut offset) = NonNull::new(offset) else {
        return EINVAL.to_errno() as c_long;
    };
    // SAFETY: By the safety requirements.
    let offset = unsafe { offset.as_mut() };
    let mut writer = UserSlice::new(UserPtr::from_ptr(user), len).writer();
    count(record::read(&mut writer, offset))
}

/// Controls the recording; 0 or an errno.
///
/// # Safety
///
/// `text` is `len` bytes long.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_record_write(text: *const c_char, len: c_ulong) -> c_int {
    // SAFETY: By the safety requirements.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), len) };
    errno(record::write(text).map(|()| false))
}
