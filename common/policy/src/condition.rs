//! Conditions: what must be so about a request for a statement to count.
//!
//! With one value in the request, an operator holds when the value fits any of the document's; a negated one when it
//! fits none. With several, `ForAllValues:` asks that of each of them (and holds when there is none), `ForAnyValue:` of
//! one of them (and fails when there is none). So `ForAllValues:StringNotEquals` is *not* the negation of
//! `ForAllValues:StringEquals`: every value must be none of the document's.

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use time::{OffsetDateTime, format_description::well_known::Iso8601};

use crate::{
    document::{Malformed, Version},
    json::Json,
    pattern::{Pattern, Wildcards, exactly, whatever_case},
};

/// What is known about a request, by key. Keys do not mind case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context(BTreeMap<String, Vec<String>>);

impl Context {
    /// Adds a value; a key may have several.
    pub fn add(&mut self, key: &str, value: impl Into<String>) {
        self.0.entry(key.to_ascii_lowercase()).or_default().push(value.into());
    }
    /// The key is there, without a value.
    pub fn add_empty(&mut self, key: &str) {
        self.0.entry(key.to_ascii_lowercase()).or_default();
    }
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(&key.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default()
    }
    fn has(&self, key: &str) -> bool {
        !self.values(key).is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    One,
    All,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    String,
    StringIgnoreCase,
    StringLike,
    Numeric(Order),
    Date(Order),
    Bool,
    Binary,
    Ip,
    Arn,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Equals,
    Less,
    LessOrEquals,
    Greater,
    GreaterOrEquals,
}

impl Order {
    fn holds<T: PartialOrd>(self, left: &T, right: &T) -> bool {
        match self {
            Order::Equals => left == right,
            Order::Less => left < right,
            Order::LessOrEquals => left <= right,
            Order::Greater => left > right,
            Order::GreaterOrEquals => left >= right,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    quantifier: Quantifier,
    pub comparison: Comparison,
    pub negated: bool,
    if_exists: bool,
}

/// The operators, their comparison, and whether they are negated.
const OPERATORS: &[(&str, Comparison, bool)] = &[
    ("StringEquals", Comparison::String, false),
    ("StringNotEquals", Comparison::String, true),
    ("StringEqualsIgnoreCase", Comparison::StringIgnoreCase, false),
    ("StringNotEqualsIgnoreCase", Comparison::StringIgnoreCase, true),
    ("StringLike", Comparison::StringLike, false),
    ("StringNotLike", Comparison::StringLike, true),
    ("NumericEquals", Comparison::Numeric(Order::Equals), false),
    ("NumericNotEquals", Comparison::Numeric(Order::Equals), true),
    ("NumericLessThan", Comparison::Numeric(Order::Less), false),
    ("NumericLessThanEquals", Comparison::Numeric(Order::LessOrEquals), false),
    ("NumericGreaterThan", Comparison::Numeric(Order::Greater), false),
    ("NumericGreaterThanEquals", Comparison::Numeric(Order::GreaterOrEquals), false),
    ("DateEquals", Comparison::Date(Order::Equals), false),
    ("DateNotEquals", Comparison::Date(Order::Equals), true),
    ("DateLessThan", Comparison::Date(Order::Less), false),
    ("DateLessThanEquals", Comparison::Date(Order::LessOrEquals), false),
    ("DateGreaterThan", Comparison::Date(Order::Greater), false),
    ("DateGreaterThanEquals", Comparison::Date(Order::GreaterOrEquals), false),
    ("Bool", Comparison::Bool, false),
    ("BinaryEquals", Comparison::Binary, false),
    ("IpAddress", Comparison::Ip, false),
    ("NotIpAddress", Comparison::Ip, true),
    ("ArnEquals", Comparison::Arn, false),
    ("ArnLike", Comparison::Arn, false),
    ("ArnNotEquals", Comparison::Arn, true),
    ("ArnNotLike", Comparison::Arn, true),
    ("Null", Comparison::Null, false),
];

impl Operator {
    /// `ForAnyValue:StringLikeIfExists`; `None` for what is no operator.
    pub fn parse(text: &str) -> Option<Self> {
        let (quantifier, rest) = match text.split_once(':') {
            None => (Quantifier::One, text),
            Some(("ForAllValues", rest)) => (Quantifier::All, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::Any, rest),
            Some(_) => return None,
        };
        let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
        let (_, comparison, negated) = *OPERATORS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))?;
        if comparison == Comparison::Null && (if_exists || quantifier != Quantifier::One) {
            return None;
        }
        Some(Self { quantifier, comparison, negated, if_exists })
    }

    /// Whether it also holds for a request without the key.
    pub(crate) fn is_lax(self) -> bool {
        self.if_exists || self.quantifier == Quantifier::All
    }
}

/// One operator, one key, the document's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// `None`: one this version does not know. Documents with such are refused when they come; one that is in the
    /// store all the same allows nothing, and denies what it might.
    pub operator: Option<Operator>,
    pub key: String,
    pub values: Vec<String>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Yes,
    No,
    /// Nobody knows what was meant.
    Unknown,
}

impl Condition {
    pub(crate) fn read_all(json: Json) -> Result<Vec<Condition>, Malformed> {
        let malformed = || Malformed("Invalid policy syntax.".into());
        let Json::Object(operators) = json else { return Err(malformed()) };
        let mut conditions = Vec::new();
        for (name, keys) in operators {
            let operator =
                Operator::parse(&name).ok_or_else(|| Malformed(format!("Invalid Condition type : {name}")))?;
            let Json::Object(keys) = keys else { return Err(malformed()) };
            for (key, values) in keys {
                let values = values.texts().ok_or_else(malformed)?;
                let condition = Condition { operator: Some(operator), key, values };
                condition.check()?;
                conditions.push(condition);
            }
        }
        Ok(conditions)
    }

    /// Whether the document's values are such as the operator can compare. Those with variables show later.
    fn check(&self) -> Result<(), Malformed> {
        let Some(operator) = self.operator else { return Ok(()) };
        let good = |value: &String| {
            value.contains("${")
                || match operator.comparison {
                    Comparison::Numeric(_) => number(value).is_some(),
                    Comparison::Date(_) => instant(value).is_some(),
                    Comparison::Bool | Comparison::Null => truth(value).is_some(),
                    Comparison::Binary => STANDARD.decode(value).is_ok(),
                    Comparison::Ip => Network::parse(value).is_some(),
                    Comparison::Arn => value == "*" || value.splitn(6, ':').count() == 6,
                    Comparison::String | Comparison::StringIgnoreCase | Comparison::StringLike => true,
                }
        };
        match self.values.iter().find(|value| !good(value)) {
            None => Ok(()),
            Some(value) => Err(Malformed(format!("Invalid value {value} in the condition on {}", self.key))),
        }
    }

    pub(crate) fn holds(&self, context: &Context, version: Version) -> Held {
        let Some(operator) = self.operator else { return Held::Unknown };
        let yes = |held: bool| if held { Held::Yes } else { Held::No };
        if operator.comparison == Comparison::Null {
            let absent = !context.has(&self.key);
            return yes(self.values.iter().any(|value| truth(value) == Some(absent)));
        }
        let given = context.values(&self.key);
        if given.is_empty() {
            let vacuous = match operator.quantifier {
                Quantifier::All => true,
                Quantifier::Any => false,
                Quantifier::One => operator.negated,
            };
            return yes(operator.if_exists || vacuous);
        }
        let variables = (version == Version::V2012).then_some(context);
        let fits = |given: &String| self.values.iter().any(|wanted| compare(operator, given, wanted, variables));
        yes(match (operator.quantifier, operator.negated) {
            (Quantifier::All, negated) => given.iter().all(|given| fits(given) != negated),
            (Quantifier::Any, negated) => given.iter().any(|given| fits(given) != negated),
            (Quantifier::One, false) => given.iter().any(fits),
            (Quantifier::One, true) => !given.iter().any(fits),
        })
    }
}

/// Whether one value of the request fits one of the document, negation aside.
fn compare(operator: Operator, given: &str, wanted: &str, variables: Option<&Context>) -> bool {
    use Comparison::{Arn, Binary, Bool, Date, Ip, Null, Numeric, String, StringIgnoreCase, StringLike};
    let pattern = |wildcards| Pattern::read(wanted, wildcards, variables);
    let both = |read: fn(&str) -> Option<f64>, order: Order| {
        read(given).zip(read(wanted)).is_some_and(|(left, right)| order.holds(&left, &right))
    };
    match operator.comparison {
        String => pattern(Wildcards::AreNot).is_some_and(|p| p.matches(given, exactly)),
        StringIgnoreCase => pattern(Wildcards::AreNot).is_some_and(|p| p.matches(given, whatever_case)),
        StringLike => pattern(Wildcards::Are).is_some_and(|p| p.matches(given, exactly)),
        Numeric(order) => both(number, order),
        Date(order) => instant(given).zip(instant(wanted)).is_some_and(|(left, right)| order.holds(&left, &right)),
        Bool => truth(given).is_some_and(|given| truth(wanted) == Some(given)),
        Binary => STANDARD.decode(given).is_ok_and(|given| STANDARD.decode(wanted).is_ok_and(|w| w == given)),
        Ip => given.parse().ok().zip(Network::parse(wanted)).is_some_and(|(ip, network)| network.holds(ip)),
        Arn => arn_like(wanted, given, variables),
        Null => false,
    }
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|n: &f64| n.is_finite())
}

fn truth(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Seconds since 1970, or ISO 8601: a date, or date and time with an offset.
fn instant(text: &str) -> Option<OffsetDateTime> {
    if let Ok(seconds) = text.parse::<i64>() {
        return OffsetDateTime::from_unix_timestamp(seconds).ok();
    }
    OffsetDateTime::parse(text, &Iso8601::DEFAULT)
        .ok()
        .or_else(|| time::Date::parse(text, &Iso8601::DEFAULT).ok().map(|date| date.midnight().assume_utc()))
}

/// The six parts of an ARN are compared each for itself, so that a `*` in one does not reach into the next.
fn arn_like(wanted: &str, given: &str, variables: Option<&Context>) -> bool {
    if wanted == "*" {
        return true;
    }
    let (wanted, given): (Vec<&str>, Vec<&str>) = (wanted.splitn(6, ':').collect(), given.splitn(6, ':').collect());
    wanted.len() == 6
        && given.len() == 6
        && wanted.iter().zip(given).all(|(wanted, given)| {
            Pattern::read(wanted, Wildcards::Are, variables).is_some_and(|p| p.matches(given, exactly))
        })
}

/// `192.0.2.0/24`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    address: IpAddr,
    pub prefix: u32,
}

impl Network {
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().ok()?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(widest), |text| text.parse().ok().filter(|n| *n <= widest))?;
        Some(Self { address, prefix })
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    fn holds(&self, ip: IpAddr) -> bool {
        // An IPv4 client of a socket that speaks both comes as ::ffff:a.b.c.d.
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0);
                u32::from(network) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
                u128::from(network) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }
}
