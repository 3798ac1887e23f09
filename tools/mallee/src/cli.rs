//! The command line: what can be said, and which file does it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mallee_tiers::Role;

use crate::error::Result;
use crate::state::State;
use crate::{account, down, env, image, join, logs, net, node, status, supervise, up, why, zone};

/// Your own EC2 and S3, on your own machines.
///
/// `mallee up` makes a cloud on this machine; unmodified AWS clients use it after `eval "$(mallee env)"`.
#[derive(Parser)]
#[command(
    name = "mallee",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:
  mallee up                            a cloud on this machine
  eval \"$(mallee env)\"                 use it with aws, boto3, s3cmd, ...
  mallee image add mini                a small guest to start
  mallee status                        how everything is
  mallee why i-0123456789abcdef0       why an instance is as it is
  mallee down                          end the tiers; guests go on
  mallee down --all                    leave nothing"
)]
struct Cli {
    /// Where everything of the cloud is kept on this machine
    #[arg(long, global = true, env = "MALLEE_STATE", default_value = crate::state::DEFAULT, value_name = "DIR")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cloud up on this machine, or mend the one that is there
    #[command(after_help = "Examples:
  mallee up
  mallee up --address 10.99.0.1/24 --elastic 10.99.0.128/25    where 172.29.0.0/24 is in use
  mallee up --accelerator tcg                                  do not use KVM
  mallee up --internet                                         guests reach what this machine reaches
  mallee --state /srv/lab up --name lab --port-base 9773 --namespace lab --link lab0 --address 10.98.0.1/24
                                                               a second cloud beside the first
What was chosen once stays chosen; running it again mends what is broken and restarts what was upgraded.")]
    Up(up::Choices),
    /// End the tiers; guests, their disks and their network go on
    #[command(after_help = "Examples:
  mallee down                guests go on; `mallee up` takes them over again
  mallee down --all          asks, then removes everything: guests, data, network
  mallee down --all --yes    does not ask")]
    Down(down::Choices),
    /// Show tiers, engines, nodes, instances, memory and faults
    #[command(after_help = "Examples:
  mallee status
  mallee status --json | jq .rss_kib
Works when parts are down, and shows which; then its exit code is 3.")]
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Print what AWS clients need, for a shell to evaluate
    #[command(after_help = "Examples:
  eval \"$(mallee env)\"
  eval \"$(mallee env --account alice)\"
  eval \"$(mallee env --https)\"             with AWS_CA_BUNDLE, for the cloud's own CA
  eval \"$(mallee env --euca ~/.mallee)\"    for euca2ools: writes euca2ools.ini and certificates
Where the aws in PATH is too old for AWS_ENDPOINT_URL, a function `aws` is defined, so that no call goes to the real AWS.")]
    Env(env::Choices),
    /// Accounts: create, list, what they are allowed beside what all are
    #[command(
        subcommand,
        after_help = "Examples:
  mallee account create alice
  mallee account list
  mallee account allow alice private-l2"
    )]
    Account(Account),
    /// Nodes: list, tokens for machines that shall join, drain, remove
    #[command(
        subcommand,
        after_help = "Examples:
  mallee node list
  mallee node token rack-7 --zone mallee-1a
  mallee node drain rack-7
  mallee node remove rack-7"
    )]
    Node(Node),
    /// Zones: add one; let one take this cloud-controller's lists although its store is a new one
    #[command(
        subcommand,
        after_help = "Examples:
  mallee zone add mallee-1b
  mallee zone adopt mallee-1a"
    )]
    Zone(Zone),
    /// Make this machine part of a cloud, with a token from `mallee node token`
    #[command(after_help = "Examples:
  mallee join mallee1.eyJhZGRyZXNz...
  ssh cloud mallee node token n2 --zone mallee-1a | mallee join - --tunnel eth0:10.0.0.102/24")]
    Join(join::Choices),
    /// Tell what was asked, decided and observed of something, and why it is so
    #[command(after_help = "Examples:
  mallee why i-0123456789abcdef0
  mallee why vol-0123456789abcdef0 --json")]
    Why {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// The network: show it, follow a packet through it
    #[command(
        subcommand,
        after_help = "Examples:
  mallee net show
  mallee net show vpc-0123456789abcdef0 --dot | dot -Tsvg > vpc.svg
  mallee net trace i-0123456789abcdef0 10.0.1.7 tcp 443"
    )]
    Net(Net),
    /// Images: build, bundle, upload, register; or all of it with add
    #[command(
        subcommand,
        after_help = "Examples:
  mallee image add mini                                  all of the following in one go
  mallee image build mini --out mini
  mallee image bundle mini/mini-disk.raw --out bundle
  mallee image upload bundle/mini-disk.raw.manifest.xml images
  mallee image register images/mini-disk.raw.manifest.xml --name mini"
    )]
    Image(Image),
    /// Show what tiers, supervisor and engines wrote
    #[command(after_help = "Examples:
  mallee logs                          the end of every tier's log
  mallee logs node-controller -n 200
  mallee logs walrus cloud-controller -f
  mallee logs libvirtd                 engines by their names, too")]
    Logs {
        /// Tiers, `supervisor`, or engines [default: all tiers]
        names: Vec<String>,
        /// Go on with what is written from now on
        #[arg(long, short)]
        follow: bool,
        /// How many lines from the end
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: usize,
    },
    /// Keep engines and tiers running; `mallee up` starts this
    #[command(hide = true)]
    Supervise,
}

#[derive(Subcommand)]
enum Account {
    /// Make an account with an access key and a signing certificate
    #[command(after_help = "Example: mallee account create alice && eval \"$(mallee env --account alice)\"")]
    Create { name: String },
    #[command(after_help = "Example: mallee account list")]
    List,
    /// Let an account do what not every account may
    #[command(after_help = "What can be allowed:
  private-l2    subnets of pure L2, without DHCP or any guard (the tag mallee:kind=private-l2 when they are made)
Example: mallee account allow alice private-l2")]
    Allow { name: String, what: String },
    /// Take back what was allowed; what the account made meanwhile stays
    #[command(after_help = "Example: mallee account forbid alice private-l2")]
    Forbid { name: String, what: String },
}

#[derive(Subcommand)]
enum Node {
    #[command(after_help = "Example: mallee node list")]
    List,
    /// Print a one-time token with which a machine joins
    #[command(after_help = "Examples:
  mallee node token rack-7 --zone mallee-1a
  mallee node token mallee-1b --zone mallee-1b --role cluster-controller")]
    Token {
        /// The machine's name; for controllers of a zone, the zone's
        name: String,
        #[arg(long)]
        zone: String,
        #[arg(long, default_value = "node-controller", value_parser = role)]
        role: Role,
        /// How long it can be used
        #[arg(long, default_value_t = 1)]
        hours: u64,
    },
    /// Give a node nothing new; what runs there goes on
    #[command(after_help = "Example: mallee node drain rack-7")]
    Drain { name: String },
    /// Give a drained node new instances again
    #[command(after_help = "Example: mallee node serve rack-7")]
    Serve { name: String },
    /// Take a node out of the cloud for good; drained, with nothing on it, and ended
    #[command(after_help = "Examples:
  mallee node drain rack-7               and on rack-7, when nothing is on it any more: mallee down --all
  mallee node remove rack-7
  mallee node remove rack-7 --lost       the machine will never come back: what was on it begins anew on others, with new disks")]
    Remove {
        name: String,
        /// The machine does not answer and never will
        #[arg(long)]
        lost: bool,
    },
}

#[derive(Subcommand)]
enum Net {
    /// Draw VPCs as trees: subnets, interfaces, route tables, network ACLs, security groups
    #[command(after_help = "Examples:
  mallee net show
  mallee net show vpc-0123456789abcdef0 --dot | dot -Tsvg > vpc.svg")]
    Show {
        /// Only this VPC
        vpc: Option<String>,
        /// A graph, in the language of Graphviz
        #[arg(long)]
        dot: bool,
        #[arg(long, conflicts_with = "dot")]
        json: bool,
    },
    /// Tell where, and by which rule, a new connection's first packet would pass or die
    #[command(after_help = "Examples:
  mallee net trace i-0123456789abcdef0 i-0123456789abcdef1 tcp 443
  mallee net trace eni-0123456789abcdef0 8.8.8.8 udp 53
  mallee net trace i-0123456789abcdef0 10.0.1.7 icmp --ovn
The exit code is 3 when it would die.")]
    Trace(net::Packet),
}

#[derive(Subcommand)]
enum Zone {
    /// Another availability zone; its controllers are to join from other machines
    #[command(after_help = "Examples:
  mallee zone add mallee-1b
Then, for the machine that shall run the zone's controllers:
  mallee node token mallee-1b --zone mallee-1b --role cluster-controller
  mallee node token mallee-1b --zone mallee-1b --role storage-controller")]
    Add { zone: String },
    /// Let the zone's controllers obey this cloud-controller; only when its store is the right one
    #[command(after_help = "Example: mallee zone adopt mallee-1a
When `mallee status` says that a zone belongs to another store: put the old store back, or say this.")]
    Adopt { zone: String },
}

#[derive(Subcommand)]
enum Image {
    /// Make a guest from Debian packages
    #[command(after_help = "Example: mallee image build mini --out /var/tmp/mini")]
    Build(image::build::Choices),
    /// Make a bundle of an image: encrypted parts and a signed manifest
    #[command(after_help = "Examples:
  mallee image bundle disk.raw --out bundle
  mallee image bundle vmlinuz --kind kernel --out bundle
  mallee image bundle root.img --kernel aki-... --ramdisk ari-... --out bundle")]
    Bundle(image::bundle::Choices),
    /// Put a bundle into a bucket
    #[command(after_help = "Example: mallee image upload bundle/disk.raw.manifest.xml images")]
    Upload(image::upload::Choices),
    /// Make an uploaded bundle an image, and wait until it can be used
    #[command(after_help = "Example: mallee image register images/disk.raw.manifest.xml --name debian")]
    Register(image::register::Choices),
    /// Bundle, upload and register a whole-disk image
    #[command(after_help = "Examples:
  mallee image add mini
  mallee image add debian-12.raw --name debian-12")]
    Add(image::add::Choices),
}

fn role(text: &str) -> std::result::Result<Role, String> {
    text.parse()
}

/// Does what the command line says; the exit code says whether it was done.
pub async fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mallee: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of `mallee status` when it worked and something else does not, and of `mallee net trace` when a packet dies.
const NOT_WELL: u8 = 3;

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    let state = &State::new(&cli.state)?;
    if let Command::Status { json } = cli.command {
        let well = status::run(state, json).await?;
        return Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) });
    }
    if let Command::Net(Net::Trace(packet)) = &cli.command {
        let arrives = net::trace(state, packet).await?;
        return Ok(if arrives { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) });
    }
    act(state, cli.command).await.map(|()| ExitCode::SUCCESS)
}

async fn act(state: &State, command: Command) -> Result<()> {
    match command {
        Command::Up(choices) => up::run(state, &choices).await,
        Command::Down(choices) => down::run(state, &choices).await,
        Command::Status { json } => status::run(state, json).await.map(drop),
        Command::Env(choices) => env::run(state, &choices).await,
        Command::Account(Account::Create { name }) => account::create(state, &name).await,
        Command::Account(Account::List) => account::list(state).await,
        Command::Account(Account::Allow { name, what }) => account::allow(state, &name, &what, true).await,
        Command::Account(Account::Forbid { name, what }) => account::allow(state, &name, &what, false).await,
        Command::Node(Node::List) => node::list(state).await,
        Command::Node(Node::Token { name, zone, role, hours }) => node::token(state, &name, &zone, role, hours).await,
        Command::Node(Node::Drain { name }) => node::drain(state, &name).await,
        Command::Node(Node::Serve { name }) => node::serve(state, &name).await,
        Command::Node(Node::Remove { name, lost }) => node::remove(state, &name, lost).await,
        Command::Zone(Zone::Add { zone }) => zone::add(state, &zone).await,
        Command::Zone(Zone::Adopt { zone }) => zone::adopt(state, &zone).await,
        Command::Join(choices) => join::run(state, &choices).await,
        Command::Net(Net::Show { vpc, dot, json }) => {
            let told = match (dot, json) {
                (true, _) => net::As::Dot,
                (_, true) => net::As::Json,
                _ => net::As::Tree,
            };
            net::show(state, vpc, told).await
        }
        Command::Net(Net::Trace(packet)) => net::trace(state, &packet).await.map(drop),
        Command::Why { id, json } => why::run(state, &id, json).await,
        Command::Image(Image::Build(choices)) => image::build::run(&choices).await,
        Command::Image(Image::Bundle(choices)) => image::bundle::run(state, &choices).await,
        Command::Image(Image::Upload(choices)) => image::upload::run(state, &choices).await,
        Command::Image(Image::Register(choices)) => image::register::run(state, &choices).await,
        Command::Image(Image::Add(choices)) => image::add::run(state, &choices).await,
        Command::Logs { names, follow, lines } => logs::run(state, &names, lines, follow).await,
        Command::Supervise => supervise::run(state.clone()).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            if !command.is_hide_set() && command.get_name() != "help" {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("mallee "), "{} has no example", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }
}
