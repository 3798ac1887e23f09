//! Documents as trees, for looking things up in an answer and for comparing it with what a transcript expects.

use std::fmt::Write;

use quick_xml::{Reader, events::Event};

/// A document or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Element(Element),
    /// Trimmed, never empty.
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    pub name: String,
    /// Sorted by name.
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Node>,
}

impl Element {
    /// The elements below this one, in document order, itself first.
    pub fn walk(&self) -> Vec<&Element> {
        let mut found = vec![self];
        for child in &self.children {
            if let Node::Element(element) = child {
                found.extend(element.walk());
            }
        }
        found
    }

    /// The first element of this name, at any depth.
    pub fn first(&self, name: &str) -> Option<&Element> {
        self.walk().into_iter().find(|element| element.name == name)
    }

    /// All its text.
    pub fn text(&self) -> String {
        let texts = self.children.iter().map(|child| match child {
            Node::Text(text) => text.clone(),
            Node::Element(element) => element.text(),
        });
        texts.collect()
    }

    /// One element per line, two spaces per level.
    pub fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        let pad = "  ".repeat(depth);
        let attributes: String = self.attributes.iter().map(|(name, value)| format!(" {name}=\"{value}\"")).collect();
        let name = &self.name;
        let _ = match self.children.as_slice() {
            [] => writeln!(out, "{pad}<{name}{attributes}/>"),
            [Node::Text(text)] => writeln!(out, "{pad}<{name}{attributes}>{text}</{name}>"),
            children => {
                let _ = writeln!(out, "{pad}<{name}{attributes}>");
                for child in children {
                    match child {
                        Node::Element(element) => element.write(out, depth + 1),
                        Node::Text(text) => {
                            let _ = writeln!(out, "{pad}  {text}");
                        }
                    }
                }
                writeln!(out, "{pad}</{name}>")
            }
        };
    }
}

/// Reads one document. White space between elements means nothing.
pub fn parse(text: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(text);
    // The document itself is the lowest of the open elements.
    let mut open = vec![Element::default()];
    let mut pending = String::new();
    loop {
        let event =
            reader.read_event().map_err(|e| format!("not well-formed at byte {}: {e}", reader.error_position()))?;
        if !matches!(event, Event::Text(_) | Event::CData(_) | Event::GeneralRef(_)) {
            settle(&mut open, &mut pending);
        }
        match event {
            Event::Start(start) => open.push(begin(&start)?),
            Event::Empty(start) => {
                let element = begin(&start)?;
                add(&mut open, Node::Element(element));
            }
            Event::End(_) => {
                let element = open.pop().ok_or("an end without a start")?;
                add(&mut open, Node::Element(element));
            }
            Event::Text(text) => pending.push_str(&text.decode().map_err(|e| e.to_string())?),
            Event::CData(text) => pending.push_str(&text.decode().map_err(|e| e.to_string())?),
            Event::GeneralRef(reference) => {
                if let Some(char) = reference.resolve_char_ref().map_err(|e| e.to_string())? {
                    pending.push(char);
                } else {
                    let name = reference.decode().map_err(|e| e.to_string())?;
                    let known = quick_xml::escape::resolve_predefined_entity(&name);
                    pending.push_str(known.ok_or_else(|| format!("unknown entity &{name};"))?);
                }
            }
            Event::Eof => break,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) | Event::DocType(_) => {}
        }
    }
    let roots = open.pop().filter(|_| open.is_empty()).ok_or("an element is not closed")?.children;
    match <[Node; 1]>::try_from(roots) {
        Ok([Node::Element(root)]) => Ok(root),
        _ => Err("not one root element".into()),
    }
}

fn begin(start: &quick_xml::events::BytesStart<'_>) -> Result<Element, String> {
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        let value = attribute.unescape_value().map_err(|e| e.to_string())?;
        attributes.push((String::from_utf8_lossy(attribute.key.as_ref()).into_owned(), value.into_owned()));
    }
    attributes.sort();
    Ok(Element { name: String::from_utf8_lossy(start.name().as_ref()).into_owned(), attributes, children: Vec::new() })
}

fn add(open: &mut [Element], node: Node) {
    if let Some(parent) = open.last_mut() {
        parent.children.push(node);
    }
}

fn settle(open: &mut [Element], pending: &mut String) {
    let text = pending.trim();
    if !text.is_empty() {
        // A skip on a line of its own stays a node of its own, also beside another.
        for line in if text.lines().all(|line| line.trim() == "…") { text.lines().collect() } else { vec![text] } {
            add(open, Node::Text(line.trim().to_owned()));
        }
    }
    pending.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_references_are_read_as_a_client_reads_them() {
        let tree = parse("<?xml version=\"1.0\"?>\n<a xmlns='x'>\n <b>1 &lt; &#50;</b>\n <c/>…\n</a>").unwrap();
        assert_eq!(tree.pretty(), "<a xmlns=\"x\">\n  <b>1 < 2</b>\n  <c/>\n  …\n</a>\n");
        assert_eq!(tree.first("b").unwrap().text(), "1 < 2");
    }

    #[test]
    fn half_a_document_is_an_error() {
        for bad in ["<a><b></a>", "<a>", "", "text", "<a/><b/>"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
