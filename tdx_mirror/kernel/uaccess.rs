// SPDX-License-Identifier: GPL-2.0

//! What userspace writes to a file.

use kernel::{
    prelude::*,
    uaccess::UserSliceReader, //
};

/// The decimal number that was written to a file, with or without a line's end.
pub(crate) fn number(reader: &mut UserSliceReader) -> Result<usize> {
    let mut text = [0; 12];
    let text = text.get_mut(..reader.len()).ok_or(EINVAL)?;
    reader.read_slice(text)?;
    let digits = text.trim_ascii();
    if digits.is_empty() {
        return Err(EINVAL);
    }
    digits.iter().try_fold(0usize, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(EINVAL);
        }
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(usize::from(digit)))
            .ok_or(EINVAL)
    })
}
