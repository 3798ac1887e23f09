//! S3's XML documents: parsed under bounds, written with the service's namespace.
//!
//! Lists repeat their element: `contents: Vec<Contents>` with `rename = "Contents"`. A field named `@xsi:type` is an
//! attribute (declare attributes first). A `None` and an empty list are left out.

use quick_xml::events::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::AwsError;
use crate::xml::{DECLARATION, Lists, escape_into, write_members};

pub const CONTENT_TYPE: &str = "application/xml";
pub const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// How large a document may be before anything of it is believed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes: usize,
    pub elements: usize,
}

impl Limits {
    /// Any configuration document.
    pub const SMALL: Limits = Limits { bytes: 1 << 20, elements: 10_000 };
    /// DeleteObjects of 1,000 keys and CompleteMultipartUpload of 10,000 parts with checksums.
    pub const LARGE: Limits = Limits { bytes: 8 << 20, elements: 100_000 };
}

const MAX_DEPTH: usize = 32;

/// Reads the document with the root element `root`. Anything wrong is `MalformedXML`: not UTF-8, a DOCTYPE, an entity
/// besides XML's five, another root, too deep, too many elements, a second root, or not the shape of `T`.
pub fn parse<T: DeserializeOwned>(body: &[u8], root: &str, limits: Limits) -> Result<T, AwsError> {
    let text = check(body, root, limits).ok_or_else(AwsError::malformed_xml)?;
    // To quick-xml they end a line, as in XML 1.1, and become `\n`; in a key that would be another object's.
    let text = text.replace('\u{85}', "&#x85;").replace('\u{2028}', "&#x2028;");
    quick_xml::de::from_str(&text).map_err(|_| AwsError::malformed_xml())
}

/// Walks the whole document once without building anything.
fn check<'b>(body: &'b [u8], root: &str, limits: Limits) -> Option<&'b str> {
    if body.len() > limits.bytes {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = quick_xml::Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let (mut depth, mut elements, mut roots) = (0_usize, 0_usize, 0_usize);
    loop {
        let event = reader.read_event().ok()?;
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                elements += 1;
                if depth == 0 {
                    roots += 1;
                    if roots > 1 || start.local_name().as_ref() != root.as_bytes() {
                        return None;
                    }
                }
                for attribute in start.attributes() {
                    attribute.ok()?.unescape_value().ok()?;
                }
                if matches!(event, Event::Start(_)) {
                    depth += 1;
                }
                if depth > MAX_DEPTH || elements > limits.elements {
                    return None;
                }
            }
            Event::End(_) => depth = depth.checked_sub(1)?,
            Event::DocType(_) => return None,
            Event::GeneralRef(reference) => {
                let known = matches!(&reference[..], b"amp" | b"lt" | b"gt" | b"quot" | b"apos");
                if depth == 0 || (!known && reference.resolve_char_ref().ok()?.is_none()) {
                    return None;
                }
            }
            Event::Text(text) if depth == 0 && !text.iter().all(u8::is_ascii_whitespace) => return None,
            Event::CData(_) if depth == 0 => return None,
            // There they cannot be told to quick-xml.
            Event::CData(data) if std::str::from_utf8(data).ok()?.contains(['\u{85}', '\u{2028}']) => return None,
            Event::Eof => break,
            _ => {}
        }
    }
    (depth == 0 && roots == 1).then_some(text)
}

/// Writes `value`'s members inside `<root xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`.
pub fn render<T: Serialize + ?Sized>(root: &str, value: &T) -> Result<String, AwsError> {
    let mut out = String::with_capacity(512);
    out.push_str(DECLARATION);
    for piece in ["<", root, " xmlns=\"", NAMESPACE, "\">"] {
        out.push_str(piece);
    }
    write_members(&mut out, Lists::Repeated, value).map_err(|_| AwsError::internal())?;
    for piece in ["</", root, ">"] {
        out.push_str(piece);
    }
    Ok(out)
}

/// `<LocationConstraint>` is a document that is only text.
pub fn render_text(root: &str, text: &str) -> String {
    let mut out = String::from(DECLARATION);
    for piece in ["<", root, " xmlns=\"", NAMESPACE, "\">"] {
        out.push_str(piece);
    }
    escape_into(&mut out, text);
    for piece in ["</", root, ">"] {
        out.push_str(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "PascalCase")]
    struct Delete {
        #[serde(default)]
        object: Vec<Object>,
        quiet: Option<bool>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "PascalCase")]
    struct Object {
        key: String,
        version_id: Option<String>,
    }

    fn keys(xml: &str) -> Result<Vec<String>, AwsError> {
        let delete: Delete = parse(xml.as_bytes(), "Delete", Limits::LARGE)?;
        Ok(delete.object.into_iter().map(|object| object.key).collect())
    }

    #[test]
    fn keys_keep_their_spaces_and_odd_characters() {
        let xml = "<?xml version=\"1.0\"?>\n<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Object><Key> a \
                   b </Key></Object>\n <Object><Key>&lt;&amp;&#13;&#x20AC;'\"</Key></Object><Object><Key><![CDATA[<x>]]></Key></Object>\
                   <Quiet>true</Quiet></Delete>";
        assert_eq!(keys(xml).unwrap(), [" a b ", "<&\r€'\"", "<x>"]);
        let lines = "<Delete><Object><Key>a\u{2028}b\u{85}c\u{a0}\u{2029}</Key></Object></Delete>";
        assert_eq!(keys(lines).unwrap(), ["a\u{2028}b\u{85}c\u{a0}\u{2029}"]);
    }

    #[test]
    fn hostile_documents_are_malformed() {
        let deep = format!("<Delete>{}{}</Delete>", "<a>".repeat(40), "</a>".repeat(40));
        let wide = format!("<Delete>{}</Delete>", "<a/>".repeat(100_001));
        let table = [
            "",
            "x",
            "<Delete>",
            "<Delete></Delet>",
            "<Other/>",
            "<Delete/><Delete/>",
            "<Delete/>x",
            "<!DOCTYPE Delete [<!ENTITY a \"b\">]><Delete><Object><Key>&a;</Key></Object></Delete>",
            "<Delete><Object><Key>&a;</Key></Object></Delete>",
            "<Delete><Object></Object></Delete>",
            "<Delete><Quiet>perhaps</Quiet></Delete>",
            "<Delete x=\"&a;\"/>",
            "<Delete><Object><Key><![CDATA[a\u{2028}b]]></Key></Object></Delete>",
            deep.as_str(),
            wide.as_str(),
        ];
        for xml in table {
            assert_eq!(keys(xml).unwrap_err().code, "MalformedXML", "{}", &xml[..xml.len().min(80)]);
        }
        assert!(parse::<Delete>(b"<Delete>\xff</Delete>", "Delete", Limits::SMALL).is_err());
    }

    #[test]
    fn lists_may_be_interrupted_and_namespaces_are_no_unknown_field() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Rule {
            #[serde(rename = "@xmlns", default)]
            _xmlns: Option<String>,
            #[serde(rename = "Origin", default)]
            origin: Vec<String>,
            #[serde(rename = "Method", default)]
            method: Vec<String>,
        }
        let xml = b"<Rule xmlns=\"x\"><Origin>a</Origin><Method>GET</Method><Origin>b</Origin></Rule>";
        let rule: Rule = parse(xml, "Rule", Limits::SMALL).unwrap();
        assert_eq!((rule.origin.len(), rule.method.len()), (2, 1));
        assert!(parse::<Rule>(b"<Rule><Colour/></Rule>", "Rule", Limits::SMALL).is_err());
    }

    #[test]
    fn ten_thousand_parts_fit() {
        let xml =
            format!("<Delete>{}</Delete>", "<Object><Key>k</Key><VersionId>v</VersionId></Object>".repeat(10_000));
        assert_eq!(keys(&xml).unwrap().len(), 10_000);
    }

    #[test]
    fn lists_repeat_and_attributes_are_written() {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Grantee {
            #[serde(rename = "@xmlns:xsi")]
            xsi: &'static str,
            #[serde(rename = "@xsi:type")]
            kind: &'static str,
            #[serde(rename = "ID")]
            id: String,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct List {
            is_truncated: bool,
            contents: Vec<String>,
            prefixes: Vec<String>,
            marker: Option<String>,
            grantee: Grantee,
        }
        let list = List {
            is_truncated: false,
            contents: vec!["a\r".into(), "b".into()],
            prefixes: vec![],
            marker: None,
            grantee: Grantee { xsi: "x", kind: "Canonical\"User", id: "1".into() },
        };
        let xml = render("ListBucketResult", &list).unwrap();
        assert!(xml.ends_with(
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated>\
             <Contents>a&#13;</Contents><Contents>b</Contents><Grantee xmlns:xsi=\"x\" \
             xsi:type=\"Canonical&quot;User\"><ID>1</ID></Grantee></ListBucketResult>"
        ));
    }
}
