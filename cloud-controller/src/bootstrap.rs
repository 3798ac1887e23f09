//! Eucalyptus' bootstrap service, as far as euca2ools needs it: the certificate bundles are encrypted for.

use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    service::{Call, Dialect, Service},
};

pub const SERVICE: Service = Service { name: "bootstrap", dialect: Dialect::Ec2, tables: &[ACTIONS] };

actions![DescribeServiceCertificates => describe];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeServiceCertificates {
    /// `pem` or `der` (then in base64).
    format: Option<String>,
    fingerprint_digest: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceCertificates {
    service_certificates: Vec<ServiceCertificate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceCertificate {
    service_type: &'static str,
    certificate_usage: &'static str,
    certificate_format: String,
    certificate_fingerprint: String,
    certificate_fingerprint_digest: String,
    certificate: String,
}

async fn describe(call: &Call, input: DescribeServiceCertificates) -> Outcome<ServiceCertificates> {
    let failed = |e: openssl::error::ErrorStack| Refusal::internal(e.to_string());
    let digest = input.fingerprint_digest.unwrap_or_else(|| "SHA-256".into());
    let algorithm = match digest.to_ascii_uppercase().as_str() {
        "SHA-256" => openssl::hash::MessageDigest::sha256(),
        "SHA-1" => openssl::hash::MessageDigest::sha1(),
        _ => {
            return Err(Refusal::new(
                "InvalidParameterValue",
                format!("FingerprintDigest '{digest}': use SHA-256 or SHA-1"),
            ));
        }
    };
    let pem = call.cloud.bundling.certificate_pem();
    let certificate = openssl::x509::X509::from_pem(pem.as_bytes()).map_err(failed)?;
    let fingerprint: Vec<String> =
        certificate.digest(algorithm).map_err(failed)?.iter().map(|b| format!("{b:02x}")).collect();
    let format = input.format.unwrap_or_else(|| "pem".into());
    let text = match format.as_str() {
        "pem" => pem.to_owned(),
        "der" => openssl::base64::encode_block(&certificate.to_der().map_err(failed)?),
        _ => return Err(Refusal::new("InvalidParameterValue", format!("Format '{format}': use pem or der"))),
    };
    Ok(ServiceCertificates {
        service_certificates: vec![ServiceCertificate {
            service_type: "compute",
            certificate_usage: "image-bundling",
            certificate_format: format,
            certificate_fingerprint: fingerprint.join(":"),
            certificate_fingerprint_digest: digest,
            certificate: text,
        }],
    })
}
