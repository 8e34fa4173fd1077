//! In place of the gateway: all that an upload takes from it.

use std::sync::Arc;

use crate::{blobs::Blobs, limits::Memory};

pub struct App {
    pub blobs: Arc<dyn Blobs>,
    pub memory: Memory,
}
