//! Which service a request is for: by its path, then by the scope it was signed for, then by Version and Action.
//!
//! Never by the scope alone: boto 2, libcloud and ec2-api-tools sign with scopes cut out of the host name, or with none
//! (clients.md §0). Eucalyptus' service paths are accepted, so that its configuration files work with a new host name.

use mallee_aws::params::Params;

use crate::{bootstrap, ec2, service::Service, sts};

/// What a Query request is for.
pub enum Route {
    Served(&'static Service),
    /// A service of AWS that Mallee knows by name and does not have (yet): its name, and its namespace for the error.
    NotServed {
        name: &'static str,
        xmlns: &'static str,
    },
}

struct Known {
    /// In a signature's scope.
    scope: &'static str,
    /// Eucalyptus' names of it below `/services/`, lower-case.
    paths: &'static [&'static str],
    /// API versions only it has.
    versions: &'static [&'static str],
    served: Option<&'static Service>,
    xmlns: &'static str,
}

const KNOWN: &[Known] = &[
    Known { scope: "ec2", paths: &["compute", "eucalyptus"], versions: &[], served: Some(&ec2::SERVICE), xmlns: "" },
    Known {
        scope: "sts",
        paths: &["tokens"],
        versions: &["2011-06-15"],
        served: Some(&sts::SERVICE),
        xmlns: "https://sts.amazonaws.com/doc/2011-06-15/",
    },
    Known {
        scope: "bootstrap",
        paths: &["empyrean", "bootstrap"],
        versions: &["eucalyptus"],
        served: Some(&bootstrap::SERVICE),
        xmlns: "",
    },
    Known {
        scope: "iam",
        paths: &["euare"],
        versions: &["2010-05-08"],
        served: None,
        xmlns: "https://iam.amazonaws.com/doc/2010-05-08/",
    },
    Known {
        scope: "autoscaling",
        paths: &["autoscaling"],
        versions: &["2011-01-01"],
        served: None,
        xmlns: "http://autoscaling.amazonaws.com/doc/2011-01-01/",
    },
    Known {
        scope: "cloudformation",
        paths: &["cloudformation"],
        versions: &["2010-05-15"],
        served: None,
        xmlns: "http://cloudformation.amazonaws.com/doc/2010-05-15/",
    },
    Known {
        scope: "elasticloadbalancing",
        paths: &["loadbalancing"],
        versions: &["2012-06-01", "2015-12-01"],
        served: None,
        xmlns: "http://elasticloadbalancing.amazonaws.com/doc/2012-06-01/",
    },
    Known {
        scope: "monitoring",
        paths: &["cloudwatch"],
        versions: &["2010-08-01"],
        served: None,
        xmlns: "http://monitoring.amazonaws.com/doc/2010-08-01/",
    },
];

impl Known {
    fn route(&self) -> Route {
        match self.served {
            Some(service) => Route::Served(service),
            None => Route::NotServed { name: self.scope, xmlns: self.xmlns },
        }
    }
    fn has(&self, action: &str) -> bool {
        self.served.is_some_and(|s| s.action(action).is_some())
    }
}

/// The services that are known by name and not served, for the documentation.
pub fn not_served() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().filter(|known| known.served.is_none()).map(|known| known.scope)
}

/// The service of a Query request. `scope` is the service the signature names, if it names one.
pub fn query(path: &str, scope: Option<&str>, params: &Params) -> Route {
    let action = params.action().unwrap_or_default();
    let version = params.version().unwrap_or_default();
    let segment =
        path.strip_prefix("/services/").map(|rest| rest.split('/').next().unwrap_or_default().to_ascii_lowercase());
    let by_path = segment.and_then(|s| KNOWN.iter().find(|k| k.paths.contains(&s.as_str())));
    let by_scope = || KNOWN.iter().find(|k| Some(k.scope) == scope);
    // `2011-01-01` is a version of both EC2 and Auto Scaling: an action EC2 has is EC2's.
    let by_version =
        || KNOWN.iter().find(|k| k.versions.contains(&version)).filter(|k| k.served.is_some() || !ec2_has(action));
    let by_action = || KNOWN.iter().find(|k| k.has(action));
    by_path.or_else(by_scope).or_else(by_version).or_else(by_action).unwrap_or(&KNOWN[0]).route()
}

fn ec2_has(action: &str) -> bool {
    ec2::SERVICE.action(action).is_some()
}

/// Whether a scope names a service this route is not: the one thing about a scope that is refused.
pub fn scope_contradicts(service: &str, scope: Option<&str>) -> bool {
    scope.is_some_and(|s| s != service && (s == "s3" || KNOWN.iter().any(|k| k.scope == s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str, scope: Option<&str>, form: &str) -> &'static str {
        match query(path, scope, &Params::parse(form.as_bytes()).unwrap()) {
            Route::Served(s) => s.name,
            Route::NotServed { name, .. } => name,
        }
    }

    #[test]
    fn old_clients_reach_their_service_whatever_they_sign_for() {
        for (path, scope, form, expected) in [
            ("/", Some("ec2"), "Action=DescribeTags&Version=2016-11-15", "ec2"),
            // boto 2.49 to 127.0.0.1 signs for service "0".
            ("/", Some("0"), "Action=DescribeTags&Version=2014-10-01", "ec2"),
            ("/", None, "Action=DescribeTags&Version=2011-01-01", "ec2"),
            ("/services/compute/", None, "Action=Nonsense&Version=2015-10-01", "ec2"),
            ("/services/Eucalyptus", None, "Action=DescribeTags&Version=2010-08-31", "ec2"),
            ("/services/Euare/", None, "Action=ListUsers&Version=2010-05-08", "iam"),
            ("/services/Tokens/", None, "Action=GetCallerIdentity&Version=2011-06-15", "sts"),
            ("/", Some("sts"), "Action=GetCallerIdentity&Version=2011-06-15", "sts"),
            ("/", None, "Action=DescribeAutoScalingGroups&Version=2011-01-01", "autoscaling"),
            ("/services/Empyrean", Some("ec2"), "Action=DescribeServiceCertificates&Version=eucalyptus", "bootstrap"),
            ("/", None, "Action=Nonsense", "ec2"),
        ] {
            assert_eq!(name(path, scope, form), expected, "{path} {scope:?} {form}");
        }
    }
}
