//! The serde side of [`super::from_params`]: parameters become a tree by their dots, and structs are read from the tree.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use super::{Flavor, Params, belongs_to_the_envelope};
use crate::error::AwsError;

/// EC2's deepest parameter has seven segments; the bound keeps hostile names from deep recursion.
const MAX_DEPTH: usize = 16;

pub(super) fn read<T: de::DeserializeOwned>(params: &Params, flavor: Flavor) -> Result<T, AwsError> {
    let mut root = Node::default();
    for (name, value) in params.iter() {
        if belongs_to_the_envelope(name) {
            continue;
        }
        if name.split('.').count() > MAX_DEPTH {
            return Err(AwsError::unknown_parameter(name));
        }
        let mut node = &mut root;
        for segment in name.split('.') {
            node = node.children.entry(segment).or_default();
        }
        node.value = Some(value);
    }
    T::deserialize(Reader { node: &root, flavor }).map_err(ReadError::into_aws)
}

/// `Filter.1.Name=x` is `Filter` → `1` → `Name` with the value `x`.
#[derive(Default)]
struct Node<'p> {
    value: Option<&'p str>,
    children: BTreeMap<&'p str, Node<'p>>,
}

impl<'p> Node<'p> {
    /// The dotted name, below this node, of some parameter that was really sent.
    fn first_leaf(&self) -> String {
        let mut path = String::new();
        let mut node = self;
        while node.value.is_none() {
            let Some((segment, child)) = node.children.first_key_value() else { break };
            push_segment(&mut path, segment);
            node = child;
        }
        path
    }

    /// The elements of a list, by their numbers. `Name=` alone is botocore's way to send an empty list.
    fn elements(&self, flavor: Flavor, wrapper: &'static str) -> Result<Vec<(String, &Node<'p>)>, ReadError> {
        if self.value.is_some_and(|value| !value.is_empty()) {
            return Err(ReadError::unknown(""));
        }
        let (holder, prefix) = match self.children.get(wrapper) {
            Some(wrapped) if flavor == Flavor::Query => {
                if let Some((other, node)) = self.children.iter().find(|(segment, _)| **segment != wrapper) {
                    return Err(ReadError::unknown(&node.first_leaf()).under(other));
                }
                if wrapped.value.is_some_and(|value| !value.is_empty()) {
                    return Err(ReadError::unknown(wrapper));
                }
                (wrapped, Some(wrapper))
            }
            _ => (self, None),
        };
        let mut elements = Vec::with_capacity(holder.children.len());
        for (segment, node) in &holder.children {
            let mut path = prefix.map(str::to_string).unwrap_or_default();
            push_segment(&mut path, segment);
            match index(segment) {
                Some(number) => elements.push((number, path, node)),
                None => return Err(ReadError::unknown(&node.first_leaf()).under(&path)),
            }
        }
        elements.sort_by_key(|(number, _, _)| *number);
        Ok(elements.into_iter().map(|(_, path, node)| (path, node)).collect())
    }
}

/// `1`, `2`, ...; no sign, no leading zero, so that no two spellings name one element.
fn index(segment: &str) -> Option<u32> {
    let plain = segment.bytes().all(|byte| byte.is_ascii_digit()) && !segment.starts_with('0');
    if plain { segment.parse().ok() } else { None }
}

fn push_segment(path: &mut String, segment: &str) {
    if !path.is_empty() && !segment.is_empty() {
        path.push('.');
    }
    path.push_str(segment);
}

/// What went wrong and where; the path grows from the inside out while the error travels up.
#[derive(Debug)]
struct ReadError {
    path: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Unknown,
    Missing,
    Invalid { value: Option<String>, detail: String },
    Coded { code: String, message: String },
}

impl ReadError {
    fn unknown(path: &str) -> Self {
        ReadError { path: path.to_string(), what: What::Unknown }
    }

    fn invalid(value: &str, detail: impl Into<String>) -> Self {
        ReadError { path: String::new(), what: What::Invalid { value: Some(value.to_string()), detail: detail.into() } }
    }

    fn under(mut self, segment: &str) -> Self {
        let mut path = segment.to_string();
        push_segment(&mut path, &self.path);
        self.path = path;
        self
    }

    fn about(mut self, sent: &str) -> Self {
        if let What::Invalid { value: value @ None, .. } = &mut self.what {
            *value = Some(sent.to_string());
        }
        self
    }

    fn into_aws(self) -> AwsError {
        match self.what {
            What::Unknown => AwsError::unknown_parameter(&self.path),
            What::Missing => AwsError::missing_parameter(&self.path),
            What::Invalid { value, detail } => {
                let shown: String = value.unwrap_or_default().chars().take(64).collect();
                AwsError::invalid_parameter_value(format!(
                    "Value ({shown}) for parameter {} is invalid. {detail}",
                    self.path
                ))
            }
            What::Coded { code, message } => AwsError::bad_request(code, message),
        }
    }
}

impl std::error::Error for ReadError {}

impl Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.path, self.what)
    }
}

impl de::Error for ReadError {
    fn custom<T: Display>(message: T) -> Self {
        let message = message.to_string();
        let what = match message.split_once(": ") {
            Some((code, rest)) if is_error_code(code) => {
                What::Coded { code: code.to_string(), message: rest.to_string() }
            }
            _ => What::Invalid { value: None, detail: message },
        };
        ReadError { path: String::new(), what }
    }

    fn missing_field(field: &'static str) -> Self {
        ReadError { path: field.to_string(), what: What::Missing }
    }

    fn unknown_field(field: &str, _expected: &'static [&'static str]) -> Self {
        ReadError::unknown(field)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        ReadError::invalid(variant, format!("Expected one of: {}", expected.join(", ")))
    }
}

/// `InvalidInstanceID.Malformed`: capitalised words with at least one dot between.
fn is_error_code(text: &str) -> bool {
    text.contains('.')
        && text.split('.').all(|word| {
            word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric())
        })
}

#[derive(Clone, Copy)]
struct Reader<'a, 'p> {
    node: &'a Node<'p>,
    flavor: Flavor,
}

impl<'p> Reader<'_, 'p> {
    /// The value of a parameter that must be a plain one. A list of one is as good where AWS takes it so, in EC2: boto 2 says
    /// `InstanceId.1` to GetConsoleOutput.
    fn scalar(&self) -> Result<&'p str, ReadError> {
        if let (Flavor::Ec2, None, 1, Some(only)) =
            (self.flavor, self.node.value, self.node.children.len(), self.node.children.get("1"))
            && let (Some(value), true) = (only.value, only.children.is_empty())
        {
            return Ok(value);
        }
        if let Some((segment, child)) = self.node.children.first_key_value() {
            return Err(ReadError::unknown(&child.first_leaf()).under(segment));
        }
        self.node.value.ok_or_else(|| ReadError { path: String::new(), what: What::Missing })
    }

    fn number<T: std::str::FromStr>(&self) -> Result<T, ReadError> {
        let text = self.scalar()?;
        text.parse().map_err(|_| ReadError::invalid(text, "Expected a number in range."))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            visitor.$visit(self.number()?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_, '_> {
    type Error = ReadError;

    numbers! {
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32, deserialize_i64 visit_i64,
        deserialize_u8 visit_u8, deserialize_u16 visit_u16, deserialize_u32 visit_u32, deserialize_u64 visit_u64,
        deserialize_f32 visit_f32, deserialize_f64 visit_f64,
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.scalar()?;
        match text {
            "true" | "True" | "TRUE" | "1" => visitor.visit_bool(true),
            "false" | "False" | "FALSE" | "0" => visitor.visit_bool(false),
            _ => Err(ReadError::invalid(text, "Expected true or false.")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.scalar()?;
        visitor.visit_str(text).map_err(|error: ReadError| error.about(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    /// Blobs are base64 on the wire.
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        use base64::Engine as _;
        let text = self.scalar()?;
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&compact)
            .map_err(|_| ReadError::invalid(text, "Expected base64."))?;
        visitor.visit_byte_buf(bytes)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = self.scalar()?;
        if text.is_empty() { visitor.visit_unit() } else { Err(ReadError::invalid(text, "Expected no value.")) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let elements = self.node.elements(self.flavor, "member")?;
        visitor.visit_seq(Elements { rest: elements.into_iter(), flavor: self.flavor })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deserialize_seq(visitor)
    }

    /// Maps are lists of entries with `key` and `value` (`Key`, `Value` are read too).
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let mut entries = Vec::new();
        for (path, node) in self.node.elements(self.flavor, "entry")? {
            let member = |lower: &'static str, upper: &'static str| {
                node.children
                    .get(lower)
                    .or_else(|| node.children.get(upper))
                    .ok_or_else(|| ReadError { path: lower.to_string(), what: What::Missing }.under(&path))
            };
            let (key, value) = (member("key", "Key")?, member("value", "Value")?);
            if let Some(stray) = node.children.keys().find(|k| !["key", "Key", "value", "Value"].contains(k)) {
                return Err(ReadError::unknown(stray).under(&path));
            }
            entries.push((path, key, value));
        }
        visitor.visit_map(Entries { rest: entries.into_iter(), value: None, flavor: self.flavor })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        if self.node.value.is_some_and(|value| !value.is_empty()) {
            return Err(ReadError::unknown(""));
        }
        visitor.visit_map(Members { rest: self.node.children.iter(), current: None, flavor: self.flavor })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let text = self.scalar()?;
        let variant: StrDeserializer<'_, ReadError> = text.into_deserializer();
        visitor.visit_enum(variant).map_err(|error| error.about(text))
    }

    /// Reached only by types that take anything, which then see what the wire has: text.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.node.children.is_empty() {
            self.deserialize_str(visitor)
        } else {
            self.deserialize_struct("", &[], visitor)
        }
    }

    /// A field the struct does not have.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::unknown(&self.node.first_leaf()))
    }
}

struct Members<'a, 'p> {
    rest: std::collections::btree_map::Iter<'a, &'p str, Node<'p>>,
    current: Option<(&'p str, &'a Node<'p>)>,
    flavor: Flavor,
}

impl<'de> de::MapAccess<'de> for Members<'_, '_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((segment, node)) = self.rest.next() else { return Ok(None) };
        self.current = Some((segment, node));
        let key: StrDeserializer<'_, ReadError> = (*segment).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((segment, node)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reader { node, flavor: self.flavor }).map_err(|error| error.under(segment))
    }
}

struct Elements<'a, 'p> {
    rest: std::vec::IntoIter<(String, &'a Node<'p>)>,
    flavor: Flavor,
}

impl<'de> de::SeqAccess<'de> for Elements<'_, '_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some((path, node)) = self.rest.next() else { return Ok(None) };
        seed.deserialize(Reader { node, flavor: self.flavor }).map(Some).map_err(|error| error.under(&path))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

type Entry<'a, 'p> = (String, &'a Node<'p>, &'a Node<'p>);

struct Entries<'a, 'p> {
    rest: std::vec::IntoIter<Entry<'a, 'p>>,
    value: Option<(String, &'a Node<'p>)>,
    flavor: Flavor,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((path, key, value)) = self.rest.next() else { return Ok(None) };
        let read = seed
            .deserialize(Reader { node: key, flavor: self.flavor })
            .map_err(|error| error.under("key").under(&path))?;
        self.value = Some((path, value));
        Ok(Some(read))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((path, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Reader { node, flavor: self.flavor }).map_err(|error| error.under("value").under(&path))
    }
}
