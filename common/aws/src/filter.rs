//! Describe filters: OR within a filter's values, AND between filters, `*` and `?` with `\` as escape, case-sensitive.
//!
//! A resource lists its filterable attributes once, beside its answer, so the two cannot drift apart:
//!
//! ```
//! use std::borrow::Cow;
//! use mallee_aws::filter::{Attribute, Filter, Filters, Tagged};
//! struct Volume { id: String, state: &'static str, tags: Vec<(String, String)> }
//! impl Tagged for Volume {
//!     fn tags(&self) -> impl Iterator<Item = (&str, &str)> { self.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())) }
//! }
//! const ATTRIBUTES: &[Attribute<Volume>] = &[
//!     ("volume-id", |volume| vec![Cow::from(&volume.id)]),
//!     ("status", |volume| vec![volume.state.into()]),
//! ];
//! let asked = [Filter { name: "status".into(), value: vec!["avail*".into()] }];
//! let filters = Filters::compile(&asked, ATTRIBUTES).unwrap();
//! let volume = Volume { id: "vol-1".into(), state: "available", tags: vec![] };
//! assert!(filters.matches(&volume));
//! ```

use std::borrow::Cow;

use serde::Deserialize;

use crate::error::AwsError;

/// `Filter.N.Name` and `Filter.N.Value.M`. In an input struct: `#[serde(default)] filter: Vec<Filter>`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Filter {
    pub name: String,
    #[serde(default)]
    pub value: Vec<String>,
}

/// A filter's name and where its values are in a row. Several values match if any does.
pub type Attribute<Row> = (&'static str, for<'r> fn(&'r Row) -> Vec<Cow<'r, str>>);

/// What `tag:KEY`, `tag-key` and `tag-value` look at.
pub trait Tagged {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)>;
}

/// AWS' bound on the values of one request.
const MAX_VALUES: usize = 200;

enum Subject<Row> {
    Attribute(for<'r> fn(&'r Row) -> Vec<Cow<'r, str>>),
    TagNamed(String),
    TagKey,
    TagValue,
}

/// The filters of one request, checked against a resource's table.
pub struct Filters<Row> {
    all: Vec<(Subject<Row>, Vec<String>)>,
}

impl<Row> Filters<Row> {
    pub fn compile(asked: &[Filter], table: &[Attribute<Row>]) -> Result<Self, AwsError> {
        if asked.iter().map(|filter| filter.value.len()).sum::<usize>() > MAX_VALUES {
            return Err(AwsError::bad_request(
                "FilterLimitExceeded",
                format!("The request has more than {MAX_VALUES} filter values"),
            ));
        }
        let mut all = Vec::with_capacity(asked.len());
        for Filter { name, value } in asked {
            let subject = match name.as_str() {
                "tag-key" => Subject::TagKey,
                "tag-value" => Subject::TagValue,
                _ => match (name.strip_prefix("tag:"), table.iter().find(|(known, _)| known == name)) {
                    (Some(key), _) if !key.is_empty() => Subject::TagNamed(key.to_string()),
                    (_, Some((_, values))) => Subject::Attribute(*values),
                    _ => return Err(AwsError::invalid_parameter_value(format!("The filter '{name}' is invalid"))),
                },
            };
            if value.is_empty() {
                return Err(AwsError::invalid_parameter_value(format!("The filter '{name}' has no values")));
            }
            all.push((subject, value.clone()));
        }
        Ok(Filters { all })
    }

    pub fn matches(&self, row: &Row) -> bool
    where
        Row: Tagged,
    {
        self.all.iter().all(|(subject, patterns)| {
            let hit = |text: &str| patterns.iter().any(|pattern| wildcard_match(pattern, text));
            match subject {
                Subject::Attribute(values) => values(row).iter().any(|text| hit(text)),
                Subject::TagNamed(key) => row.tags().any(|(name, text)| name == key && hit(text)),
                Subject::TagKey => row.tags().any(|(name, _)| hit(name)),
                Subject::TagValue => row.tags().any(|(_, text)| hit(text)),
            }
        })
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// `*` is any run of characters, `?` any one, `\` takes the next as it is. Takes time in pattern × text, never more.
pub fn wildcard_match(pattern: &str, text: &str) -> bool {
    #[derive(Clone, Copy)]
    enum Piece {
        Any,
        One,
        Char(char),
    }
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::Any,
            '?' => Piece::One,
            '\\' => Piece::Char(chars.next().unwrap_or('\\')),
            c => Piece::Char(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    // Greedy with one retry point: the last `*` seen and how much of the text it swallowed.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        let fits = match pieces.get(p) {
            Some(Piece::Any) => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(Piece::One) => true,
            Some(Piece::Char(c)) => *c == text[t],
            None => false,
        };
        if fits {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, swallowed)) = star {
            star = Some((after, swallowed + 1));
            (p, t) = (after, swallowed + 1);
        } else {
            return false;
        }
    }
    pieces[p..].iter().all(|piece| matches!(piece, Piece::Any))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(&'static str, Vec<(&'static str, &'static str)>);

    impl Tagged for Row {
        fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
            self.1.iter().copied()
        }
    }

    const TABLE: &[Attribute<Row>] = &[("state", |row| vec![row.0.into()])];

    fn filter(name: &str, values: &[&str]) -> Filter {
        Filter { name: name.into(), value: values.iter().map(|v| v.to_string()).collect() }
    }

    #[test]
    fn values_are_or_and_filters_are_and() {
        let row = Row("running", vec![("Name", "web-1"), ("env", "")]);
        let table: &[(&[Filter], bool)] = &[
            (&[], true),
            (&[filter("state", &["stopped", "running"])], true),
            (&[filter("state", &["Running"])], false),
            (&[filter("state", &["run*"]), filter("tag:Name", &["db-*", "web-?"])], true),
            (&[filter("state", &["run*"]), filter("tag:Name", &["db-*"])], false),
            (&[filter("tag-key", &["env"])], true),
            (&[filter("tag:env", &["*"])], true),
            (&[filter("tag:env", &["?*"])], false),
            (&[filter("tag-value", &["web-1"])], true),
            (&[filter("tag:name", &["web-1"])], false),
        ];
        for (asked, expected) in table {
            assert_eq!(Filters::compile(asked, TABLE).unwrap().matches(&row), *expected, "{asked:?}");
        }
    }

    #[test]
    fn wildcards_match_as_documented() {
        let table = [
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            (r"\*amazon\?\\", r"*amazon?\", true),
            (r"\*", "x", false),
            ("é?", "éü", true),
            (r"a\", r"a\", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(wildcard_match(pattern, text), expected, "{pattern} {text}");
        }
        let hostile = "*a".repeat(200);
        assert!(!wildcard_match(&hostile, &"a".repeat(150)));
    }

    #[test]
    fn an_unknown_filter_is_refused_by_name() {
        let error = Filters::compile(&[filter("colour", &["red"])], TABLE).err().unwrap();
        assert_eq!(
            (error.code.as_ref(), error.message.as_str()),
            ("InvalidParameterValue", "The filter 'colour' is invalid")
        );
        assert!(Filters::compile(&[filter("tag:", &["x"])], TABLE).is_err());
        let many: Vec<&str> = vec!["x"; 201];
        assert_eq!(Filters::compile(&[filter("state", &many)], TABLE).err().unwrap().code, "FilterLimitExceeded");
    }
}
