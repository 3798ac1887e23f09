use super::*;

fn context(pairs: &[(&str, &str)]) -> Context {
    let mut context = Context::default();
    for (key, value) in pairs {
        context.add(key, *value);
    }
    context
}

const ALICE: Who<'_> =
    Who::Account { account: "111111111111", arn: "arn:aws:iam::111111111111:user/alice", canonical_id: "aaaa" };

fn judged(document: &str, who: Who<'_>, action: &str, resource: &str, context: &Context) -> Verdict {
    Policy::parse(document).unwrap().judge(&Request { who, action, resource, context })
}

fn statement(effect: &str, condition: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":{{"Effect":"{effect}","Principal":"*","Action":"s3:*","Resource":"*","Condition":{condition}}}}}"#
    )
}

fn holds(condition: &str, context: &Context) -> bool {
    judged(&statement("Allow", condition), Who::Anonymous, "s3:GetObject", "arn:aws:s3:::b/k", context)
        == Verdict::Allow
}

/// Every set of values in the request, against every set in the document, under every quantifier, as the IAM manual
/// defines it in words: set algebra is the oracle.
#[test]
fn quantified_and_negated_conditions_are_set_algebra() {
    let letters = ["a", "b", "c"];
    let subsets = |n: usize| letters.iter().enumerate().filter(move |(at, _)| n >> at & 1 == 1).map(|(_, l)| *l);
    let mut rows = 0;
    for given in 0..8_usize {
        for wanted in 1..8_usize {
            let mut context = Context::default();
            subsets(given).for_each(|letter| context.add("aws:TagKeys", letter));
            let list = serde_json::to_string(&subsets(wanted).collect::<Vec<_>>()).unwrap();
            let (subset, disjoint) = (given & !wanted == 0, given & wanted == 0);
            let table = [
                ("ForAllValues:StringEquals", subset),
                ("ForAllValues:StringNotEquals", disjoint),
                ("ForAnyValue:StringEquals", !disjoint),
                ("ForAnyValue:StringNotEquals", !subset),
                ("StringEquals", !disjoint),
                ("StringNotEquals", disjoint),
                ("StringEqualsIfExists", given == 0 || !disjoint),
                ("ForAnyValue:StringEqualsIfExists", given == 0 || !disjoint),
                ("ForAnyValue:StringNotEqualsIfExists", given == 0 || !subset),
                ("ForAllValues:StringLike", subset),
                ("ForAllValues:StringNotLike", disjoint),
                ("ForAnyValue:StringNotLike", !subset),
            ];
            for (operator, expected) in table {
                rows += 1;
                let condition = format!(r#"{{"{operator}":{{"aws:TagKeys":{list}}}}}"#);
                assert_eq!(holds(&condition, &context), expected, "{condition} given {given:03b}");
                // A denial counts under just the same circumstances.
                let denied = judged(&statement("Deny", &condition), Who::Anonymous, "s3:X", "r", &context);
                assert_eq!(denied == Verdict::Deny, expected);
            }
        }
    }
    assert!(rows >= 200);
}

#[test]
fn operators_compare_as_the_manual_says() {
    // Operator, key in the request, its value ("-": absent), the document's values, whether it holds.
    let table = [
        ("StringEquals", "a", r#""a""#, true),
        ("StringEquals", "A", r#""a""#, false),
        ("StringEquals", "*", r#""*""#, true),
        ("StringEquals", "x", r#""*""#, false),
        ("StringEquals", "-", r#""a""#, false),
        ("StringNotEquals", "-", r#""a""#, true),
        ("StringNotEquals", "b", r#"["a","b"]"#, false),
        ("StringEqualsIgnoreCase", "ÄB", r#""äb""#, true),
        ("StringNotEqualsIgnoreCase", "AB", r#""ab""#, false),
        ("StringLike", "abc", r#""a*c""#, true),
        ("StringLike", "ac", r#""a?c""#, false),
        ("StringLike", "a*c", r#""a${*}c""#, true),
        ("StringLike", "abc", r#""a${*}c""#, false),
        ("StringNotLike", "abc", r#""a*""#, false),
        ("NumericEquals", "10", "10", true),
        ("NumericEquals", "10.0", r#""10""#, true),
        ("NumericNotEquals", "11", "10", true),
        ("NumericLessThan", "9", "10", true),
        ("NumericLessThan", "10", "10", false),
        ("NumericLessThanEquals", "10", "10", true),
        ("NumericGreaterThan", "10", "9.5", true),
        ("NumericGreaterThanEquals", "9", "10", false),
        ("NumericLessThan", "many", "10", false),
        ("NumericLessThanIfExists", "-", "10", true),
        ("DateLessThan", "2026-01-01T00:00:00Z", r#""2026-01-02T00:00:00Z""#, true),
        ("DateGreaterThan", "1767225600", r#""2025-12-31""#, true),
        ("DateEquals", "2026-01-01T01:00:00+01:00", r#""1767225600""#, true),
        ("DateNotEquals", "2026-01-01T00:00:00Z", r#""1767225600""#, false),
        ("DateGreaterThanEquals", "2026-01-01T00:00:00Z", r#""2026-01-01T00:00:00Z""#, true),
        ("DateLessThanEquals", "2026-01-03T00:00:00Z", r#""2026-01-02T00:00:00Z""#, false),
        ("Bool", "true", "true", true),
        ("Bool", "false", r#""true""#, false),
        ("Bool", "-", r#""false""#, false),
        ("BoolIfExists", "-", r#""false""#, true),
        ("BinaryEquals", "QmluYXJ5", r#""QmluYXJ5""#, true),
        ("BinaryEquals", "QmluYXJ6", r#""QmluYXJ5""#, false),
        ("IpAddress", "192.0.2.7", r#""192.0.2.0/24""#, true),
        ("IpAddress", "::ffff:192.0.2.7", r#""192.0.2.0/24""#, true),
        ("IpAddress", "192.0.3.7", r#"["192.0.2.0/24","10.0.0.0/8"]"#, false),
        ("IpAddress", "8.8.8.8", r#""0.0.0.0/0""#, true),
        ("IpAddress", "2001:db8::1", r#""2001:db8::/32""#, true),
        ("IpAddress", "2001:db8::1", r#""0.0.0.0/0""#, false),
        ("IpAddress", "10.0.0.1, 192.0.2.7", r#""10.0.0.0/8""#, false),
        ("IpAddress", "-", r#""0.0.0.0/0""#, false),
        ("NotIpAddress", "192.0.2.7", r#""192.0.2.0/24""#, false),
        ("NotIpAddress", "-", r#""192.0.2.0/24""#, true),
        ("ArnLike", "arn:aws:s3:::b/k", r#""arn:aws:s3:::b/*""#, true),
        ("ArnLike", "arn:aws:s3:::b/k", r#""arn:aws:s3:*:*:k""#, false),
        ("ArnEquals", "arn:aws:sns:r:1:t", r#""arn:aws:sns:*:*:t""#, true),
        ("ArnNotLike", "arn:aws:s3:::b/k", r#""arn:aws:s3:::c/*""#, true),
        ("ArnNotEquals", "-", r#""arn:aws:s3:::c/*""#, true),
        ("Null", "-", "true", true),
        ("Null", "x", "true", false),
        ("Null", "x", r#""false""#, true),
        ("Null", "-", r#""false""#, false),
    ];
    for (operator, given, wanted, expected) in table {
        let context = if given == "-" { Context::default() } else { context(&[("aws:x", given)]) };
        let condition = format!(r#"{{"{operator}":{{"AWS:X":{wanted}}}}}"#);
        assert_eq!(holds(&condition, &context), expected, "{condition} given {given:?}");
    }
}

#[test]
fn variables_stand_for_what_the_request_says_and_are_no_wildcards() {
    let document = |version: &str| {
        format!(
            r#"{{"Version":"{version}","Statement":[{{"Effect":"Allow","Principal":"*","Action":"s3:GetObject",
            "Resource":"arn:aws:s3:::b/${{aws:username}}/*"}}]}}"#
        )
    };
    let may = |version: &str, name: Option<&str>, key: &str| {
        let context = context(&name.map(|name| ("aws:username", name)).into_iter().collect::<Vec<_>>());
        judged(&document(version), ALICE, "s3:GetObject", &format!("arn:aws:s3:::b/{key}"), &context) == Verdict::Allow
    };
    assert!(may("2012-10-17", Some("alice"), "alice/x"));
    assert!(!may("2012-10-17", Some("alice"), "bob/x"));
    assert!(!may("2012-10-17", Some("*"), "bob/x"));
    assert!(!may("2012-10-17", None, "alice/x"));
    assert!(!may("2008-10-17", Some("alice"), "alice/x"));
    assert!(may("2008-10-17", None, "${aws:username}/x"));
    let or_else = r#"{"StringEquals":{"aws:x":"${aws:y, 'nobody'}"}}"#;
    assert!(holds(or_else, &context(&[("aws:x", "nobody")])));
    assert!(holds(or_else, &context(&[("aws:x", "me"), ("aws:y", "me")])));
    // What a variable without a value is compared with is nothing: negated, that holds.
    let absent = r#"{"StringNotEquals":{"aws:x":"${aws:y}"}}"#;
    assert!(holds(absent, &context(&[("aws:x", "me")])));
}

#[test]
fn denials_win_and_silence_is_no() {
    let document = r#"{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Principal":{"AWS":"111111111111"},"Action":["s3:get*","s3:PutObject"],"Resource":"arn:aws:s3:::b/*"},
        {"Effect":"Deny","NotPrincipal":{"AWS":"arn:aws:iam::222222222222:root"},"NotAction":"s3:GetObject","NotResource":"arn:aws:s3:::b/open/*"}]}"#;
    let bob = Who::Account { account: "222222222222", arn: "arn:aws:iam::222222222222:root", canonical_id: "bbbb" };
    let none = Context::default();
    let table = [
        (ALICE, "s3:GetObject", "arn:aws:s3:::b/k", Verdict::Allow),
        (ALICE, "s3:PutObject", "arn:aws:s3:::b/k", Verdict::Deny),
        (ALICE, "s3:PutObject", "arn:aws:s3:::b/open/k", Verdict::Allow),
        (ALICE, "s3:GetObject", "arn:aws:s3:::c/k", Verdict::Silent),
        (bob, "s3:PutObject", "arn:aws:s3:::b/k", Verdict::Silent),
        (Who::Anonymous, "s3:GetObject", "arn:aws:s3:::b/k", Verdict::Silent),
        (Who::Anonymous, "s3:PutObject", "arn:aws:s3:::b/k", Verdict::Deny),
        (Who::Service("x.amazonaws.com"), "s3:GetObject", "arn:aws:s3:::b/k", Verdict::Silent),
    ];
    for (who, action, resource, expected) in table {
        assert_eq!(judged(document, who, action, resource, &none), expected, "{who:?} {action} {resource}");
    }
}

#[test]
fn principals_are_accounts_people_canonical_ids_and_services() {
    let table = [
        (r#""*""#, true, true, true),
        (r#"{"AWS":"*"}"#, true, true, true),
        (r#"{"AWS":"arn:aws:iam::111111111111:root"}"#, false, true, false),
        (r#"{"AWS":["9","arn:aws:iam::111111111111:user/alice"]}"#, false, true, false),
        (r#"{"AWS":"arn:aws:iam::111111111111:user/*"}"#, false, false, false),
        (r#"{"CanonicalUser":"aaaa"}"#, false, true, false),
        (r#"{"Service":"logging.s3.amazonaws.com"}"#, false, false, true),
        (r#"{"AWS":"11111111111"}"#, false, false, false),
    ];
    for (principal, anonymous, alice, service) in table {
        let document =
            format!(r#"{{"Statement":[{{"Effect":"Allow","Principal":{principal},"Action":"*","Resource":"*"}}]}}"#);
        let may = |who| judged(&document, who, "s3:X", "r", &Context::default()) == Verdict::Allow;
        let seen = (may(Who::Anonymous), may(ALICE), may(Who::Service("logging.s3.amazonaws.com")));
        // A star in "AWS" means everybody with an account, and nobody's; a service is asked for by its own name.
        assert_eq!((seen.0, seen.1), (anonymous, alice), "{principal}");
        assert!(seen.2 == (service && principal.contains("Service")), "{principal}");
    }
}

#[test]
fn an_operator_from_the_future_allows_nothing_and_denies_what_it_might() {
    for (effect, expected) in [("Allow", Verdict::Silent), ("Deny", Verdict::Deny)] {
        let mut policy = Policy::parse(&statement(effect, r#"{"StringEquals":{"aws:x":"1"}}"#)).unwrap();
        policy.statements[0].conditions[0].operator = None;
        let request =
            Request { who: ALICE, action: "s3:GetObject", resource: "r", context: &context(&[("aws:x", "2")]) };
        assert_eq!(policy.judge(&request), expected);
    }
    assert!(Policy::parse(&statement("Deny", r#"{"StringSoundsLike":{"aws:x":"1"}}"#)).is_err());
}

#[test]
fn what_is_not_in_the_grammar_is_refused() {
    let good =
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}"#;
    assert!(Policy::parse(good).is_ok());
    for (from, to) in [
        ("2012-10-17", "2012-10-18"),
        ("Allow", "allow"),
        (r#""Principal":"*""#, r#""Principal":"x""#),
        (r#""Principal":"*""#, r#""Principal":{"IAM":"*"}"#),
        (r#""Principal":"*""#, r#""Principal":{}"#),
        (r#""Action":"*""#, r#""Action":[]"#),
        (r#""Action":"*","#, ""),
        (r#""Action":"*""#, r#""Action":"*","NotAction":"*""#),
        (r#""Action":"*""#, r#""Action":"a","Action":"b""#),
        (r#""Action":"*""#, r#""Action":{"a":1}"#),
        (r#""Effect":"Allow","#, ""),
        (r#""Resource":"*""#, r#""Resource":"*","Colour":"red""#),
        (r#""Resource":"*""#, r#""Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"300.1.1.1"}}"#),
        (r#""Resource":"*""#, r#""Resource":"*","Condition":{"Bool":{"aws:x":"perhaps"}}"#),
        (r#""Resource":"*""#, r#""Resource":"*","Condition":{"NumericEquals":{"aws:x":"ten"}}"#),
        (r#""Resource":"*""#, r#""Resource":"*","Condition":{"ForSomeValues:Bool":{"aws:x":"true"}}"#),
        (r#""Resource":"*""#, r#""Resource":"*","Condition":[]"#),
        (r#"{"Version"#, r#"[{"Version"#),
        (r#""Statement":["#, r#""Statements":["#),
        (r#"}]}"#, r#"}]"#),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(Policy::parse(&bad).is_err(), "{bad}");
    }
    assert!(Policy::parse(&format!("{}{}", "{\"a\":[".repeat(200), "]}".repeat(200))).is_err());
}

#[test]
fn the_public_is_whoever_is_not_pinned_down() {
    let public = |principal: &str, effect: &str, condition: &str| {
        let text = format!(
            r#"{{"Statement":[{{"Effect":"{effect}","Principal":{principal},"Action":"*","Resource":"*","Condition":{condition}}}]}}"#
        );
        Policy::parse(&text).unwrap().is_public()
    };
    let all = r#""*""#;
    assert!(public(all, "Allow", "{}"));
    assert!(!public(all, "Deny", "{}"));
    assert!(!public(r#"{"AWS":"111111111111"}"#, "Allow", "{}"));
    assert!(!public(all, "Allow", r#"{"IpAddress":{"aws:SourceIp":"192.0.2.0/24"}}"#));
    assert!(public(all, "Allow", r#"{"IpAddress":{"aws:SourceIp":"0.0.0.0/1"}}"#));
    assert!(public(all, "Allow", r#"{"NotIpAddress":{"aws:SourceIp":"192.0.2.0/24"}}"#));
    assert!(public(all, "Allow", r#"{"StringLike":{"aws:UserAgent":"secret"}}"#));
    assert!(!public(all, "Allow", r#"{"StringEquals":{"aws:PrincipalAccount":"111111111111"}}"#));
    assert!(public(all, "Allow", r#"{"StringLike":{"aws:PrincipalAccount":"1*"}}"#));
    assert!(public(all, "Allow", r#"{"StringEqualsIfExists":{"aws:PrincipalAccount":"111111111111"}}"#));
}

/// The obvious way, which takes for ever on some patterns.
fn obvious(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, rest) => rest.is_none(),
        (Some(('*', rest)), _) => (0..=text.len()).any(|n| obvious(rest, &text[n..])),
        (Some(_), None) => false,
        (Some((p, rest)), Some((t, left))) => (*p == '?' || p == t) && obvious(rest, left),
    }
}

proptest::proptest! {
    #[test]
    fn wildcards_match_what_the_obvious_way_matches(pattern in "[ab*?]{0,8}", text in "[abé]{0,8}") {
        let expected = obvious(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>());
        let found = crate::pattern::like(&pattern, &text, crate::pattern::exactly);
        proptest::prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_document_makes_it_panic(text in "\\PC{0,200}", cut in 0_usize..400, with in "[\\[\\]{}\":,*?$a0-9]{0,4}") {
        let _ = Policy::parse(&text);
        let good = statement("Deny", r#"{"ForAllValues:StringNotLikeIfExists":{"aws:x":["a*","${aws:y}","${aws:z, 'd'}"]},"IpAddress":{"aws:SourceIp":"1.2.3.4/0"},"DateLessThan":{"aws:t":"2026-01-01"}}"#);
        let cut = cut.min(good.len());
        let mutated = format!("{}{with}{}", &good[..cut], &good[(cut + with.len()).min(good.len())..]);
        for document in [&mutated, &good[..cut].to_owned()] {
            if let Ok(policy) = Policy::parse(document) {
                let context = context(&[("aws:x", &text), ("aws:sourceip", &text), ("aws:t", &text)]);
                policy.judge(&Request { who: ALICE, action: &text, resource: &text, context: &context });
                policy.is_public();
            }
        }
    }
}

#[test]
fn a_pattern_of_many_stars_costs_little() {
    // Backtracking over every star would not end before the test is given up.
    let text = "a".repeat(1024);
    for _ in 0..100 {
        assert!(!crate::pattern::like(&format!("{}b", "a*".repeat(200)), &text, crate::pattern::exactly));
    }
}
