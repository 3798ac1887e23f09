//! `docs/actions.md`, written from the tables the product serves from.

use std::fmt::Write;

use mallee_cloud_controller::{bootstrap, ebs, ec2, route, service::Service, sts};
use mallee_walrus::operation::{Does, OPERATIONS, On};

/// Services with the name people know them by.
pub const SERVICES: &[(&str, &Service)] =
    &[("EC2", &ec2::SERVICE), ("STS", &sts::SERVICE), ("Eucalyptus' bootstrap", &bootstrap::SERVICE)];

/// The whole page.
pub fn page() -> String {
    let mut out = String::from(
        "# Actions\n\n\
         What the cloud answers, written by `tools/test docs --write` from the tables in the code; a test keeps it true. An action\n\
         that is not listed is refused as `InvalidAction`, a parameter that is not listed as `UnknownParameter`. Of the listed\n\
         parameters, those that AWS has and this cloud does not carry out are refused by name (`Unsupported`) as soon as they say\n\
         something: nothing is accepted and then ignored.\n",
    );
    for (title, service) in SERVICES {
        let mut actions: Vec<_> = service.tables.iter().flat_map(|table| table.iter()).collect();
        actions.sort_by_key(|action| action.name);
        let _ = write!(out, "\n## {title}: {} actions\n\n| action | parameters |\n|---|---|\n", actions.len());
        for action in actions {
            let parameters: Vec<String> = (action.parameters)().iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(out, "| {} | {} |", action.name, parameters.join(" "));
        }
    }
    out.push_str(&direct());
    out.push_str(&s3());
    out.push_str("\n## Known by name and not served\n\nAnswered with `InvalidAction` in the service's own form:");
    let names: Vec<&str> = route::not_served().collect();
    let _ = writeln!(out, " {}.", names.join(", "));
    out
}

fn direct() -> String {
    let mut out = format!(
        "\n## EBS direct APIs: {} actions\n\nREST-JSON, SigV4. Snapshots are read and written in blocks of 512 KiB. What is no \
         parameter is refused as a\n`ValidationException`.\n\n| action | is asked by | parameters |\n|---|---|---|\n",
        ebs::ACTIONS.len()
    );
    for action in ebs::ACTIONS {
        let parameters: Vec<String> = action.shape.members.iter().map(|member| format!("`{}`", member.name)).collect();
        let (method, path) = (&action.shape.method, action.shape.path);
        let _ = writeln!(out, "| {} | `{method} {path}` | {} |", action.name, parameters.join(" "));
    }
    out
}

fn s3() -> String {
    let done = OPERATIONS.iter().filter(|row| matches!(row.does, Does::This(_))).count();
    let mut out = format!(
        "\n## S3: {done} operations\n\nPath style and virtual-hosted style, SigV4 and SigV2, headers and presigned URLs. An \
         operation that is not done is refused\nas `NotImplemented`; reading a configuration that cannot be set answers what AWS \
         answers where nothing was set.\n\n| operation | on | is |\n|---|---|---|\n"
    );
    let mut rows: Vec<_> = OPERATIONS.iter().collect();
    rows.sort_by_key(|row| row.name);
    for row in rows {
        let on = match row.on {
            On::Service => "service",
            On::Bucket => "bucket",
            On::Object => "object",
        };
        let is = match row.does {
            Does::This(_) => "done".to_owned(),
            Does::Absent { code, .. } => format!("answered `{code}`: there is none"),
            Does::Document { .. } => "answered: nothing is set".to_owned(),
            Does::NothingThere => "done: there is never one".to_owned(),
            Does::Refused => "refused: `NotImplemented`".to_owned(),
        };
        let _ = writeln!(out, "| {} | {on} | {is} |", row.name);
    }
    out
}
