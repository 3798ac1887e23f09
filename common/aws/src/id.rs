//! The ids of EC2's things: a prefix and 17 lower-case hexadecimal digits, one type per kind.

use std::fmt;

/// Text that is no id of the kind wanted. It prints as `InvalidInstanceID.Malformed: Invalid id: "i-zz"`, and
/// [`crate::params::from_params`] turns that back into code and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: Invalid id: \"{text}\"")]
pub struct MalformedId {
    pub code: &'static str,
    pub text: String,
}

impl From<MalformedId> for crate::AwsError {
    fn from(error: MalformedId) -> Self {
        crate::AwsError::bad_request(error.code, format!("Invalid id: \"{}\"", error.text))
    }
}

/// `mallee_aws::id_type!(/// doc, InstanceId, "i-", "InvalidInstanceID.Malformed")` declares one more kind of id.
#[macro_export]
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $malformed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub const PREFIX: &'static str = $prefix;
            /// The code for text that is not such an id.
            pub const MALFORMED: &'static str = $malformed;

            /// Makes an id of nine random bytes; the caller brings the randomness.
            pub fn from_random(random: [u8; 9]) -> Self {
                $name($crate::id::render($prefix, random))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::id::MalformedId;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if $crate::id::is_shaped($prefix, text) {
                    Ok($name(text.to_string()))
                } else {
                    Err($crate::id::malformed($malformed, text))
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'de, str> as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}

id_type!(InstanceId, "i-", "InvalidInstanceID.Malformed");
id_type!(ReservationId, "r-", "InvalidReservationID.Malformed");
id_type!(MachineImageId, "ami-", "InvalidAMIID.Malformed");
id_type!(KernelImageId, "aki-", "InvalidAMIID.Malformed");
id_type!(RamdiskImageId, "ari-", "InvalidAMIID.Malformed");
id_type!(VolumeId, "vol-", "InvalidVolumeID.Malformed");
id_type!(SnapshotId, "snap-", "InvalidSnapshotID.Malformed");
id_type!(KeyPairId, "key-", "InvalidKeyPairID.Malformed");
id_type!(NetworkInterfaceId, "eni-", "InvalidNetworkInterfaceID.Malformed");
id_type!(InterfaceAttachmentId, "eni-attach-", "InvalidAttachmentID.Malformed");
id_type!(SecurityGroupId, "sg-", "InvalidGroupId.Malformed");
id_type!(SecurityGroupRuleId, "sgr-", "InvalidSecurityGroupRuleId.Malformed");
id_type!(SubnetId, "subnet-", "InvalidSubnetID.Malformed");
id_type!(VpcId, "vpc-", "InvalidVpcID.Malformed");
id_type!(InternetGatewayId, "igw-", "InvalidInternetGatewayID.Malformed");
id_type!(RouteTableId, "rtb-", "InvalidRouteTableID.Malformed");
id_type!(RouteTableAssociationId, "rtbassoc-", "InvalidAssociationID.Malformed");
id_type!(NetworkAclId, "acl-", "InvalidNetworkAclID.Malformed");
id_type!(NetworkAclAssociationId, "aclassoc-", "InvalidAssociationID.Malformed");
id_type!(DhcpOptionsId, "dopt-", "InvalidDhcpOptionsID.Malformed");
id_type!(AllocationId, "eipalloc-", "InvalidAllocationID.Malformed");
id_type!(AddressAssociationId, "eipassoc-", "InvalidAssociationID.Malformed");
id_type!(VpcCidrAssociationId, "vpc-cidr-assoc-", "InvalidVpcCidrBlockAssociationIDError.Malformed");
id_type!(NatGatewayId, "nat-", "NatGatewayMalformed");
id_type!(PrefixListId, "pl-", "InvalidPrefixListId.Malformed");
id_type!(EgressOnlyInternetGatewayId, "eigw-", "InvalidEgressOnlyInternetGatewayId.Malformed");
id_type!(SubnetCidrAssociationId, "subnet-cidr-assoc-", "InvalidSubnetCidrBlockAssociationID.Malformed");
id_type!(VpcEndpointId, "vpce-", "InvalidVpcEndpointId.Malformed");
id_type!(FlowLogId, "fl-", "InvalidFlowLogId.Malformed");
id_type!(VpcPeeringConnectionId, "pcx-", "InvalidVpcPeeringConnectionId.Malformed");

/// Any image: what `ImageId` may name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageId {
    Machine(MachineImageId),
    Kernel(KernelImageId),
    Ramdisk(RamdiskImageId),
}

impl ImageId {
    pub fn as_str(&self) -> &str {
        match self {
            ImageId::Machine(id) => id.as_str(),
            ImageId::Kernel(id) => id.as_str(),
            ImageId::Ramdisk(id) => id.as_str(),
        }
    }
}

impl std::str::FromStr for ImageId {
    type Err = MalformedId;
    fn from_str(text: &str) -> Result<Self, MalformedId> {
        match text.split_once('-').map(|(prefix, _)| prefix) {
            Some("aki") => text.parse().map(ImageId::Kernel),
            Some("ari") => text.parse().map(ImageId::Ramdisk),
            _ => text.parse().map(ImageId::Machine),
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for ImageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for ImageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// For [`id_type!`].
#[doc(hidden)]
pub fn render(prefix: &str, random: [u8; 9]) -> String {
    let digits = hex::encode(random);
    format!("{prefix}{}", &digits[..17])
}

/// For [`id_type!`].
#[doc(hidden)]
pub fn is_shaped(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|digits| digits.len() == 17 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// For [`id_type!`].
#[doc(hidden)]
pub fn malformed(code: &'static str, text: &str) -> MalformedId {
    MalformedId { code, text: text.chars().take(64).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_prefix_and_seventeen_digits() {
        let id = InstanceId::from_random([0xab; 9]);
        assert_eq!(id.as_str(), "i-abababababababab".to_string() + "a");
        assert_eq!(id.to_string().parse::<InstanceId>(), Ok(id));
        for bad in ["i-", "i-ABABABABABABABABA", "i-abababababababab", "vol-ababababababababa", "i-abababababababababa"]
        {
            assert_eq!(bad.parse::<InstanceId>().unwrap_err().code, "InvalidInstanceID.Malformed");
        }
    }

    #[test]
    fn the_prefix_of_one_kind_is_not_another() {
        let attachment = InterfaceAttachmentId::from_random([1; 9]).to_string();
        assert!(attachment.parse::<NetworkInterfaceId>().is_err());
        assert!(matches!("aki-0123456789abcdef0".parse(), Ok(ImageId::Kernel(_))));
        assert!("emi-0123456789abcdef0".parse::<ImageId>().is_err());
    }
}
