//! What guests reach of this machine: what serves at the address of the cloud's own link, and nothing else. Linux answers on every
//! link for every address it has, so without this a guest would come to tiers that serve other machines, by those machines'
//! address.

use mallee_engines::NamespaceConfig;

use crate::error::Result;
use crate::internet::nft;

/// Said again, it replaces itself.
pub async fn close(link: &NamespaceConfig) -> Result<()> {
    let (table, name, own) = (table(link), &link.host_link, link.host_address);
    nft(&format!(
        "table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n chain guests {{\n  \
         type filter hook input priority filter; policy accept;\n  iifname \"{name}\" ip daddr != {own} drop\n }}\n}}\n"
    ))
    .await
}

/// What is gone already is no error.
pub async fn remove(link: &NamespaceConfig) -> Result<()> {
    let table = table(link);
    nft(&format!("table ip {table} {{}}\ndelete table ip {table}\n")).await
}

fn table(link: &NamespaceConfig) -> String {
    format!("mallee-guard-{}", link.host_link)
}
