//! How this service refuses: its own exceptions with their reasons, and those of others put into its words.

use mallee_aws::{AwsError, rest_json::Unreadable};

use crate::Refusal;

/// AWS' bound on a message.
const LONGEST: usize = 256;

fn exception(code: &'static str, status: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
    AwsError::new(code, status, message).with_field("Reason", reason).into()
}

/// A mistake of the caller; `reason` is one of ValidationExceptionReason.
pub fn invalid(reason: &'static str, message: impl Into<String>) -> Refusal {
    exception("ValidationException", 400, reason, message)
}

pub fn invalid_value(message: impl Into<String>) -> Refusal {
    invalid("INVALID_PARAMETER_VALUE", message)
}

/// Whether there is no such snapshot, or one of somebody else: the two look the same.
pub fn not_found(id: &str) -> Refusal {
    let message = format!("The snapshot '{id}' does not exist.");
    exception("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND", message)
}

/// A snapshot that the caller may see, and may not do this with.
pub fn denied(message: impl Into<String>) -> Refusal {
    exception("AccessDeniedException", 403, "UNAUTHORIZED_ACCOUNT", message)
}

/// To be tried again.
pub fn throttled(message: impl Into<String>) -> Refusal {
    exception("RequestThrottledException", 400, "RESOURCE_LEVEL_THROTTLE", message)
}

/// Something of ours is away or broken; `cause` is for the log.
pub fn failed(cause: impl Into<String>) -> Refusal {
    let answer = AwsError::new("InternalServerException", 500, "Walrus cannot be asked now; try again");
    Refusal { answer, cause: Some(cause.into()) }
}

pub fn unreadable(why: Unreadable) -> Refusal {
    invalid_value(why.to_string())
}

/// A refusal of a rule that other services share.
pub fn of(refused: impl Into<Refusal>) -> Refusal {
    let mut refused: Refusal = refused.into();
    let given = &refused.answer;
    let known = given.code.ends_with("Exception");
    let message = given.message.clone();
    let mut answer = match given.code.as_ref() {
        _ if known => given.clone(),
        _ if given.status >= 500 => AwsError::new("InternalServerException", 500, message),
        "UnauthorizedOperation" | "AccessDenied" => denied(message).answer,
        "IdempotentParameterMismatch" => AwsError::new("ConflictException", 409, message),
        "TagLimitExceeded" => invalid("INVALID_TAG", message).answer,
        _ => invalid_value(message).answer,
    };
    if answer.message.len() > LONGEST {
        answer.message = answer.message.chars().take(LONGEST / 4).collect();
    }
    refused.answer = answer;
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_said_in_words_of_this_service() {
        let said = |refused: AwsError| {
            let answer = of(refused).answer;
            (answer.code.to_string(), answer.status, answer.fields.first().map(|(_, reason)| reason.clone()))
        };
        let with = |code: &str, status, reason: Option<&str>| (code.to_owned(), status, reason.map(str::to_owned));
        for (refused, expected) in [
            (AwsError::unauthorized(), with("AccessDeniedException", 403, Some("UNAUTHORIZED_ACCOUNT"))),
            (AwsError::internal(), with("InternalServerException", 500, None)),
            (AwsError::unavailable("x"), with("InternalServerException", 500, None)),
            (AwsError::bad_request("IdempotentParameterMismatch", "x"), with("ConflictException", 409, None)),
            (AwsError::bad_request("TagLimitExceeded", "x"), with("ValidationException", 400, Some("INVALID_TAG"))),
            (
                AwsError::bad_request("InvalidSomething", "x".repeat(1_000)),
                with("ValidationException", 400, Some("INVALID_PARAMETER_VALUE")),
            ),
        ] {
            assert_eq!(said(refused.clone()), expected, "{refused:?}");
            assert!(of(refused).answer.message.len() <= LONGEST);
        }
        let kept = of(not_found("snap-1")).answer;
        assert_eq!(kept.fields, [("Reason".into(), "SNAPSHOT_NOT_FOUND".to_owned())]);
    }
}
