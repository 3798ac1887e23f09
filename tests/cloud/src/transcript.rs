//! Transcripts: what a client sends and what it gets, as Markdown a newcomer can read from top to bottom.
//!
//! A file of `tests/transcripts` is prose with pairs of fenced blocks, run in order, in an account of its own:
//!
//! ````text
//! ```request ec2                     the service: ec2, sts, iam, s3, or http (any request to the cloud-controller)
//! Action=CreateKeyPair               ec2, sts, iam: one parameter per line, not encoded
//! KeyName=alice
//! ```
//! ```answer 200
//! <CreateKeyPairResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
//!   …                                skips any elements
//!   <keyName>alice</keyName>
//!   <keyPairId>{pair}</keyPairId>    binds; later the same value is expected, and `{pair}` in a request is that value
//! </CreateKeyPairResponse>
//! ```
//! ````
//!
//! After the service may stand `as other` (a second account), `for SERVICE` (whose scope the signature has), and how it is signed: `unsigned`, `wrong-secret`,
//! `unknown-key`, `long-ago`, `other-body`, `sigv2`. After the status may stand `eventually`: the request is repeated until
//! the answer fits. A refusal is told shortly, in the shape of the request's service: ` ```refused 400 CODE` and its message. `s3` and `http` requests are `METHOD TARGET`, header lines, an empty line, the body
//! (whose lines end as forms' do, where it is one); their answers may
//! begin with header lines to check, before an empty line.

use std::{path::Path, time::Duration};

use http::Method;

use crate::{
    client::{self, Answer, Client, Signed},
    pattern::{self, Bindings},
    xml::{self, Element},
};

/// One file.
#[derive(Debug)]
pub struct Transcript {
    pub name: String,
    pub exchanges: Vec<Exchange>,
}

impl Transcript {
    /// Whether a request has `{name}` in it.
    pub fn asks_for(&self, name: &str) -> bool {
        let hole = format!("{{{name}}}");
        self.exchanges.iter().any(|exchange| exchange.request.iter().any(|line| line.contains(&hole)))
    }
}

/// A request and the answer it must get.
#[derive(Debug)]
pub struct Exchange {
    /// Line of the request's fence.
    pub line: usize,
    pub service: String,
    pub by_other: bool,
    /// The service the signature is for, where it is not the one asked.
    pub signed_for: Option<String>,
    pub signed: Signed,
    pub request: Vec<String>,
    pub status: u16,
    pub eventually: bool,
    pub answer_line: usize,
    pub answer: Vec<String>,
}

impl Exchange {
    /// Written with method, target and headers; the others are forms.
    fn has_head(&self) -> bool {
        self.service == "s3" || self.service == "http"
    }
}

/// How long an `eventually` may take. It takes milliseconds; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pairs of a file. Errors say the line.
pub fn parse(name: &str, text: &str) -> Result<Transcript, String> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut waiting: Option<Exchange> = None;
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(fence) = line.strip_prefix("```") else { continue };
        let number = at + 1;
        let mut block = Vec::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, line)) => block.push(line.to_owned()),
                None => return Err(format!("{name}:{number}: the block does not end")),
            }
        }
        let words: Vec<&str> = fence.split_whitespace().collect();
        match (words.as_slice(), waiting.take()) {
            (["request", service, how @ ..], None) => {
                waiting = Some(request(service, how, number, block).map_err(|e| format!("{name}:{number}: {e}"))?);
            }
            (["answer", status, more @ ..], Some(mut exchange)) => {
                exchange.status = status.parse().map_err(|_| format!("{name}:{number}: {status:?} is no status"))?;
                exchange.eventually = match more {
                    [] => false,
                    ["eventually"] => true,
                    _ => return Err(format!("{name}:{number}: after the status stands nothing or `eventually`")),
                };
                (exchange.answer_line, exchange.answer) = (number, block);
                exchanges.push(exchange);
            }
            (["refused", status, code, more @ ..], Some(mut exchange)) => {
                exchange.status = status.parse().map_err(|_| format!("{name}:{number}: {status:?} is no status"))?;
                exchange.eventually = more == ["eventually"];
                (exchange.answer_line, exchange.answer) = (number, refusal(&exchange.service, code, &block.join(" ")));
                exchanges.push(exchange);
            }
            (["request", ..], Some(before)) => {
                return Err(format!("{name}:{}: the request has no answer", before.line));
            }
            (["answer" | "refused", ..], None) => return Err(format!("{name}:{number}: an answer to no request")),
            // Other blocks are for the reader.
            (_, before) => waiting = before,
        }
    }
    match waiting {
        Some(exchange) => Err(format!("{name}:{}: the request has no answer", exchange.line)),
        None if exchanges.is_empty() => Err(format!("{name}: nothing is asked")),
        None => Ok(Transcript { name: name.into(), exchanges }),
    }
}

fn request(service: &str, how: &[&str], line: usize, request: Vec<String>) -> Result<Exchange, String> {
    if !["ec2", "sts", "iam", "s3", "http"].contains(&service) {
        return Err(format!("no service {service:?}"));
    }
    let mut exchange = Exchange {
        line,
        service: service.into(),
        by_other: false,
        signed_for: None,
        signed: Signed::Properly,
        request,
        status: 0,
        eventually: false,
        answer_line: 0,
        answer: Vec::new(),
    };
    let mut words = how.iter();
    while let Some(word) = words.next() {
        match *word {
            "for" => exchange.signed_for = Some((*words.next().ok_or("for which service?")?).to_owned()),
            "as" if words.next() == Some(&"other") => exchange.by_other = true,
            "unsigned" => exchange.signed = Signed::Not,
            "wrong-secret" => exchange.signed = Signed::WrongSecret,
            "unknown-key" => exchange.signed = Signed::UnknownKey,
            "long-ago" => exchange.signed = Signed::LongAgo,
            "other-body" => exchange.signed = Signed::OtherBody,
            "sigv2" => exchange.signed = Signed::Version2,
            other => return Err(format!("{other:?} is nothing a request can be")),
        }
    }
    Ok(exchange)
}

/// The document of an error.
fn refusal(service: &str, code: &str, message: &str) -> Vec<String> {
    let error = format!("<Code>{code}</Code><Message>{message}</Message>");
    let whole = match service {
        "s3" => format!("<Error>{error}\n…\n</Error>"),
        "sts" => format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>{error}</Error>\
             <RequestId>…</RequestId></ErrorResponse>"
        ),
        _ => format!("<Response><Errors><Error>{error}</Error></Errors><RequestID>…</RequestID></Response>"),
    };
    whole.lines().map(str::to_owned).collect()
}

/// The transcripts in a folder, by name.
pub fn load(folder: &Path) -> Result<Vec<Transcript>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "md")
            && path.file_stem().is_some_and(|stem| stem != "README")
        {
            let text = std::fs::read_to_string(&path).map_err(failed)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.push(parse(&format!("tests/transcripts/{name}"), &text)?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Two accounts for one transcript.
pub struct Actors {
    pub own: Client,
    pub other: Client,
}

/// Runs a transcript up to its first surprise, which is described with file and line. `bindings` has what is known before.
pub async fn run(transcript: &Transcript, actors: &Actors, mut bindings: Bindings) -> Result<(), String> {
    for exchange in &transcript.exchanges {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let at = |line: usize, e: String| format!("{}:{line}: {e}", transcript.name);
            let answer = ask(exchange, actors, &bindings).await.map_err(|e| at(exchange.line, e))?;
            let Err(difference) = compare(exchange, &answer, &mut bindings) else { break };
            if !exchange.eventually || tokio::time::Instant::now() > deadline {
                let asked = exchange.request.join("\n    ");
                return Err(format!("{}\n  to the request\n    {asked}", at(exchange.answer_line, difference)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn ask(exchange: &Exchange, actors: &Actors, bindings: &Bindings) -> Result<Answer, String> {
    let client = if exchange.by_other { &actors.other } else { &actors.own };
    let lines: Vec<String> =
        exchange.request.iter().map(|line| pattern::substitute(line, bindings)).collect::<Result<_, _>>()?;
    if !exchange.has_head() {
        let pairs: Vec<(&str, &str)> = lines
            .iter()
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once('=').ok_or_else(|| format!("{line:?} is no parameter")))
            .collect::<Result<_, _>>()?;
        return client.try_query(&exchange.service, &client::form(&pairs), exchange.signed).await;
    }
    let first = lines.first().ok_or("the request is empty")?;
    let (method, target) = first.split_once(' ').ok_or_else(|| format!("{first:?} is not METHOD TARGET"))?;
    let method: Method = method.parse().map_err(|_| format!("{method:?} is no method"))?;
    let head: Vec<&str> = lines[1..].iter().map(String::as_str).take_while(|line| !line.is_empty()).collect();
    let form = head.iter().any(|line| line.starts_with("content-type: multipart/form-data"));
    let body = lines.get(head.len() + 2..).unwrap_or_default().join(if form { "\r\n" } else { "\n" });
    let (to, service) = if exchange.service == "s3" { (client.objects, "s3") } else { (client.query, "ec2") };
    let service = exchange.signed_for.as_deref().unwrap_or(service);
    client.send(to, service, method, target, client::headers(&head)?, body.into(), exchange.signed).await
}

fn compare(exchange: &Exchange, answer: &Answer, bindings: &mut Bindings) -> Result<(), String> {
    let text = answer.text();
    let tree = xml::parse(&text);
    let actual = tree.as_ref().map_or(text, Element::pretty);
    let is_header = |line: &String| {
        let name = line.split(':').next().unwrap_or_default();
        line.contains(':')
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let heads = exchange.has_head();
    let head: Vec<&String> = exchange.answer.iter().take_while(|line| heads && is_header(line)).collect();
    let body: Vec<String> = exchange.answer[head.len()..].iter().skip_while(|line| line.is_empty()).cloned().collect();
    let expected = body.join("\n");
    if answer.status != exchange.status {
        return Err(format!("status {} instead of {}\n{}", answer.status, exchange.status, indent(&actual)));
    }
    let mut trial = bindings.clone();
    for line in head {
        let (name, wanted) = line.split_once(':').unwrap_or((line, ""));
        let got: Vec<String> = answer
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        if !pattern::text_fits(wanted.trim(), &got.join(", "), &mut trial) {
            return Err(format!("header {name}: {:?} instead of {:?}", got.join(", "), wanted.trim()));
        }
    }
    let fits = if expected.trim() == "…" {
        true
    } else if let Ok(wanted) = xml::parse(&expected) {
        let fits = tree.as_ref().is_ok_and(|got| pattern::element_fits(&wanted, got, &mut trial));
        if !fits {
            return Err(format!("another answer:\n{}", pattern::diff(&wanted.pretty(), &actual, &trial)));
        }
        fits
    } else {
        pattern::text_fits(expected.trim(), actual.trim(), &mut trial)
    };
    if !fits {
        return Err(format!("another answer:\n{}", pattern::diff(&expected, &actual, &trial)));
    }
    *bindings = trial;
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_is_read_with_its_line_numbers() {
        let text =
            "# T\n\nWhy.\n\n```request s3 as other sigv2\nGET /b\n```\n\n```answer 404 eventually\n<Error/>\n```\n";
        let transcript = parse("t.md", text).unwrap();
        let [exchange] = transcript.exchanges.as_slice() else { panic!("{transcript:?}") };
        assert_eq!((exchange.line, exchange.answer_line, exchange.status), (5, 9, 404));
        assert!(exchange.by_other && exchange.eventually && exchange.signed == Signed::Version2);
    }

    #[test]
    fn a_request_without_an_answer_is_found_before_anything_runs() {
        for bad in
            ["", "```request ec2\n```", "```answer 200\n```", "```request ec2\nAction=A", "```request ec2 loudly\n```"]
        {
            assert!(parse("t.md", bad).is_err(), "{bad}");
        }
    }
}
