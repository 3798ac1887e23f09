//! Where a request came in, and the words in which each service refuses a signature.

use time::OffsetDateTime;

use crate::answer::timestamp;
use crate::error::AwsError;

/// The kind of service a request is for: it decides the canonical form and the codes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// Path as sent, encoded once.
    S3,
    /// Path normalised and encoded twice; unknown keys and wrong signatures are both `AuthFailure`.
    Ec2,
    /// As EC2, with the codes of IAM, STS and the other Query services.
    Query,
    /// As EC2, with the codes of services that speak JSON. The body may be unsigned: what such a service then takes proves it
    /// by a signed checksum.
    RestJson,
}

impl Route {
    /// No credentials where some are needed.
    pub fn missing_credentials(self) -> AwsError {
        match self {
            Route::S3 => AwsError::access_denied(),
            Route::Ec2 => auth_failure(),
            Route::Query => AwsError::new("MissingAuthenticationToken", 403, "Request is missing Authentication Token"),
            Route::RestJson => in_json(Route::Query.missing_credentials()),
        }
    }

    /// The access key does not exist, or is not active.
    pub fn unknown_key(self) -> AwsError {
        match self {
            Route::S3 => AwsError::new(
                "InvalidAccessKeyId",
                403,
                "The AWS Access Key Id you provided does not exist in our records.",
            ),
            Route::Ec2 => auth_failure(),
            Route::Query => {
                AwsError::new("InvalidClientTokenId", 403, "The security token included in the request is invalid.")
            }
            Route::RestJson => in_json(Route::Query.unknown_key()),
        }
    }

    /// The scope names a known service, but another than this route's.
    pub fn wrong_service(self) -> AwsError {
        match self {
            Route::S3 => self.malformed_header("The credential is scoped to another service."),
            Route::Ec2 => auth_failure(),
            Route::Query => mismatch_with("Credential should be scoped to correct service."),
            Route::RestJson => in_json(Route::Query.wrong_service()),
        }
    }

    /// The session token is not that of the key.
    pub fn wrong_session_token(self) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request("InvalidToken", "The provided token is malformed or otherwise invalid."),
            Route::Ec2 | Route::Query | Route::RestJson => self.unknown_key(),
        }
    }

    pub(crate) fn signature_mismatch(self) -> AwsError {
        match self {
            Route::S3 => mismatch_with(
                "The request signature we calculated does not match the signature you provided. Check your key and \
                 signing method.",
            ),
            Route::Ec2 => auth_failure(),
            Route::Query => mismatch_with(
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
                 Access Key and signing method. Consult the service documentation for details.",
            ),
            Route::RestJson => in_json(Route::Query.signature_mismatch()),
        }
    }

    pub(crate) fn body_mismatch(self, signed: &[u8; 32], computed: &[u8; 32]) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )
            .with_field("ClientComputedContentSHA256", hex::encode(signed))
            .with_field("S3ComputedContentSHA256", hex::encode(computed)),
            Route::Ec2 | Route::Query | Route::RestJson => self.signature_mismatch(),
        }
    }

    pub(crate) fn skewed(self, signed_at: OffsetDateTime, now: OffsetDateTime) -> AwsError {
        match self {
            Route::S3 => AwsError::new(
                "RequestTimeTooSkewed",
                403,
                "The difference between the request time and the current time is too large.",
            )
            .with_field("RequestTime", millis(signed_at))
            .with_field("ServerTime", millis(now))
            .with_field("MaxAllowedSkewMilliseconds", super::MAX_SKEW.whole_milliseconds().to_string()),
            Route::Ec2 => AwsError::bad_request(
                "RequestExpired",
                format!("Request has expired. Timestamp is {}; the time here is {}.", millis(signed_at), millis(now)),
            ),
            Route::Query => mismatch_with(&format!(
                "Signature expired: {} is too far from the time here, {}",
                millis(signed_at),
                millis(now)
            )),
            Route::RestJson => in_json(Route::Query.skewed(signed_at, now)),
        }
    }

    pub(crate) fn expired(self, expiry: OffsetDateTime, now: OffsetDateTime) -> AwsError {
        match self {
            Route::S3 => AwsError::new("AccessDenied", 403, "Request has expired")
                .with_field("Expires", millis(expiry))
                .with_field("ServerTime", millis(now)),
            Route::Ec2 => AwsError::bad_request("RequestExpired", "Request has expired."),
            Route::Query => mismatch_with(&format!("Signature expired: {} is now past.", millis(expiry))),
            Route::RestJson => in_json(Route::Query.expired(expiry, now)),
        }
    }

    pub(crate) fn not_yet_valid(self, from: OffsetDateTime, now: OffsetDateTime) -> AwsError {
        match self {
            Route::S3 => AwsError::new("AccessDenied", 403, "Request is not yet valid"),
            Route::Ec2 | Route::Query | Route::RestJson => self.skewed(from, now),
        }
    }

    pub(crate) fn two_credentials(self) -> AwsError {
        let message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query \
                       string parameter or the Authorization header should be specified";
        match self {
            Route::S3 => AwsError::bad_request("AuthorizationHeaderMalformed", message),
            Route::Ec2 | Route::Query => AwsError::bad_request("IncompleteSignature", message),
            Route::RestJson => in_json(Route::Query.two_credentials()),
        }
    }

    /// The `Authorization` header makes no sense; `detail` is a sentence.
    pub(crate) fn malformed_header(self, detail: &str) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request(
                "AuthorizationHeaderMalformed",
                format!("The authorization header is malformed. {detail}"),
            ),
            Route::Ec2 | Route::Query => incomplete(detail),
            Route::RestJson => in_json(incomplete(detail)),
        }
    }

    /// The credentials in the query string make no sense; `detail` is a sentence.
    pub(crate) fn malformed_query(self, detail: &str) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request("AuthorizationQueryParametersError", detail),
            Route::Ec2 | Route::Query => incomplete(detail),
            Route::RestJson => in_json(incomplete(detail)),
        }
    }

    /// A URL that would never end, or never begin. S3's suites of conformance expect what is no leave to be told as none.
    pub(crate) fn bad_lifetime(self) -> AwsError {
        let detail = "X-Amz-Expires must be between 1 and 604800 seconds.";
        match self {
            Route::S3 => AwsError::new("AuthorizationQueryParametersError", 403, detail),
            Route::Ec2 | Route::Query => incomplete(detail),
            Route::RestJson => in_json(incomplete(detail)),
        }
    }

    pub(crate) fn unsupported_authorization(self) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request("InvalidArgument", "Unsupported Authorization Type"),
            Route::Ec2 | Route::Query => incomplete("The authorization type is not supported."),
            Route::RestJson => in_json(Route::Query.unsupported_authorization()),
        }
    }

    pub(crate) fn sigv2_refused(self) -> AwsError {
        match self {
            Route::S3 => AwsError::bad_request(
                "InvalidRequest",
                "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
            ),
            Route::Ec2 | Route::Query => {
                incomplete("Signature version 2 is turned off in this cloud. Please use AWS4-HMAC-SHA256.")
            }
            Route::RestJson => in_json(incomplete("Signature version 2 is not for this service.")),
        }
    }

    /// No date, or one nobody can read. Fails closed.
    pub(crate) fn bad_date(self) -> AwsError {
        match self {
            Route::S3 => {
                AwsError::new("AccessDenied", 403, "AWS authentication requires a valid Date or x-amz-date header")
            }
            Route::Ec2 | Route::Query => incomplete("The date of the signature is missing or not a valid date."),
            Route::RestJson => in_json(Route::Query.bad_date()),
        }
    }

    /// The body says what to do, and anybody on the way could have written it.
    pub fn unsigned_body(self) -> AwsError {
        match self {
            Route::S3 => AwsError::access_denied(),
            Route::Ec2 | Route::Query | Route::RestJson => self.signature_mismatch(),
        }
    }

    /// A header that must be signed and is not: anybody on the way could have put it there.
    pub(crate) fn unsigned_header(self, name: &str) -> AwsError {
        match self {
            Route::S3 => {
                AwsError::new("AccessDenied", 403, "There were headers present in the request which were not signed")
                    .with_field("HeadersNotSigned", name)
            }
            Route::Ec2 => auth_failure(),
            Route::Query => mismatch_with(&format!("The header '{name}' must be a signed header.")),
            Route::RestJson => in_json(Route::Query.unsigned_header(name)),
        }
    }
}

fn auth_failure() -> AwsError {
    AwsError::new("AuthFailure", 401, "AWS was not able to validate the provided access credentials")
}

fn mismatch_with(message: &str) -> AwsError {
    AwsError::new("SignatureDoesNotMatch", 403, message)
}

fn incomplete(detail: &str) -> AwsError {
    AwsError::new("IncompleteSignature", 403, detail)
}

/// A Query service's refusal in the words of one that speaks JSON.
fn in_json(refused: AwsError) -> AwsError {
    let code = match refused.code.as_ref() {
        "MissingAuthenticationToken" => "MissingAuthenticationTokenException",
        "InvalidClientTokenId" => "UnrecognizedClientException",
        "SignatureDoesNotMatch" => "InvalidSignatureException",
        _ => "IncompleteSignatureException",
    };
    AwsError { code: code.into(), ..refused }
}

fn millis(at: OffsetDateTime) -> String {
    timestamp(at.unix_timestamp().saturating_mul(1000))
}
