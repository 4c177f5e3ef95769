// SPDX-License-Identifier: GPL-2.0

//! mmu_lock: a read-write lock that its holder can let go of for a moment.

use std::sync::{Condvar, Mutex};

#[derive(Default, Debug)]
struct State {
    readers: u32,
    writer: bool,
    /// Writers that wait; no new reader comes before them.
    waiting: u32,
    /// Readers that wait.
    blocked: u32,
}

/// A read-write lock without guards, because a zap lets go of it in the middle.
#[derive(Default, Debug)]
pub struct MmuLock {
    state: Mutex<State>,
    changed: Condvar,
}

impl MmuLock {
    fn wait_while(&self, busy: impl Fn(&State) -> bool) -> std::sync::MutexGuard<'_, State> {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        self.changed
            .wait_while(state, |s| busy(s))
            .unwrap_or_else(|e| e.into_inner())
    }

    pub fn lock_read(&self) {
        self.wait_while(|_| false).blocked += 1;
        let mut s = self.wait_while(|s| s.writer || s.waiting > 0);
        s.blocked -= 1;
        s.readers += 1;
    }

    pub fn unlock_read(&self) {
        let mut s = self.wait_while(|_| false);
        s.readers -= 1;
        if s.readers == 0 {
            self.changed.notify_all();
        }
    }

    pub fn lock_write(&self) {
        self.wait_while(|_| false).waiting += 1;
        let mut s = self.wait_while(|s| s.writer || s.readers > 0);
        s.waiting -= 1;
        s.writer = true;
    }

    pub fn unlock_write(&self) {
        self.wait_while(|_| false).writer = false;
        self.changed.notify_all();
    }

    /// Whether somebody waits for the lock.
    pub fn is_wanted(&self) -> bool {
        let s = self.wait_while(|_| false);
        s.waiting > 0 || s.blocked > 0
    }
}
