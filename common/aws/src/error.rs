//! The one error a client of an AWS API ever sees: a code, a sentence and an HTTP status, and how each protocol spells it.
//!
//! Nothing internal travels in here. What a tier wants to remember about a failure it logs itself.

use std::borrow::Cow;
use std::fmt;

use crate::xml::escape_into;

/// A refusal as AWS words it. The codes clients branch on are listed in the EC2, IAM and S3 API references.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AwsError {
    pub code: Cow<'static, str>,
    pub message: String,
    pub status: u16,
    /// Further elements of an S3 error document (`StringToSign`, `ServerTime`, ...) or members of a REST-JSON one (`Reason`),
    /// in order. Other protocols have no room for them. They may echo parts of the request, so `Debug` leaves them out.
    pub fields: Vec<(Cow<'static, str>, String)>,
}

impl fmt::Debug for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwsError({} {}: {})", self.status, self.code, self.message)
    }
}

/// The shape an error takes on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    Ec2,
    /// IAM, STS, ELB, Auto Scaling, CloudFormation, CloudWatch: the namespace of the answer is the service's.
    Query {
        xmlns: Cow<'static, str>,
    },
    S3,
    Json,
    /// The code is not in the document but in the header `x-amzn-ErrorType`.
    RestJson,
}

/// A rendered error: what to write after the status line. A HEAD answer carries the status alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub content_type: &'static str,
    pub body: String,
}

impl AwsError {
    pub fn new(code: impl Into<Cow<'static, str>>, status: u16, message: impl Into<String>) -> Self {
        AwsError { code: code.into(), message: message.into(), status, fields: Vec::new() }
    }

    /// A mistake of the caller, with the status nearly all of them have.
    pub fn bad_request(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(code, 400, message)
    }

    /// Adds an element to the error document of S3 or REST-JSON.
    #[must_use]
    pub fn with_field(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub fn missing_parameter(name: &str) -> Self {
        Self::bad_request("MissingParameter", format!("The request must contain the parameter {name}"))
    }

    pub fn unknown_parameter(name: &str) -> Self {
        Self::bad_request("UnknownParameter", format!("The parameter {name} is not recognized"))
    }

    pub fn invalid_parameter_value(message: impl Into<String>) -> Self {
        Self::bad_request("InvalidParameterValue", message)
    }

    pub fn invalid_parameter_combination(message: impl Into<String>) -> Self {
        Self::bad_request("InvalidParameterCombination", message)
    }

    /// What the product does not do, by name; never an empty success.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::bad_request("Unsupported", message)
    }

    pub fn invalid_action(action: &str) -> Self {
        Self::bad_request("InvalidAction", format!("The action {action} is not valid for this web service."))
    }

    /// The success of `DryRun=true`.
    pub fn dry_run() -> Self {
        Self::new("DryRunOperation", 412, "Request would have succeeded, but DryRun flag is set.")
    }

    pub fn unauthorized() -> Self {
        Self::new("UnauthorizedOperation", 403, "You are not authorized to perform this operation.")
    }

    pub fn access_denied() -> Self {
        Self::new("AccessDenied", 403, "Access Denied")
    }

    /// Something of ours broke; the reason is in the log under the request id, never in the answer.
    pub fn internal() -> Self {
        Self::new("InternalError", 500, "An internal error has occurred")
    }

    /// A tier this request needs cannot be reached now. Clients retry it.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new("Unavailable", 503, message)
    }

    pub fn malformed_xml() -> Self {
        Self::bad_request(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    }

    /// Whether the caller is at fault (`Sender`) or the cloud (`Receiver`).
    pub fn is_sender_fault(&self) -> bool {
        self.status < 500
    }

    /// The body in the given protocol. `resource` is S3's path of what was asked; the others have no place for it.
    pub fn render(&self, protocol: &Protocol, request_id: &str, resource: &str) -> Rendered {
        match protocol {
            Protocol::Ec2 => Rendered { content_type: crate::answer::CONTENT_TYPE, body: self.ec2(request_id) },
            Protocol::Query { xmlns } => {
                Rendered { content_type: crate::answer::CONTENT_TYPE, body: self.query(xmlns, request_id) }
            }
            Protocol::S3 => {
                Rendered { content_type: crate::document::CONTENT_TYPE, body: self.s3(request_id, resource) }
            }
            Protocol::Json => Rendered { content_type: "application/x-amz-json-1.1", body: self.json() },
            Protocol::RestJson => Rendered { content_type: crate::rest_json::CONTENT_TYPE, body: self.rest_json() },
        }
    }

    fn ec2(&self, request_id: &str) -> String {
        let mut out = String::from(crate::xml::DECLARATION);
        out.push_str("<Response><Errors><Error>");
        element(&mut out, "Code", &self.code);
        element(&mut out, "Message", &self.message);
        out.push_str("</Error></Errors>");
        element(&mut out, "RequestID", request_id);
        out.push_str("</Response>");
        out
    }

    fn query(&self, xmlns: &str, request_id: &str) -> String {
        let mut out = String::from("<ErrorResponse xmlns=\"");
        escape_into(&mut out, xmlns);
        out.push_str("\"><Error>");
        element(&mut out, "Type", if self.is_sender_fault() { "Sender" } else { "Receiver" });
        element(&mut out, "Code", &self.code);
        element(&mut out, "Message", &self.message);
        out.push_str("</Error>");
        element(&mut out, "RequestId", request_id);
        out.push_str("</ErrorResponse>");
        out
    }

    fn s3(&self, request_id: &str, resource: &str) -> String {
        let mut out = String::from(crate::xml::DECLARATION);
        out.push_str("<Error>");
        element(&mut out, "Code", &self.code);
        element(&mut out, "Message", &self.message);
        for (name, value) in &self.fields {
            element(&mut out, name, value);
        }
        element(&mut out, "Resource", resource);
        element(&mut out, "RequestId", request_id);
        element(&mut out, "HostId", request_id);
        out.push_str("</Error>");
        out
    }

    fn json(&self) -> String {
        let mut out = String::from("{\"__type\":");
        json_string(&mut out, &self.code);
        out.push_str(",\"message\":");
        json_string(&mut out, &self.message);
        out.push('}');
        out
    }
}

impl AwsError {
    fn rest_json(&self) -> String {
        let mut out = String::from("{\"Message\":");
        json_string(&mut out, &self.message);
        for (name, value) in &self.fields {
            out.push(',');
            json_string(&mut out, name);
            out.push(':');
            json_string(&mut out, value);
        }
        out.push('}');
        out
    }
}

fn element(out: &mut String, name: &str, text: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    escape_into(out, text);
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

fn json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ec2_errors_spell_request_id_with_a_capital_d() {
        let rendered = AwsError::bad_request("InvalidInstanceID.NotFound", "The instance ID 'i-1' does not exist")
            .render(&Protocol::Ec2, "req", "/");
        assert!(rendered.body.ends_with(
            "<Response><Errors><Error><Code>InvalidInstanceID.NotFound</Code><Message>The instance ID 'i-1' does not \
             exist</Message></Error></Errors><RequestID>req</RequestID></Response>"
        ));
    }

    #[test]
    fn a_message_cannot_break_out_of_any_protocol() {
        let error = AwsError::bad_request("X", "</Message>\"\\\r\n\u{0}&");
        let s3 = error.render(&Protocol::S3, "r", "/b/<k>").body;
        assert!(
            s3.contains("<Message>&lt;/Message&gt;&quot;\\&#13;\n&amp;</Message><Resource>/b/&lt;k&gt;</Resource>")
        );
        assert!(error.render(&Protocol::Json, "r", "").body.contains(r#""</Message>\"\\\u000d\u000a\u0000&""#));
    }

    #[test]
    fn query_errors_say_whose_fault_it_is() {
        let protocol = Protocol::Query { xmlns: "https://iam.amazonaws.com/doc/2010-05-08/".into() };
        assert!(AwsError::internal().render(&protocol, "r", "").body.contains("<Type>Receiver</Type>"));
        assert!(AwsError::access_denied().render(&protocol, "r", "").body.contains("<Type>Sender</Type>"));
    }
}
