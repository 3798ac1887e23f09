//! What the person at the machine asks, over the root-only admin socket.

use std::sync::Arc;

use http::{Request, Response};
use mallee_service::{Body, Connection, Handler, tiers::TierOnly};
use mallee_store::Error as StoreError;
use mallee_tiers::{
    AccountAllow, AccountAsked, AccountCreate, AccountKeys, AccountRow, Accounts, Admin, AdminServer, CertificateAdd,
    CloudStatus, Done, NetworkAsked, NetworkTree, NodeAsked, NodeWish, Peer, Role, Secret, StatusAsked, TierError,
    TierRow, Token, TokenAsked, TraceAsked, TracePlan, WhyAnswer, WhyAsked, ZoneAsked, ZoneNode,
};

use crate::{
    Cloud, account, allowance, ec2, join,
    zone::{self, registry},
};

/// Serves [`Admin`] and nothing else.
pub struct Front(TierOnly<AdminServer<Operator>>);

impl Front {
    pub fn new(cloud: Arc<Cloud>) -> Self {
        Self(TierOnly(Arc::new(AdminServer(Arc::new(Operator { cloud })))))
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request<hyper::body::Incoming>, connection: Connection) -> Response<Body> {
        self.0.handle(request, connection).await
    }
}

pub struct Operator {
    cloud: Arc<Cloud>,
}

fn no_account(name: &str) -> TierError {
    TierError::not_found(format!("no account {name:?}: `mallee account list` shows them"))
}

fn internal(e: StoreError) -> TierError {
    TierError::internal(e.to_string())
}

impl Operator {
    async fn keys_of(&self, name: &str) -> Result<AccountKeys, TierError> {
        let wanted = name.to_owned();
        let found = self
            .cloud
            .store
            .read("read an account's keys", move |tx| {
                let Some(account) = account::by_name(tx, &wanted)? else { return Ok::<_, StoreError>(None) };
                let key = account::first_key(tx, &account.id)?;
                let certificates = account::certificates(tx, &account.id)?.len() as u32;
                Ok(Some((account, key, certificates)))
            })
            .await
            .map_err(internal)?;
        let (account, key, signing_certificates) = found.ok_or_else(|| no_account(name))?;
        let (access_key, sealed) =
            key.ok_or_else(|| TierError::not_found(format!("account {name:?} has no active key")))?;
        let secret = self.cloud.sealing.open(&access_key, &sealed).map_err(|e| TierError::internal(e.to_string()))?;
        Ok(AccountKeys {
            account: account.id,
            name: account.name,
            access_key,
            secret: Secret(String::from_utf8_lossy(&secret).into_owned()),
            cloud_certificate_pem: self.cloud.bundling.certificate_pem().to_owned(),
            ca_pem: self.cloud.ca.certificate_pem.clone(),
            region: self.cloud.region().to_owned(),
            signing_certificates,
        })
    }

    /// A registered tier, asked how it is.
    async fn tier_row(&self, at: registry::Registered) -> (TierRow, Vec<ZoneNode>, Vec<String>) {
        let (store, tiers) = (&self.cloud.store, &self.cloud.tiers);
        let ask = StatusAsked::default();
        let (mut nodes, mut orphans) = (Vec::new(), Vec::new());
        let status = match at.role {
            Role::ClusterController => match tiers.cluster(store, &at.zone).await {
                Ok(client) => client.status(&ask).await.map(|zone| {
                    nodes = zone.nodes.into_iter().map(|node| ZoneNode { zone: at.zone.clone(), node }).collect();
                    orphans = zone.orphans;
                    zone.tier
                }),
                Err(e) => Err(e),
            },
            Role::StorageController => match tiers.storage(store, &at.zone).await {
                Ok(client) => client.status(&ask).await,
                Err(e) => Err(e),
            },
            Role::Walrus => match tiers.walrus(store).await {
                Ok(client) => client.status(&ask).await,
                Err(e) => Err(e),
            },
            other => Err(TierError::refused(format!("{other} does not register"))),
        };
        let (status, trouble) = match status {
            Ok(status) => (Some(status), String::new()),
            Err(e) => (None, e.message),
        };
        let row = TierRow { role: at.role, zone: at.zone, name: at.name, address: at.address, status, trouble };
        (row, nodes, orphans)
    }
}

#[async_trait::async_trait]
impl Admin for Operator {
    async fn account_create(&self, _: &Peer, asked: AccountCreate) -> Result<AccountKeys, TierError> {
        let (name, now) = (asked.name.clone(), self.cloud.now());
        let new = account::New::named(&name, &self.cloud.sealing, now)?;
        let config = self.cloud.config.clone();
        let made = self
            .cloud
            .store
            .write("create an account", move |tx| {
                if account::by_name(tx, &new.account.name)?.is_some() {
                    return Ok::<_, crate::Refusal>(false);
                }
                new.insert(tx)?;
                crate::network::create_default_vpc(tx, &config, &new.account.id, now)?;
                Ok(true)
            })
            .await
            .map_err(|e| TierError::internal(e.cause.unwrap_or(e.answer.message)))?;
        if !made && !asked.ensure {
            return Err(TierError::refused(format!("account {name:?} is there already")));
        }
        if made {
            self.cloud.identities_have_changed();
            self.cloud.pokes.network.poke();
        }
        self.keys_of(&name).await
    }

    async fn account_list(&self, _: &Peer, _: StatusAsked) -> Result<Accounts, TierError> {
        let accounts = self
            .cloud
            .store
            .read("list the accounts", |tx| {
                let mut rows = Vec::new();
                for account in account::all(tx)? {
                    let instances = ec2::instance::count(tx, &account.id)?;
                    let allowed = allowance::of(tx, &account.id)?;
                    rows.push(AccountRow {
                        account: account.id,
                        name: account.name,
                        created: account.created,
                        instances,
                        allowed,
                    });
                }
                Ok::<_, StoreError>(rows)
            })
            .await
            .map_err(internal)?;
        Ok(Accounts { accounts })
    }

    async fn account_allow(&self, _: &Peer, asked: AccountAllow) -> Result<Done, TierError> {
        let what: allowance::Allowance = asked.what.parse()?;
        let name = asked.name.clone();
        let found = self
            .cloud
            .store
            .write("allow an account something", move |tx| {
                let Some(account) = account::by_name(tx, &name)? else { return Ok::<_, StoreError>(false) };
                allowance::set(tx, &account.id, what, asked.allowed)?;
                Ok(true)
            })
            .await
            .map_err(internal)?;
        if found { Ok(Done {}) } else { Err(no_account(&asked.name)) }
    }

    async fn account_keys(&self, _: &Peer, asked: AccountAsked) -> Result<AccountKeys, TierError> {
        self.keys_of(&asked.name).await
    }

    async fn certificate_add(&self, _: &Peer, asked: CertificateAdd) -> Result<Done, TierError> {
        let bad = |e: openssl::error::ErrorStack| TierError::refused(format!("this is no X.509 certificate: {e}"));
        let certificate = openssl::x509::X509::from_pem(asked.pem.as_bytes()).map_err(bad)?;
        if certificate.public_key().and_then(|k| k.rsa()).is_err() {
            return Err(TierError::refused(
                "image bundles are signed with RSA: this certificate has another kind of key",
            ));
        }
        let fingerprint =
            mallee_service::pki::fingerprint(&asked.pem).map_err(|e| TierError::refused(e.to_string()))?;
        let now = self.cloud.now();
        let (name, pem) = (asked.account.clone(), asked.pem.clone());
        let found = self
            .cloud
            .store
            .write("register a signing certificate", move |tx| {
                let Some(account) = account::by_name(tx, &name)? else { return Ok::<_, StoreError>(false) };
                account::add_certificate(tx, &account.id, &fingerprint, &pem, now)?;
                Ok(true)
            })
            .await
            .map_err(internal)?;
        if found { Ok(Done {}) } else { Err(no_account(&asked.account)) }
    }

    async fn join_token(&self, _: &Peer, asked: TokenAsked) -> Result<Token, TierError> {
        let admit = (asked.role == Role::NodeController).then(|| (asked.zone.clone(), asked.name.clone()));
        let (token, expires) =
            join::issue(&self.cloud, Peer::new(asked.role, asked.zone, asked.name), asked.seconds).await?;
        if let Some((zone, node)) = admit {
            self.admit(&zone, node).await;
        }
        Ok(Token { token, expires })
    }

    async fn status(&self, _: &Peer, _: StatusAsked) -> Result<CloudStatus, TierError> {
        let (registered, instances_by_state, mut orphans) = self
            .cloud
            .store
            .read("read the status", |tx| {
                Ok::<_, StoreError>((registry::all(tx)?, ec2::instance::count_by_state(tx)?, zone::orphans(tx)?))
            })
            .await
            .map_err(internal)?;
        let own = self.cloud.about.status();
        let mut tiers = vec![TierRow {
            role: own.role,
            zone: String::new(),
            name: own.name.clone(),
            address: own.address.clone(),
            status: Some(own),
            trouble: String::new(),
        }];
        let mut nodes = Vec::new();
        for (row, its_nodes, its_orphans) in
            futures_util::future::join_all(registered.into_iter().map(|r| self.tier_row(r))).await
        {
            tiers.push(row);
            nodes.extend(its_nodes);
            orphans.extend(its_orphans);
        }
        orphans.sort();
        orphans.dedup();
        Ok(CloudStatus { region: self.cloud.region().to_owned(), tiers, nodes, orphans, instances_by_state })
    }

    async fn why(&self, _: &Peer, asked: WhyAsked) -> Result<WhyAnswer, TierError> {
        zone::why(&self.cloud, &asked.id).await
    }

    async fn network(&self, _: &Peer, asked: NetworkAsked) -> Result<NetworkTree, TierError> {
        let wanted = crate::network::read(&self.cloud).await.map_err(TierError::internal)?;
        let mut tree = crate::network::tree(&wanted);
        if let Some(id) = &asked.vpc {
            tree.vpcs.retain(|vpc| vpc.id == *id);
            if tree.vpcs.is_empty() {
                return Err(TierError::not_found(format!("no VPC {id}: `mallee net show` shows them")));
            }
        }
        Ok(tree)
    }

    async fn trace(&self, _: &Peer, asked: TraceAsked) -> Result<TracePlan, TierError> {
        let wanted = crate::network::read(&self.cloud).await.map_err(TierError::internal)?;
        let outside = crate::network::render::Outside::of(&self.cloud.config.network)
            .map_err(|e| TierError::internal(e.answer.message))?;
        crate::network::trace(&wanted, &outside, &asked).map_err(TierError::refused)
    }

    async fn change_node(&self, _: &Peer, asked: NodeAsked) -> Result<Done, TierError> {
        let zone = self.zone_of_node(&asked.node).await?;
        self.cloud.tiers.cluster(&self.cloud.store, &zone).await?.change_node(&asked).await
    }

    async fn zone_adopt(&self, _: &Peer, asked: ZoneAsked) -> Result<Done, TierError> {
        let adopt = mallee_tiers::Adopt { sender: self.cloud.store.incarnation() };
        self.cloud.tiers.cluster(&self.cloud.store, &asked.zone).await?.adopt(&adopt).await?;
        self.cloud.tiers.storage(&self.cloud.store, &asked.zone).await?.adopt(&adopt).await?;
        crate::network::adopt(&self.cloud.config, &self.cloud.store).await.map_err(TierError::internal)?;
        self.cloud.pokes.all();
        Ok(Done {})
    }
}
impl Operator {
    /// A token lets a node in that was removed before. A zone that has no controller yet has removed none.
    async fn admit(&self, zone: &str, node: String) {
        let asked = NodeAsked { node, wish: NodeWish::Admit };
        let Ok(cluster) = self.cloud.tiers.cluster(&self.cloud.store, zone).await else { return };
        if let Err(e) = cluster.change_node(&asked).await {
            tracing::warn!(node = asked.node, zone, error = %e, "the zone was not told that the node may come back");
        }
    }

    async fn zone_of_node(&self, name: &str) -> Result<String, TierError> {
        let status = self.status(&Peer::operator(), StatusAsked::default()).await?;
        let zones: Vec<String> =
            status.nodes.into_iter().filter(|row| row.node.node == name).map(|row| row.zone).collect();
        match zones.as_slice() {
            [zone] => Ok(zone.clone()),
            [] => Err(TierError::not_found(format!("no node {name} is in any zone that answers"))),
            several => Err(TierError::refused(format!("there is a node {name} in {}", several.join(" and in ")))),
        }
    }
}
