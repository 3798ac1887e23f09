//! Texts with wildcards and variables. What a variable stands for is compared as it is: a `*` in a request is no
//! wildcard.

use crate::condition::Context;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Many,
}

/// Whether `*` and `?` stand for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wildcards {
    Are,
    AreNot,
}

/// A pattern with its variables put in.
#[derive(Debug, Clone)]
pub struct Pattern(Vec<Token>);

impl Pattern {
    /// `context`: what variables stand for; `None` where there are none (documents of 2008-10-17). The answer is `None`
    /// when a variable stands for nothing, or for more than one thing: nothing matches then.
    pub fn read(text: &str, wildcards: Wildcards, context: Option<&Context>) -> Option<Pattern> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let (Some(context), Some(inside)) = (context, rest.strip_prefix("${"))
                && let Some((variable, after)) = inside.split_once('}')
            {
                let value = resolve(variable, context)?;
                tokens.extend(value.chars().map(Token::Char));
                rest = after;
                continue;
            }
            tokens.push(match c {
                '*' if wildcards == Wildcards::Are => Token::Many,
                '?' if wildcards == Wildcards::Are => Token::One,
                c => Token::Char(c),
            });
            rest = &rest[c.len_utf8()..];
        }
        Some(Pattern(tokens))
    }

    /// Greedy, and back to the last `*` only: the cost is bounded by the product of the lengths.
    pub fn matches(&self, text: &str, same: impl Fn(char, char) -> bool) -> bool {
        let (pattern, text): (_, Vec<char>) = (&self.0, text.chars().collect());
        let (mut p, mut t) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(Token::Many) => {
                    star = Some((p, t));
                    p += 1;
                    continue;
                }
                Some(Token::One) => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                Some(Token::Char(c)) if same(*c, text[t]) => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                _ => {}
            }
            match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, t) = (*at + 1, *from);
                }
                None => return false,
            }
        }
        pattern[p..].iter().all(|token| *token == Token::Many)
    }
}

pub fn exactly(a: char, b: char) -> bool {
    a == b
}

pub fn whatever_case(a: char, b: char) -> bool {
    a == b || a.to_lowercase().eq(b.to_lowercase())
}

/// `aws:username`, `aws:username, 'somebody'`, or one of `*`, `?`, `$` as themselves.
fn resolve(variable: &str, context: &Context) -> Option<String> {
    if ["*", "?", "$"].contains(&variable) {
        return Some(variable.to_owned());
    }
    let (key, otherwise) = match variable.split_once(',') {
        Some((key, text)) => (key, text.trim().strip_prefix('\'').and_then(|text| text.strip_suffix('\''))),
        None => (variable, None),
    };
    match context.values(key.trim()) {
        [one] => Some(one.clone()),
        [] => otherwise.map(str::to_owned),
        _ => None,
    }
}

/// The simple case: wildcards, no variables.
pub fn like(pattern: &str, text: &str, same: impl Fn(char, char) -> bool) -> bool {
    Pattern::read(pattern, Wildcards::Are, None).is_some_and(|pattern| pattern.matches(text, same))
}
