//! Reads what the bodies of a zone's instances are made of: a few of them one by one, many of them in bulk.

use std::collections::{BTreeMap, BTreeSet};

use mallee_aws::id::InstanceId;
use mallee_store::Tx;

use super::{
    row::{self, Instance},
    wanted::{self, Blocks, Parts},
};
use crate::{
    Cloud, Outcome,
    ec2::{
        flow_log,
        image::{self, Image},
        interface::{self, InterfaceRow, Phase},
        subnet, tag,
        volume::{self, Attachment, Volume},
        vpc,
    },
};

/// Up to this many are read one by one.
const FEW: usize = 24;

/// A body, or what is missing for one.
pub type Body = Result<mallee_tiers::Instance, String>;

/// The bodies of these instances of a zone, by id. One that ended meanwhile is left out.
pub fn render(tx: &mut Tx<'_>, cloud: &Cloud, zone: &str, ids: &BTreeSet<String>) -> Outcome<Vec<(String, Body)>> {
    let mut world = if ids.len() <= FEW { World::of_few(tx, ids)? } else { World::of_zone(tx, zone, ids)? };
    let mut bodies = Vec::with_capacity(world.instances.len());
    for instance in std::mem::take(&mut world.instances) {
        bodies.push((instance.id.to_string(), world.body(tx, cloud, &instance)?));
    }
    Ok(bodies)
}

/// Everything that was read.
struct World {
    instances: Vec<Instance>,
    images: BTreeMap<String, Image>,
    interfaces: BTreeMap<InstanceId, Vec<InterfaceRow>>,
    user_data: BTreeMap<String, String>,
    volumes: BTreeMap<String, Vec<(Attachment, Volume)>>,
    subnets: BTreeMap<String, String>,
    vpcs: BTreeMap<String, Vec<String>>,
    subnets_ipv6: BTreeMap<String, String>,
    vpcs_ipv6: BTreeMap<String, String>,
    flow_logs: flow_log::Logs,
}

impl World {
    fn of_few(tx: &mut Tx<'_>, ids: &BTreeSet<String>) -> Outcome<Self> {
        let mut world = Self::without_instances(tx)?;
        for id in ids {
            let Some(instance) = row::any(tx, id)?.filter(|i| !i.is_ended()) else { continue };
            for image in
                [Some(&instance.image), instance.kernel.as_ref(), instance.ramdisk.as_ref()].into_iter().flatten()
            {
                if !world.images.contains_key(image) {
                    world.images.extend(image::any(tx, image)?.map(|found| (image.clone(), found)));
                }
            }
            world.interfaces.insert(instance.id.clone(), interface::of_instance(tx, &instance.id)?);
            world.user_data.extend(row::user_data(tx, id)?.map(|data| (id.clone(), data)));
            for attachment in volume::attachments_at(tx, id)? {
                let volume = volume::any(tx, attachment.volume.as_str())?;
                world.volumes.entry(id.clone()).or_default().extend(volume.map(|v| (attachment, v)));
            }
            world.instances.push(instance);
        }
        Ok(world)
    }

    fn of_zone(tx: &mut Tx<'_>, zone: &str, ids: &BTreeSet<String>) -> Outcome<Self> {
        let mut world = Self::without_instances(tx)?;
        world.instances = row::wanted_in(tx, zone)?;
        world.instances.retain(|i| ids.contains(i.id.as_str()));
        world.images = image::launchable(tx)?;
        world.interfaces = interface::of_instances(tx, None)?;
        world.user_data = row::user_data_in(tx, zone)?.into_iter().collect();
        let volumes: BTreeMap<_, _> = volume::in_zone(tx, zone)?.into_iter().map(|v| (v.id.clone(), v)).collect();
        for attachment in volume::attachments_in(tx, zone)? {
            let Some(volume) = volumes.get(&attachment.volume) else { continue };
            let its = world.volumes.entry(attachment.instance.to_string()).or_default();
            its.push((attachment, volume.clone()));
        }
        Ok(world)
    }

    fn without_instances(tx: &mut Tx<'_>) -> Outcome<Self> {
        let (subnets, vpcs) = (subnet::all(tx, None)?, vpc::all(tx, None)?);
        Ok(Self {
            instances: Vec::new(),
            images: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            user_data: BTreeMap::new(),
            volumes: BTreeMap::new(),
            subnets: subnets.iter().map(|s| (s.id.to_string(), s.cidr.to_string())).collect(),
            vpcs: vpcs.iter().map(|v| (v.id.to_string(), v.blocks().map(|b| b.to_string()).collect())).collect(),
            subnets_ipv6: subnets.into_iter().filter_map(|s| Some((s.id.to_string(), s.ipv6?.1.to_string()))).collect(),
            flow_logs: flow_log::Logs::read(tx)?,
            vpcs_ipv6: vpcs.into_iter().filter_map(|v| Some((v.id.to_string(), v.ipv6?.1.to_string()))).collect(),
        })
    }

    fn body(&mut self, tx: &mut Tx<'_>, cloud: &Cloud, instance: &Instance) -> Outcome<Body> {
        let id = instance.id.as_str();
        let tags = if instance.options.metadata.tags { tag::of(tx, id)? } else { Vec::new() };
        let image = |id: &String| self.images.get(id).ok_or_else(|| format!("image {id} is not known any more"));
        let companions = || -> Result<_, String> {
            Ok((
                image(&instance.image)?,
                instance.kernel.as_ref().map(image).transpose()?,
                instance.ramdisk.as_ref().map(image).transpose()?,
            ))
        };
        let (root, kernel, ramdisk) = match companions() {
            Ok(found) => found,
            Err(missing) => return Ok(Err(missing)),
        };
        // What the guest shall let go of is in its body no more.
        let mut interfaces = self.interfaces.remove(&instance.id).unwrap_or_default();
        interfaces.retain(|i| i.phase != Phase::Detaching);
        let parts = Parts {
            region: cloud.region(),
            identity: &cloud.identity_key,
            image: root,
            kernel,
            ramdisk,
            interfaces: &interfaces,
            blocks: Blocks {
                subnets: interfaces
                    .iter()
                    .filter_map(|i| Some((i.subnet.to_string(), self.subnets.get(i.subnet.as_str())?.clone())))
                    .collect(),
                vpc: self.vpcs.get(&instance.vpc).cloned().unwrap_or_default(),
                subnets_ipv6: interfaces
                    .iter()
                    .filter_map(|i| Some((i.subnet.to_string(), self.subnets_ipv6.get(i.subnet.as_str())?.clone())))
                    .collect(),
                vpc_ipv6: self.vpcs_ipv6.get(&instance.vpc).cloned(),
            },
            flow_logs: &self.flow_logs,
            user_data: self.user_data.remove(id),
            volumes: self.volumes.remove(id).unwrap_or_default(),
            tags,
        };
        Ok(wanted::body(instance, &parts))
    }
}
