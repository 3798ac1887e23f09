//! Brings a cloud-controller up in this process.

use std::{net::SocketAddr, sync::Arc};

use mallee_aws::paging::TokenKey;
use mallee_service::{Clock, Faults, Server, pki::Ca, process::About, seal::SealingKey, server};
use mallee_store::Store;
use mallee_tiers::TierError;

use crate::{
    Cloud, Config, Pokes, admin, bundling::Bundling, front::Front, identity_document::IdentityKey, join,
    keyring::Keyring, schema, zone::Tiers,
};

/// A cloud-controller that answers.
pub struct Running {
    pub addresses: Vec<SocketAddr>,
    pub cloud: Arc<Cloud>,
}

/// Starts everything; it runs until the runtime ends. Port 0 in `listen` asks for a free one.
pub async fn start(mut config: Config, clock: Clock) -> Result<Running, TierError> {
    let failed = |e: &dyn std::fmt::Display| TierError::internal(e.to_string());
    let state = config.daemon.state.clone();
    std::fs::create_dir_all(&state).map_err(|e| failed(&e))?;
    let store_config = config.daemon.store_config();
    let store = tokio::task::spawn_blocking(move || Store::open(&store_config, schema::MIGRATIONS))
        .await
        .map_err(|e| failed(&e))?
        .map_err(|e| failed(&e))?;
    let ca = Ca::open_or_create(&state.join("ca"), &config.region).map_err(|e| failed(&e))?;
    let sealing = SealingKey::open_or_create(&state.join("sealing.key")).map_err(|e| failed(&e))?;
    let token_key = SealingKey::open_or_create(&state.join("token.key")).map_err(|e| failed(&e))?;
    let bundling = Bundling::open_or_create(&state).map_err(|e| failed(&e))?;
    let identity_key = IdentityKey::open_or_create(&state).map_err(|e| failed(&e))?;
    let identity = join::own_identity(&config, &ca)?;
    let server = Server::bind(&config.daemon.listen, Some(&identity)).await.map_err(|e| failed(&e))?;
    let addresses = server.addresses();
    if config.daemon.announce.is_none() {
        config.daemon.announce = addresses.first().map(ToString::to_string);
    }
    let faults = Faults::new(clock.clone());
    let about = About::new(
        identity.peer().map_err(|e| failed(&e))?,
        env!("CARGO_PKG_VERSION"),
        config.daemon.announced(),
        clock.clone(),
        faults.clone(),
    );
    let cloud = Arc::new(Cloud {
        config,
        store,
        clock,
        faults,
        pokes: Pokes::default(),
        token_key: TokenKey::new(token_key.derive("paging tokens")),
        sealing,
        keyring: Keyring::default(),
        ca,
        bundling,
        identity_key,
        tiers: Tiers::new(identity.clone()),
        about,
        identities_changed: tokio::sync::watch::channel(0).0,
    });
    crate::zone::drive(&cloud);
    crate::network::drive(&cloud);
    crate::ec2::image::drive(&cloud);
    crate::ec2::import::drive(&cloud);
    crate::ec2::snapshot::drive(&cloud);
    crate::ec2::snapshot::together::drive(&cloud);
    crate::ec2::snapshot::direct::drive(&cloud);
    server::serve_admin(&cloud.config.daemon.admin_socket(), Arc::new(admin::Front::new(cloud.clone())))
        .map_err(|e| failed(&e))?;
    server.serve(Arc::new(Front::new(cloud.clone())));
    Ok(Running { addresses, cloud })
}
