//! `Range`: one range of bytes, pure.

/// The bytes from `begin`, `length` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub begin: u64,
    pub length: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Ranged {
    /// No range, or one that means nothing: everything, as the RFC wants. Several ranges are everything too, as at AWS.
    Whole,
    Part(Span),
    /// Beyond the end.
    Unsatisfiable,
}

pub fn parse(header: Option<&str>, size: u64) -> Ranged {
    let Some((first, last)) =
        header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|r| r.split_once('-'))
    else {
        return Ranged::Whole;
    };
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => Ranged::Whole,
            Some(0) => Ranged::Unsatisfiable,
            Some(_) if size == 0 => Ranged::Unsatisfiable,
            Some(n) => {
                let length = n.min(size);
                Ranged::Part(Span { begin: size - length, length })
            }
        },
        (first, last) => {
            let end = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match (number(first), end) {
                (Some(begin), Some(end)) if begin > end => Ranged::Whole,
                (Some(begin), Some(_)) if begin >= size => Ranged::Unsatisfiable,
                (Some(begin), Some(end)) => Ranged::Part(Span { begin, length: end.min(size - 1) - begin + 1 }),
                _ => Ranged::Whole,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_size() {
        let part = |begin, length| Ranged::Part(Span { begin, length });
        let table = [
            (None, 10, Ranged::Whole),
            (Some("bytes=0-0"), 10, part(0, 1)),
            (Some("bytes=2-"), 10, part(2, 8)),
            (Some("bytes=2-100"), 10, part(2, 8)),
            (Some("bytes=-3"), 10, part(7, 3)),
            (Some("bytes=-30"), 10, part(0, 10)),
            (Some("bytes=-0"), 10, Ranged::Unsatisfiable),
            (Some("bytes=10-"), 10, Ranged::Unsatisfiable),
            (Some("bytes=0-"), 0, Ranged::Unsatisfiable),
            (Some("bytes=-1"), 0, Ranged::Unsatisfiable),
            (Some("bytes=5-4"), 10, Ranged::Whole),
            (Some("bytes=0-1,3-4"), 10, Ranged::Whole),
            (Some("bytes=a-b"), 10, Ranged::Whole),
            (Some("items=0-1"), 10, Ranged::Whole),
            (Some("bytes=0-99999999999999999999999"), 10, part(0, 10)),
            (Some("bytes=99999999999999999999999-"), 10, Ranged::Unsatisfiable),
        ];
        for (header, size, expected) in table {
            assert_eq!(parse(header, size), expected, "{header:?}");
        }
    }
}
