//! Writing XML: escaping, and the serde serializer under [`crate::answer`] and [`crate::document`].
//!
//! One walk over a struct serves all three dialects; they differ only in how a list looks:
//! EC2 `<names><item/></names>`, Query `<Names><member/></Names>`, S3 the element repeated.
//! Fields come out in the order they are declared, because WSDL-typed clients read sequences.

use std::fmt::Display;

use base64::Engine as _;
use serde::Serialize;
use serde::ser;

pub(crate) const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// Appends `text` as XML character data, also fit for attribute values.
///
/// Characters XML 1.0 cannot hold are dropped; `\r` is written as a reference because parsers turn a bare one into `\n`,
/// and S3 keys may end in it.
pub fn escape_into(out: &mut String, text: &str) {
    out.reserve(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
            c => out.push(c),
        }
    }
}

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    /// `<name><item>..</item></name>`, or `member`; an empty list is an empty element.
    Wrapped { item: &'static str, entry: &'static str },
    /// `<name>..</name><name>..</name>`; an empty list is nothing.
    Repeated,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The whole answer is `()`: it has no members to write, and each dialect says "done" in its own way.
    #[error("the answer has no members")]
    Unit,
    #[error("{0}")]
    Shape(String),
}

fn shape(message: impl Into<String>) -> WriteError {
    WriteError::Shape(message.into())
}

impl ser::Error for WriteError {
    fn custom<T: Display>(message: T) -> Self {
        shape(message.to_string())
    }
}

/// Writes the members of `value`, a struct, with no element of its own around them.
pub(crate) fn write_members<T: Serialize + ?Sized>(
    out: &mut String,
    lists: Lists,
    value: &T,
) -> Result<(), WriteError> {
    value.serialize(Node { out, lists, tag: None })
}

/// Writes `value` as the element `tag`.
pub(crate) fn write_element<T: Serialize + ?Sized>(
    out: &mut String,
    lists: Lists,
    tag: &str,
    value: &T,
) -> Result<(), WriteError> {
    value.serialize(Node { out, lists, tag: Some(tag) })
}

/// Where the next value goes: inside a new element `tag`, or straight into the one already open.
struct Node<'a> {
    out: &'a mut String,
    lists: Lists,
    tag: Option<&'a str>,
}

impl Node<'_> {
    fn text(self, text: impl FnOnce(&mut String)) -> Result<(), WriteError> {
        let Some(tag) = self.tag else {
            return Err(shape("an answer is a struct, not a bare value"));
        };
        open(self.out, tag)?;
        self.out.push('>');
        text(self.out);
        close(self.out, tag);
        Ok(())
    }

    fn display(self, value: impl Display) -> Result<(), WriteError> {
        self.text(|out| out.push_str(&value.to_string()))
    }
}

fn open(out: &mut String, tag: &str) -> Result<(), WriteError> {
    // Element names come from our own declarations, except the keys of a flattened map.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    if !tag.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !tag.chars().all(plain) {
        return Err(shape(format!("{tag:?} is no element name")));
    }
    out.push('<');
    out.push_str(tag);
    Ok(())
}

fn close(out: &mut String, tag: &str) {
    out.push_str("</");
    out.push_str(tag);
    out.push('>');
}

/// A struct being written. The start tag stays open while attributes (`@name` fields) come.
struct Members<'a> {
    out: &'a mut String,
    lists: Lists,
    tag: Option<&'a str>,
    start_open: bool,
}

impl<'a> Members<'a> {
    fn begin(node: Node<'a>) -> Result<Self, WriteError> {
        if let Some(tag) = node.tag {
            open(node.out, tag)?;
        }
        Ok(Members { start_open: node.tag.is_some(), out: node.out, lists: node.lists, tag: node.tag })
    }

    fn finish_start(&mut self) {
        if self.start_open {
            self.out.push('>');
            self.start_open = false;
        }
    }

    fn member<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), WriteError> {
        if let Some(attribute) = name.strip_prefix('@') {
            if !self.start_open {
                return Err(shape(format!("attribute {attribute} after content")));
            }
            let mut text = String::new();
            write_element(&mut text, self.lists, "a", value)?;
            let inner = text.strip_prefix("<a>").and_then(|rest| rest.strip_suffix("</a>")).unwrap_or_default();
            self.out.push(' ');
            self.out.push_str(attribute);
            self.out.push_str("=\"");
            self.out.push_str(inner);
            self.out.push('"');
            return Ok(());
        }
        self.finish_start();
        write_element(self.out, self.lists, name, value)
    }

    fn end(mut self) {
        if let Some(tag) = self.tag {
            if self.start_open {
                self.out.push_str("/>");
            } else {
                close(self.out, tag);
            }
        }
        self.start_open = false;
    }
}

/// A list or a true map being written.
struct Items<'a> {
    out: &'a mut String,
    tag: &'a str,
    item: &'a str,
    lists: Lists,
    wrapped: bool,
    count: usize,
}

impl<'a> Items<'a> {
    fn begin(node: Node<'a>, map: MapOrList) -> Result<Self, WriteError> {
        let Some(tag) = node.tag else {
            return Err(shape("an answer is a struct, not a list"));
        };
        let (wrapped, item) = match (node.lists, map) {
            (Lists::Wrapped { item, .. }, MapOrList::List) => (true, item),
            (Lists::Wrapped { entry, .. }, MapOrList::Map) => (true, entry),
            (Lists::Repeated, _) => (false, tag),
        };
        if wrapped {
            open(node.out, tag)?;
        }
        Ok(Items { out: node.out, tag, item, lists: node.lists, wrapped, count: 0 })
    }

    fn next_item(&mut self) {
        if self.wrapped && self.count == 0 {
            self.out.push('>');
        }
        self.count += 1;
    }

    fn end(self) {
        if !self.wrapped {
            return;
        }
        if self.count == 0 {
            self.out.push_str("/>");
        } else {
            close(self.out, self.tag);
        }
    }
}

enum MapOrList {
    Map,
    List,
}

/// serde's derive calls `serialize_map(None)` for a struct with `#[serde(flatten)]`, `Some(len)` for a map.
enum MapWriter<'a> {
    Struct { members: Members<'a>, key: String },
    Map { items: Items<'a> },
}

impl<'a> ser::Serializer for Node<'a> {
    type Ok = ();
    type Error = WriteError;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = ser::Impossible<(), WriteError>;
    type SerializeMap = MapWriter<'a>;
    type SerializeStruct = Members<'a>;
    type SerializeStructVariant = ser::Impossible<(), WriteError>;

    fn serialize_bool(self, v: bool) -> Result<(), WriteError> {
        self.text(|out| out.push_str(if v { "true" } else { "false" }))
    }
    fn serialize_i8(self, v: i8) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_i16(self, v: i16) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_i32(self, v: i32) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_i64(self, v: i64) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_u8(self, v: u8) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_u16(self, v: u16) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_u32(self, v: u32) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_u64(self, v: u64) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_f32(self, v: f32) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_f64(self, v: f64) -> Result<(), WriteError> {
        self.display(v)
    }
    fn serialize_char(self, v: char) -> Result<(), WriteError> {
        self.serialize_str(v.encode_utf8(&mut [0; 4]))
    }
    fn serialize_str(self, v: &str) -> Result<(), WriteError> {
        self.text(|out| escape_into(out, v))
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<(), WriteError> {
        self.text(|out| base64::engine::general_purpose::STANDARD.encode_string(v, out))
    }
    fn serialize_none(self) -> Result<(), WriteError> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), WriteError> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), WriteError> {
        let Some(tag) = self.tag else { return Err(WriteError::Unit) };
        open(self.out, tag)?;
        self.out.push_str("/>");
        Ok(())
    }
    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), WriteError> {
        self.serialize_unit()
    }
    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result<(), WriteError> {
        self.serialize_str(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _name: &'static str, value: &T) -> Result<(), WriteError> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), WriteError> {
        let mut members = Members::begin(self)?;
        members.member(variant, value)?;
        members.end();
        Ok(())
    }
    fn serialize_seq(self, _len: Option<usize>) -> Result<Items<'a>, WriteError> {
        Items::begin(self, MapOrList::List)
    }
    fn serialize_tuple(self, _len: usize) -> Result<Items<'a>, WriteError> {
        Items::begin(self, MapOrList::List)
    }
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Items<'a>, WriteError> {
        Items::begin(self, MapOrList::List)
    }
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self::SerializeTupleVariant, WriteError> {
        Err(shape(format!("{name}: tuple variants have no XML shape")))
    }
    fn serialize_map(self, len: Option<usize>) -> Result<MapWriter<'a>, WriteError> {
        if len.is_none() || self.tag.is_none() {
            return Ok(MapWriter::Struct { members: Members::begin(self)?, key: String::new() });
        }
        Ok(MapWriter::Map { items: Items::begin(self, MapOrList::Map)? })
    }
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Members<'a>, WriteError> {
        Members::begin(self)
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        _index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self::SerializeStructVariant, WriteError> {
        Err(shape(format!("{name}: struct variants have no XML shape")))
    }
}

impl ser::SerializeStruct for Members<'_> {
    type Ok = ();
    type Error = WriteError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), WriteError> {
        self.member(key, value)
    }
    fn end(self) -> Result<(), WriteError> {
        Members::end(self);
        Ok(())
    }
}

impl ser::SerializeSeq for Items<'_> {
    type Ok = ();
    type Error = WriteError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        self.next_item();
        write_element(self.out, self.lists, self.item, value)
    }
    fn end(self) -> Result<(), WriteError> {
        Items::end(self);
        Ok(())
    }
}

impl ser::SerializeTuple for Items<'_> {
    type Ok = ();
    type Error = WriteError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        ser::SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<(), WriteError> {
        ser::SerializeSeq::end(self)
    }
}

impl ser::SerializeTupleStruct for Items<'_> {
    type Ok = ();
    type Error = WriteError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        ser::SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<(), WriteError> {
        ser::SerializeSeq::end(self)
    }
}

impl ser::SerializeMap for MapWriter<'_> {
    type Ok = ();
    type Error = WriteError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WriteError> {
        match self {
            MapWriter::Struct { key: name, .. } => {
                let mut text = String::new();
                write_element(&mut text, Lists::Repeated, "k", key)?;
                *name =
                    text.strip_prefix("<k>").and_then(|rest| rest.strip_suffix("</k>")).unwrap_or_default().to_string();
                Ok(())
            }
            MapWriter::Map { items } => {
                items.next_item();
                open(items.out, items.item)?;
                items.out.push('>');
                write_element(items.out, items.lists, "key", key)
            }
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        match self {
            MapWriter::Struct { members, key } => members.member(key, value),
            MapWriter::Map { items } => {
                write_element(items.out, items.lists, "value", value)?;
                close(items.out, items.item);
                Ok(())
            }
        }
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), WriteError> {
        self.serialize_key(key)?;
        self.serialize_value(value)
    }

    fn end(self) -> Result<(), WriteError> {
        match self {
            MapWriter::Struct { members, .. } => members.end(),
            MapWriter::Map { items } => items.end(),
        }
        Ok(())
    }
}
