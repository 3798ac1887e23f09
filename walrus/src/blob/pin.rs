//! Which contents are being read: the sweep leaves them alone. A reader of many parts opens them one after the other, and
//! must find the last one too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::BlobId;

#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<HashMap<BlobId, usize>>>);

impl Pins {
    pub fn pin(&self, id: &BlobId) -> Pin {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_default() += 1;
        Pin { pins: self.clone(), id: id.clone() }
    }
    pub fn holds(&self, id: &BlobId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }
}

/// Held while the content is read.
pub struct Pin {
    pins: Pins,
    id: BlobId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.id);
            }
        }
    }
}
