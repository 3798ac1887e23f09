//! Expected answers with holes: `…` is anything, `{name}` is one value that stays the same from its first use on.

use std::collections::BTreeMap;

use crate::xml::{Element, Node};

/// What the names stand for so far.
pub type Bindings = BTreeMap<String, String>;

#[derive(Debug)]
enum Piece<'a> {
    Literal(&'a str),
    Anything,
    Name(&'a str),
}

/// The name in `{name}` at the start of `text`, and what comes after.
fn name_at(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix('{')?.split_once('}')?;
    let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    fits.then_some((name, rest))
}

fn pieces(mut text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    while !text.is_empty() {
        if let Some(rest) = text.strip_prefix('…') {
            found.push(Piece::Anything);
            text = rest;
        } else if let Some((name, rest)) = name_at(text) {
            found.push(Piece::Name(name));
            text = rest;
        } else {
            let special =
                |(at, char): (usize, char)| (at > 0 && (char == '…' || name_at(&text[at..]).is_some())).then_some(at);
            let end = text.char_indices().find_map(special).unwrap_or(text.len());
            found.push(Piece::Literal(&text[..end]));
            text = &text[end..];
        }
    }
    found
}

/// Puts the values into a request. A name without one is an error that tells it.
pub fn substitute(text: &str, bindings: &Bindings) -> Result<String, String> {
    let mut out = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Literal(literal) => out.push_str(literal),
            Piece::Anything => out.push('…'),
            Piece::Name(name) => {
                out.push_str(bindings.get(name).ok_or_else(|| format!("{{{name}}} has no value yet"))?)
            }
        }
    }
    Ok(out)
}

/// Whether `text` is what `expected` allows; binds new names when it is.
pub fn text_fits(expected: &str, text: &str, bindings: &mut Bindings) -> bool {
    let mut trial = bindings.clone();
    let fits = pieces_fit(&pieces(expected), text, &mut trial);
    if fits {
        *bindings = trial;
    }
    fits
}

fn pieces_fit(pieces: &[Piece<'_>], text: &str, bindings: &mut Bindings) -> bool {
    let Some((piece, rest)) = pieces.split_first() else { return text.is_empty() };
    // Where the text behind this piece may begin.
    let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    match piece {
        Piece::Literal(literal) => text.strip_prefix(literal).is_some_and(|text| pieces_fit(rest, text, bindings)),
        Piece::Anything => ends.any(|at| pieces_fit(rest, &text[at..], bindings)),
        Piece::Name(name) => {
            if let Some(value) = bindings.get(*name).cloned() {
                return text.strip_prefix(&value).is_some_and(|text| pieces_fit(rest, text, bindings));
            }
            ends.skip(1).any(|at| {
                let mut trial = bindings.clone();
                trial.insert((*name).to_owned(), text[..at].to_owned());
                let fits = pieces_fit(rest, &text[at..], &mut trial);
                if fits {
                    *bindings = trial;
                }
                fits
            })
        }
    }
}

/// Whether the element is what `expected` allows: same name and attributes, and the children in order, where a `…` among
/// them skips any number.
pub fn element_fits(expected: &Element, element: &Element, bindings: &mut Bindings) -> bool {
    let mut trial = bindings.clone();
    let attributes = expected.attributes.len() == element.attributes.len()
        && expected
            .attributes
            .iter()
            .zip(&element.attributes)
            .all(|(wanted, got)| wanted.0 == got.0 && text_fits(&wanted.1, &got.1, &mut trial));
    // `<a>…</a>` is any text or none; `<a>` with a text pattern is about all its text.
    let fits =
        expected.name == element.name && attributes && children_fit(&expected.children, &element.children, &mut trial);
    if fits {
        *bindings = trial;
    }
    fits
}

fn children_fit(expected: &[Node], children: &[Node], bindings: &mut Bindings) -> bool {
    match (expected.split_first(), children.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((Node::Text(skip), rest)), _) if skip == "…" => (0..=children.len()).any(|skipped| {
            let mut trial = bindings.clone();
            let fits = children_fit(rest, &children[skipped..], &mut trial);
            if fits {
                *bindings = trial;
            }
            fits
        }),
        (Some(_), None) => false,
        (Some((wanted, more_wanted)), Some((got, more))) => {
            let fits = match (wanted, got) {
                (Node::Text(wanted), Node::Text(got)) => text_fits(wanted, got, bindings),
                (Node::Element(wanted), Node::Element(got)) => element_fits(wanted, got, bindings),
                _ => false,
            };
            fits && children_fit(more_wanted, more, bindings)
        }
    }
}

/// The lines of both, `-` expected and missing, `+` there and not expected. A hole fits what it may.
pub fn diff(expected: &str, actual: &str, bindings: &Bindings) -> String {
    let (left, right): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let same = |a: &str, b: &str| text_fits(a.trim(), b.trim(), &mut bindings.clone());
    // Longest common subsequence, from the end.
    let mut best = vec![vec![0usize; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            let along = best[i + 1][j].max(best[i][j + 1]);
            best[i][j] = if left[i].trim() != "…" && same(left[i], right[j]) {
                along.max(best[i + 1][j + 1] + 1)
            } else {
                along
            };
        }
    }
    let (mut i, mut j, mut skipping) = (0, 0, false);
    let mut out = String::new();
    while i < left.len() || j < right.len() {
        if i < left.len() && left[i].trim() == "…" {
            skipping = true;
            i += 1;
        } else if i < left.len() && j < right.len() && same(left[i], right[j]) && best[i][j] == best[i + 1][j + 1] + 1 {
            out.push_str(&format!("    {}\n", right[j]));
            (i, j, skipping) = (i + 1, j + 1, false);
        } else if j < right.len() && (i == left.len() || best[i][j + 1] >= best[i + 1][j]) {
            out.push_str(&format!("{}{}\n", if skipping { "  … " } else { "  + " }, right[j]));
            j += 1;
        } else {
            out.push_str(&format!("  - {}\n", left[i]));
            i += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::parse;

    fn fits(expected: &str, actual: &str, bindings: &mut Bindings) -> bool {
        element_fits(&parse(expected).unwrap(), &parse(actual).unwrap(), bindings)
    }

    #[test]
    fn a_name_keeps_the_value_it_got_first() {
        let mut bindings = Bindings::new();
        assert!(text_fits("i-{id}…", "i-0123abc rest", &mut Bindings::from([("id".into(), "0123abc".into())])));
        assert!(fits("<a><b>{x}</b><c>pre-{x}</c></a>", "<a><b>7</b><c>pre-7</c></a>", &mut bindings));
        assert_eq!(bindings["x"], "7");
        assert!(!fits("<b>{x}</b>", "<b>8</b>", &mut bindings));
        assert_eq!(substitute("Id=vol-{x}", &bindings).unwrap(), "Id=vol-7");
        assert!(substitute("{nobody}", &bindings).is_err());
    }

    #[test]
    fn a_skip_skips_elements_and_nothing_else_is_forgiven() {
        let mut none = Bindings::new();
        assert!(fits("<a>…<c>1</c>…</a>", "<a><b/><b/><c>1</c></a>", &mut none));
        assert!(fits("<a><b>…</b></a>", "<a><b/></a>", &mut none));
        for (expected, actual) in [
            ("<a>…<c>1</c></a>", "<a><c>1</c><d/></a>"),
            ("<a><b/></a>", "<a><b/><c/></a>"),
            ("<a><b/><c/></a>", "<a><c/><b/></a>"),
            ("<a x='1'/>", "<a/>"),
            ("<a>{x}</a>", "<a/>"),
        ] {
            assert!(!fits(expected, actual, &mut Bindings::new()), "{expected} {actual}");
        }
    }

    #[test]
    fn braces_that_are_no_name_are_text() {
        assert!(text_fits("{\"__type\":\"…\"}", "{\"__type\":\"X\"}", &mut Bindings::new()));
    }
}
