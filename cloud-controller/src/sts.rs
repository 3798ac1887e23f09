//! STS: who am I. Roles and session tokens come with IAM and are refused by name until then.

use serde::{Deserialize, Serialize};

use crate::{
    Outcome, actions,
    service::{Call, Dialect, Service},
};

pub const SERVICE: Service = Service {
    name: "sts",
    dialect: Dialect::Query { xmlns: "https://sts.amazonaws.com/doc/2011-06-15/" },
    tables: &[ACTIONS],
};

actions![GetCallerIdentity => caller_identity];

#[derive(Deserialize)]
struct GetCallerIdentity {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CallerIdentity {
    arn: String,
    user_id: String,
    account: String,
}

async fn caller_identity(call: &Call, _: GetCallerIdentity) -> Outcome<CallerIdentity> {
    let me = &call.principal;
    Ok(CallerIdentity { arn: me.arn.clone(), user_id: me.user_id.clone(), account: me.account.clone() })
}
