//! What the Query services have in common: a table of actions, and the way from parameters to an answer.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use mallee_aws::{
    AwsError,
    params::{Flavor, Params, from_params},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Cloud, Outcome, Principal, principal};

/// A request on its way through its rule.
pub struct Call {
    pub cloud: Arc<Cloud>,
    pub principal: Principal,
    pub params: Params,
    pub request_id: String,
    /// Milliseconds; the same for the whole request.
    pub now: i64,
}

impl Call {
    pub fn account(&self) -> &str {
        &self.principal.account
    }
}

/// How a service spells requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// EC2's own.
    Ec2,
    /// Everybody else's, under this namespace.
    Query { xmlns: &'static str },
}

/// A Query service: its name in ARNs and policies, and its table.
pub struct Service {
    /// `ec2`: also the name in a signature's scope and before the colon of a policy's action.
    pub name: &'static str,
    pub dialect: Dialect,
    /// Tables by resource, in plain sight.
    pub tables: &'static [&'static [Action]],
}

impl Service {
    pub fn action(&self, name: &str) -> Option<&'static Action> {
        self.tables.iter().flat_map(|t| t.iter()).find(|a| a.name == name)
    }
}

/// One action: what `actions![]` makes of a line.
pub struct Action {
    pub name: &'static str,
    pub run: for<'a> fn(&'a Call, Dialect, &'a str) -> BoxFuture<'a, Outcome<String>>,
    /// Top-level parameters, as they are spelled on the wire.
    pub parameters: fn() -> &'static [&'static str],
}

/// Lists a resource's actions: `actions![CreateKeyPair => create, ...]`, where `CreateKeyPair` is the input struct and
/// `create` is `async fn(&Call, CreateKeyPair) -> Outcome<impl Serialize>`.
#[macro_export]
macro_rules! actions {
    ($($action:ident => $rule:path),* $(,)?) => {
        /// The actions of this resource.
        pub const ACTIONS: &[$crate::service::Action] = &[$(
            $crate::service::Action {
                name: stringify!($action),
                run: |call, dialect, version| Box::pin(async move {
                    let input: $action = $crate::service::input(call, dialect)?;
                    let answer = $rule(call, input).await?;
                    $crate::service::render(stringify!($action), dialect, version, call, &answer)
                }),
                parameters: $crate::service::fields_of::<$action>,
            }
        ),*];
    };
}

pub fn input<T: DeserializeOwned>(call: &Call, dialect: Dialect) -> Outcome<T> {
    let flavor = match dialect {
        Dialect::Ec2 => Flavor::Ec2,
        Dialect::Query { .. } => Flavor::Query,
    };
    Ok(from_params(&call.params, flavor)?)
}

pub fn render<T: Serialize>(action: &str, dialect: Dialect, version: &str, call: &Call, answer: &T) -> Outcome<String> {
    Ok(match dialect {
        Dialect::Ec2 => mallee_aws::answer::to_ec2_xml(action, version, &call.request_id, answer)?,
        Dialect::Query { xmlns } => mallee_aws::answer::to_query_xml(action, xmlns, &call.request_id, answer)?,
    })
}

/// Runs the action of `service` that the parameters name: authorises it, then hands it to its rule.
pub async fn run(service: &Service, call: &Call) -> Outcome<String> {
    let name = call.params.action().ok_or_else(|| AwsError::missing_parameter("Action"))?;
    let version = call.params.version().unwrap_or_default();
    let action = service.action(name).ok_or_else(|| AwsError::invalid_action(name))?;
    principal::allow(&call.principal, &format!("{}:{name}", service.name))?;
    (action.run)(call, service.dialect, version).await
}

/// The wire names of a struct's fields, from its `Deserialize`.
pub fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // The lister takes the names and then refuses to go on: the error is expected.
    let _ = T::deserialize(fields::Lister(&mut found));
    found
}

mod fields {
    //! A deserializer that only notes which fields a struct asks for.
    use serde::de::{Deserializer, Error, Visitor, value};

    pub struct Lister<'a>(pub &'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Lister<'_> {
        type Error = value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("only the names are wanted"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            Err(value::Error::custom("only the names are wanted"))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
}
