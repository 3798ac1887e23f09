//! `mallee why ID`: what was asked, decided and observed of something, and why it is as it is.

use mallee_tiers::WhyAsked;

use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::table::{table, time};
use crate::{admin, needs};

pub async fn run(state: &State, id: &str, json: bool) -> Result<()> {
    needs::root()?;
    let answer = admin::client(state).why(&WhyAsked { id: id.to_owned() }).await?;
    if json {
        let text = serde_json::to_string_pretty(&answer).map_err(|error| Error::refused(error.to_string()))?;
        out!("{text}");
        return Ok(());
    }
    if answer.lines.is_empty() {
        return Err(Error::refused(format!("nothing is known of {id}")));
    }
    let mut shown = table(["AT (UTC)", "BY", "", "WHAT"]);
    for line in answer.lines {
        shown.add_row([time(line.at), line.by, line.kind, line.text]);
    }
    out!("{shown}");
    Ok(())
}
