//! `mallee image build`: small guests made from Debian packages, by the recipes in `tools/images`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::error::{Error, Result};
use crate::tier::own_program;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Recipe {
    /// A Linux of 40 MiB that behaves like an EC2 instance
    Mini,
}

impl Recipe {
    fn as_str(self) -> &'static str {
        match self {
            Recipe::Mini => "mini",
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    #[arg(value_enum)]
    pub recipe: Recipe,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = "mini")]
    pub out: PathBuf,
    /// Ask the Debian mirror again, although its packages are here
    #[arg(long)]
    pub fresh: bool,
}

pub async fn run(choices: &Choices) -> Result<()> {
    build(choices.recipe, &choices.out, choices.fresh).await
}

pub async fn build(recipe: Recipe, out: &Path, fresh: bool) -> Result<()> {
    let program = find(recipe)?;
    let mut command = tokio::process::Command::new(&program);
    command.arg(out).stdin(Stdio::null());
    if fresh {
        command.arg("--fresh");
    }
    let status = command.status().await.map_err(Error::file("running", &program))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::refused(format!("{} did not succeed ({status}); what it said is above", program.display())))
}

/// `MALLEE_SHARE/images`, or installed beside us, or in the source tree we were built in.
fn find(recipe: Recipe) -> Result<PathBuf> {
    let own = own_program()?;
    let mut places: Vec<PathBuf> = std::env::var_os("MALLEE_SHARE").map(PathBuf::from).into_iter().collect();
    places.extend(
        own.ancestors().skip(1).flat_map(|directory| [directory.join("share/mallee"), directory.join("tools")]),
    );
    let below = Path::new("images").join(recipe.as_str()).join("build");
    places.iter().map(|place| place.join(&below)).find(|path| path.exists()).ok_or_else(|| {
        Error::refused(format!(
            "the recipe {} is nowhere above {}; say with MALLEE_SHARE where images/{0}/build is",
            recipe.as_str(),
            own.display()
        ))
    })
}
