//! More bytes for a volume, also while a guest writes to it.

use mallee_tiers::Volume;

use crate::{
    Storage,
    volume::{GIB, State, Trouble, VolumeId},
};

impl Storage {
    /// Gives a volume more bytes, while it is served too: the daemon's export is made anew under its name, and the guest's
    /// QEMU, which comes back to it, is told the new size.
    pub(crate) async fn grow(&self, id: &VolumeId, wish: &Volume) -> Result<(), Trouble> {
        let (_, export) = self.rows(id.as_str()).await?;
        let size = wish.size_gib.saturating_mul(GIB);
        match export {
            None => {
                let grown = id.clone();
                self.backend(move |b| b.grow(&grown, size)).await?;
            }
            Some(export) => {
                self.exports.grow(id, &export.name, &export.attachment, size).await?;
                // A freeze that was interrupted left an empty layer for the daemon's next start: it must not be smaller.
                let (active, grown) = (self.active_layer(id).await?, id.clone());
                self.backend(move |b| if b.top(&grown)? > active { b.grow(&grown, size) } else { Ok(()) }).await?;
            }
        }
        self.write_state(id, wish.size_gib, State::Ready, String::new()).await?;
        Ok(())
    }
}
