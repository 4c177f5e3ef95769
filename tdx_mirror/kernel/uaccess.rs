// SPDX-License-Identifier: GPL-2.0

//! What userspace writes to a file.

use kernel::prelude::*;

/// The decimal number that was written to a file, with or without a line's end.
///
/// # Errors
///
/// `EINVAL`: it is none, or too long.
pub(crate) fn number(text: &[u8]) -> Result<usize> {
    if text.len() > 12 {
        return Err(EINVAL);
    }
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
