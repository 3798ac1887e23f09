//! What a volume may be asked for, as EC2 says for its type: its node holds it to this.
//!
//! Magnetic and throughput-optimized types (`standard`, `st1`, `sc1`) are as fast as the disk below them: EC2 promises
//! figures for them that depend on what was asked before, and none of them is a floor.

use mallee_tiers::DiskLimits;

use super::Volume;

/// gp2 may have this for half an hour after it was idle.
const GP2_BURST: u32 = 3_000;

impl Volume {
    /// From "Amazon EBS volume types" of the EC2 user guide.
    pub fn limits(&self) -> DiskLimits {
        let burst_iops = (self.kind == "gp2").then_some(GP2_BURST);
        let throughput_mib = match self.kind.as_str() {
            "gp3" => self.throughput,
            // The figure of larger ones; up to 170 GiB it is half of this, while there are no credits.
            "gp2" => Some(250),
            "io1" => Some(1_000),
            "io2" => Some(4_000),
            _ => None,
        };
        DiskLimits { iops: self.iops, burst_iops, throughput_mib }
    }
}
