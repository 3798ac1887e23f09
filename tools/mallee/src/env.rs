//! `mallee env`: what AWS clients must be told to use this cloud, as lines for a shell.

use std::path::Path;

use mallee_tiers::{AccountAsked, AccountKeys, Role};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::output::out;
use crate::state::{State, make_private};
use crate::{admin, certificate, needs};

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// Whose keys
    #[arg(long, default_value = crate::account::FIRST, value_name = "NAME")]
    pub account: String,
    /// HTTPS, with the cloud's CA for clients that read AWS_CA_BUNDLE
    #[arg(long)]
    pub https: bool,
    /// Write euca2ools.ini, the account's certificate and key, and the cloud's certificate into DIR, for euca2ools
    #[arg(long, value_name = "DIR")]
    pub euca: Option<std::path::PathBuf>,
}

pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let machine = Machine::expect(state)?;
    let keys = admin::client(state).account_keys(&AccountAsked { name: choices.account.clone() }).await?;
    let mut urls = Urls { ec2: machine.url(Role::CloudController)?, s3: machine.url(Role::Walrus)?, ca: None };
    if choices.https {
        urls.ec2 = urls.ec2.replacen("http:", "https:", 1);
        urls.s3 = urls.s3.replacen("http:", "https:", 1);
        urls.ca = Some(state.ca().display().to_string());
    }
    if let Some(directory) = &choices.euca {
        return write_euca(state, directory, &keys, &urls).await;
    }
    out!("{}", lines(&keys, &urls).trim_end());
    out!("{}", aws_function(&urls).trim_end());
    Ok(())
}

struct Urls {
    ec2: String,
    s3: String,
    /// For HTTPS: the file of the CA.
    ca: Option<String>,
}

fn lines(keys: &AccountKeys, urls: &Urls) -> String {
    let exports = [
        ("AWS_ENDPOINT_URL", &urls.ec2),
        ("AWS_ENDPOINT_URL_S3", &urls.s3),
        ("AWS_ACCESS_KEY_ID", &keys.access_key),
        ("AWS_SECRET_ACCESS_KEY", &keys.secret.0),
        ("AWS_DEFAULT_REGION", &keys.region),
        ("AWS_REGION", &keys.region),
        // Older tools.
        ("EC2_URL", &urls.ec2),
        ("S3_URL", &urls.s3),
        ("AWS_IAM_URL", &urls.ec2),
        ("TOKEN_URL", &urls.ec2),
    ];
    // What would win over the lines above, and lead to another cloud.
    let mut text = "unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_IGNORE_CONFIGURED_ENDPOINT_URLS \
                    AWS_ENDPOINT_URL_EC2 AWS_ENDPOINT_URL_EBS AWS_ENDPOINT_URL_STS AWS_ENDPOINT_URL_IAM AWS_CA_BUNDLE\n"
        .to_owned();
    for (name, value) in exports {
        text += &format!("export {name}={}\n", quoted(value));
    }
    if let Some(ca) = &urls.ca {
        text += &format!("export AWS_CA_BUNDLE={}\n", quoted(ca));
    }
    // A proxy must not be asked for this machine's own addresses.
    for name in ["no_proxy", "NO_PROXY"] {
        text += &format!(
            "case ,${{{name}-}}, in *,127.0.0.1,*) ;; *) export {name}=\"127.0.0.1${{{name}:+,${name}}}\" ;; esac\n"
        );
    }
    text
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Releases before 1.29 and 2.13 do not know AWS_ENDPOINT_URL, and would call the real AWS. The user's shell finds out: under
/// sudo, this command would see another PATH. The function adds `--endpoint-url` by the service, which is the first word that
/// is neither an option nor an option's value.
fn aws_function(urls: &Urls) -> String {
    format!(
        r#"case $(command aws --version 2>&1) in aws-cli/0.*|aws-cli/1.[0-9].*|aws-cli/1.1[0-9].*|aws-cli/1.2[0-8].*|aws-cli/2.[0-9].*|aws-cli/2.1[0-2].*)
aws() (
    service= value=
    for word in "$@"; do
        if [ -n "$value" ]; then value=; continue; fi
        case $word in
            --endpoint-url|--endpoint-url=*) command aws "$@"; exit ;;
            --output|--query|--profile|--region|--color|--ca-bundle|--cli-read-timeout|--cli-connect-timeout|--cli-binary-format) value=next ;;
            -*) ;;
            *) service=${{service:-$word}} ;;
        esac
    done
    case $service in
        s3|s3api) command aws --endpoint-url {s3} "$@" ;;
        *) command aws --endpoint-url {ec2} "$@" ;;
    esac
) ;;
esac
"#,
        s3 = quoted(&urls.s3),
        ec2 = quoted(&urls.ec2)
    )
}

async fn write_euca(state: &State, directory: &Path, keys: &AccountKeys, urls: &Urls) -> Result<()> {
    let files = certificate::ensure(state, keys).await?;
    make_private(directory)?;
    let directory = directory.canonicalize().map_err(Error::file("resolving", directory))?;
    let copy = |from: &Path, to: &str| -> Result<String> {
        let bytes = std::fs::read(from).map_err(Error::file("reading", from))?;
        let to = directory.join(to);
        mallee_service::pki::write_secret(&to, &bytes)?;
        Ok(to.display().to_string())
    };
    let certificate = copy(&files.certificate, "cert.pem")?;
    let key = copy(&files.key, "pk.pem")?;
    let cloud = copy(&files.cloud, "cloud-cert.pem")?;
    let path = directory.join("euca2ools.ini");
    mallee_service::pki::write_secret(&path, euca_ini(keys, urls, [&certificate, &key, &cloud]).as_bytes())?;
    out!("export EUCA_CONFIG_PATH={}", quoted(&directory.display().to_string()));
    out!("unset EC2_URL S3_URL AWS_IAM_URL TOKEN_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY");
    eprintln!("written: {}", path.display());
    Ok(())
}

fn euca_ini(keys: &AccountKeys, urls: &Urls, [certificate, key, cloud]: [&String; 3]) -> String {
    let Urls { ec2, s3, .. } = urls;
    let AccountKeys { account, name, access_key, secret, region, .. } = keys;
    format!(
        "[global]\ndefault-region = {region}\n\n\
         [user {name}]\nkey-id = {access_key}\nsecret-key = {secret}\naccount-id = {account}\n\
         certificate = {certificate}\nprivate-key = {key}\n\n\
         [region {region}]\nuser = {name}\n\
         ec2-url = {ec2}/services/compute\niam-url = {ec2}/services/Euare\nsts-url = {ec2}/services/Tokens\n\
         autoscaling-url = {ec2}/services/AutoScaling\ncloudformation-url = {ec2}/services/CloudFormation\n\
         elasticloadbalancing-url = {ec2}/services/LoadBalancing\nmonitoring-url = {ec2}/services/CloudWatch\n\
         bootstrap-url = {ec2}/services/Empyrean\ns3-url = {s3}\ncertificate = {cloud}\nverify-ssl = false\n",
        secret = secret.0
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use mallee_tiers::Secret;

    use super::*;

    fn urls() -> Urls {
        Urls { ec2: "http://127.0.0.1:8773".to_owned(), s3: "http://127.0.0.1:8777".to_owned(), ca: None }
    }

    /// Evaluates the lines in a real shell, with an `aws` of this release that prints the second word it was given.
    fn second_word(release: &str, call: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let aws = directory.path().join("aws");
        let script =
            format!("#!/bin/sh\ncase $1 in --version) echo aws-cli/{release} Python ;; *) echo \"$2\" ;; esac\n");
        std::fs::write(&aws, script).unwrap();
        std::fs::set_permissions(&aws, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = format!("{0}eval '{1}'", aws_function(&urls()), call);
        let path = format!("{}:/usr/bin:/bin", directory.path().display());
        let output = Command::new("sh").args(["-c", &script]).env("PATH", path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[test]
    fn an_old_aws_is_sent_to_this_cloud_whatever_stands_before_the_service() {
        for (call, endpoint) in [
            ("aws s3 ls", "http://127.0.0.1:8777"),
            ("aws --region s3 ec2 describe-instances", "http://127.0.0.1:8773"),
            ("aws --debug --output text s3api list-buckets --query s3", "http://127.0.0.1:8777"),
            ("aws sts get-caller-identity", "http://127.0.0.1:8773"),
            ("aws --endpoint-url http://else s3 ls", "http://else"),
        ] {
            assert_eq!(second_word("2.9.19", call), endpoint, "{call}");
        }
    }

    #[test]
    fn releases_that_know_aws_endpoint_url_are_left_alone() {
        for (release, old) in [
            ("1.45.11", false),
            ("1.29.0", false),
            ("1.28.85", true),
            ("1.9.0", true),
            ("2.9.19", true),
            ("2.12.7", true),
            ("2.13.0", false),
            ("2.27.1", false),
            ("3.0.0", false),
        ] {
            assert_eq!(second_word(release, "aws s3 ls") != "ls", old, "{release}");
        }
    }

    #[test]
    fn nothing_a_shell_would_act_on_stays_unquoted() {
        let keys = AccountKeys {
            account: "000000000001".to_owned(),
            name: "admin".to_owned(),
            access_key: "AKIA".to_owned(),
            secret: Secret("a/b+c'$(reboot)".to_owned()),
            cloud_certificate_pem: String::new(),
            ca_pem: String::new(),
            region: "mallee-1".to_owned(),
            signing_certificates: 0,
        };
        let script = format!("{}\nprintf %s \"$AWS_SECRET_ACCESS_KEY\"", lines(&keys, &urls()));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a/b+c'$(reboot)");
    }
}
