//! The cloud-controller's admin socket on this machine.

use std::sync::Arc;

use mallee_service::tiers::AdminSocket;
use mallee_tiers::AdminClient;

use crate::state::State;

pub fn client(state: &State) -> AdminClient {
    AdminClient::new(Arc::new(AdminSocket(state.admin_socket())))
}
