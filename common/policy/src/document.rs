//! A policy document, read strictly: what is not in the grammar is refused, so that nothing is overlooked in it.

use crate::{
    Request,
    condition::{Condition, Context, Held},
    json::Json,
    pattern::{Pattern, Wildcards, exactly, like, whatever_case},
    principal::Principals,
};

/// Why a document is none, in a sentence for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Allow,
    Deny,
}

/// Variables came with 2012-10-17; before, `${` is just text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V2008,
    V2012,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub version: Version,
    pub id: Option<String>,
    pub statements: Vec<Statement>,
}

/// A list, or everything but a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed<T> {
    These(T),
    AllBut(T),
}

impl<T> Listed<T> {
    pub fn list(&self) -> &T {
        match self {
            Listed::These(list) | Listed::AllBut(list) => list,
        }
    }
    fn has(&self, found: impl Fn(&T) -> bool) -> bool {
        match self {
            Listed::These(list) => found(list),
            Listed::AllBut(list) => !found(list),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub sid: Option<String>,
    pub effect: Effect,
    /// None in the policies of users and groups, which are about those.
    pub principal: Option<Listed<Principals>>,
    pub actions: Listed<Vec<String>>,
    /// None in the policies of roles that say who may take them.
    pub resources: Option<Listed<Vec<String>>>,
    pub conditions: Vec<Condition>,
}

fn malformed(why: impl Into<String>) -> Malformed {
    Malformed(why.into())
}

fn object(json: Json) -> Result<Vec<(String, Json)>, Malformed> {
    match json {
        Json::Object(members) => Ok(members),
        _ => Err(malformed("Invalid policy syntax.")),
    }
}

fn text(json: Json, name: &str) -> Result<String, Malformed> {
    match json {
        Json::Scalar(text) => Ok(text),
        _ => Err(malformed(format!("The element {name} must be a string"))),
    }
}

fn texts(json: Json, name: &str) -> Result<Vec<String>, Malformed> {
    let empty = || malformed(format!("Missing required field {name} cannot be empty!"));
    json.texts().filter(|list| !list.is_empty()).ok_or_else(empty)
}

impl Policy {
    /// Reads a document.
    pub fn parse(document: &str) -> Result<Self, Malformed> {
        if !document.trim_start().starts_with('{') {
            return Err(malformed("Policies must be valid JSON and the first byte must be '{'"));
        }
        let json: Json = serde_json::from_str(document).map_err(|e| {
            let why = e.to_string();
            malformed(if why.contains("duplicate key") { why } else { "This policy contains invalid Json".into() })
        })?;
        let (mut version, mut id, mut statements) = (Version::V2008, None, None);
        for (name, value) in object(json)? {
            match name.as_str() {
                "Version" => {
                    version = match text(value, "Version")?.as_str() {
                        "2012-10-17" => Version::V2012,
                        "2008-10-17" => Version::V2008,
                        _ => return Err(malformed("The policy must contain a valid version string")),
                    }
                }
                "Id" => id = Some(text(value, "Id")?),
                "Statement" => {
                    let list = match value {
                        Json::List(list) => list,
                        one => vec![one],
                    };
                    statements = Some(list.into_iter().map(Statement::read).collect::<Result<Vec<_>, _>>()?);
                }
                name => return Err(malformed(format!("Unknown field {name}"))),
            }
        }
        let statements =
            statements.filter(|list| !list.is_empty()).ok_or_else(|| malformed("Missing required field Statement"))?;
        Ok(Self { version, id, statements })
    }
}

impl Statement {
    fn read(json: Json) -> Result<Self, Malformed> {
        let (mut sid, mut effect, mut principal) = (None, None, None);
        let (mut actions, mut resources, mut conditions) = (None, None, Vec::new());
        fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), Malformed> {
            if place.replace(value).is_some() {
                return Err(malformed(format!("A statement has {what} or Not{what}, not both")));
            }
            Ok(())
        }
        for (name, value) in object(json)? {
            match name.as_str() {
                "Sid" => sid = Some(text(value, "Sid")?),
                "Effect" => {
                    effect = Some(match text(value, "Effect")?.as_str() {
                        "Allow" => Effect::Allow,
                        "Deny" => Effect::Deny,
                        other => return Err(malformed(format!("Invalid effect: {other}"))),
                    });
                }
                "Principal" => once(&mut principal, Listed::These(Principals::read(value)?), "Principal")?,
                "NotPrincipal" => once(&mut principal, Listed::AllBut(Principals::read(value)?), "Principal")?,
                "Action" => once(&mut actions, Listed::These(texts(value, "Action")?), "Action")?,
                "NotAction" => once(&mut actions, Listed::AllBut(texts(value, "NotAction")?), "Action")?,
                "Resource" => once(&mut resources, Listed::These(texts(value, "Resource")?), "Resource")?,
                "NotResource" => once(&mut resources, Listed::AllBut(texts(value, "NotResource")?), "Resource")?,
                "Condition" => conditions = Condition::read_all(value)?,
                name => return Err(malformed(format!("Unknown field {name}"))),
            }
        }
        Ok(Self {
            sid,
            effect: effect.ok_or_else(|| malformed("Missing required field Effect"))?,
            principal,
            actions: actions.ok_or_else(|| malformed("Missing required field Action"))?,
            resources,
            conditions,
        })
    }

    /// Whether this is about the request. A condition nobody understands is taken for the worse.
    pub(crate) fn fits(&self, request: &Request<'_>, version: Version) -> bool {
        let variables = (version == Version::V2012).then_some(request.context);
        self.principal.as_ref().is_none_or(|principals| principals.has(|list| list.mean(request.who)))
            && self.actions.has(|list| list.iter().any(|pattern| like(pattern, request.action, whatever_case)))
            && self.resources.as_ref().is_none_or(|resources| {
                resources.has(|list| list.iter().any(|text| is_resource(text, request.resource, variables)))
            })
            && self.conditions.iter().all(|condition| match condition.holds(request.context, version) {
                Held::Yes => true,
                Held::No => false,
                Held::Unknown => self.effect == Effect::Deny,
            })
    }
}

fn is_resource(pattern: &str, resource: &str, variables: Option<&Context>) -> bool {
    Pattern::read(pattern, Wildcards::Are, variables).is_some_and(|pattern| pattern.matches(resource, exactly))
}

/// Whether an action's pattern covers a name.
pub fn covers(pattern: &str, action: &str) -> bool {
    like(pattern, action, whatever_case)
}
