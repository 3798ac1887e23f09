//! Parameters that AWS has and this cloud does not: taken in whatever shape they come, and refused by name.

use mallee_aws::AwsError;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::Outcome;

/// A parameter nobody carries out; `empty` when it was sent without anything in it.
#[derive(Debug, Clone, Copy)]
pub struct Unsupported {
    empty: bool,
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = Unsupported;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a parameter")
            }
            fn visit_str<E>(self, text: &str) -> Result<Unsupported, E> {
                Ok(Unsupported { empty: text.is_empty() })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unsupported, A::Error> {
                let mut empty = true;
                while let Some((_, inner)) = map.next_entry::<String, Unsupported>()? {
                    empty &= inner.empty;
                }
                Ok(Unsupported { empty })
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// Refuses the first of these that was sent with something in it.
pub fn refuse(parameters: &[(&str, Option<Unsupported>)]) -> Outcome<()> {
    match parameters.iter().find(|(_, sent)| sent.is_some_and(|s| !s.empty)) {
        Some((name, _)) => {
            Err(AwsError::unsupported(format!("The parameter {name} is not supported by this cloud")).into())
        }
        None => Ok(()),
    }
}

/// Refuses a switch that is on and cannot be.
pub fn refuse_set(name: &str, sent: Option<bool>) -> Outcome<()> {
    match sent {
        Some(true) => Err(AwsError::unsupported(format!("{name}=true is not supported by this cloud")).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_aws::params::{Flavor, Params, from_params};

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Input {
        launch_template: Option<Unsupported>,
        license: Option<Unsupported>,
    }

    #[test]
    fn any_shape_is_taken_and_only_what_says_something_is_refused() {
        for (sent, refused) in [
            ("", None),
            ("License=", None),
            ("License.1.Arn=x", Some("License")),
            ("LaunchTemplate.LaunchTemplateId=lt-1&LaunchTemplate.Version=2", Some("LaunchTemplate")),
        ] {
            let input: Input = from_params(&Params::parse(sent.as_bytes()).unwrap(), Flavor::Ec2).unwrap();
            let outcome = refuse(&[("LaunchTemplate", input.launch_template), ("License", input.license)]);
            let message = outcome.err().map(|e| e.answer.message);
            assert_eq!(
                message,
                refused.map(|name| format!("The parameter {name} is not supported by this cloud")),
                "{sent}"
            );
        }
    }
}
