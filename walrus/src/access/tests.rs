use super::*;
use crate::principal::Account;

fn account(id: &str) -> Account {
    let number = id.bytes().map(u64::from).sum::<u64>();
    Account { account: format!("{number:012}"), name: "a".into(), canonical_id: id.into() }
}

fn as_account(id: &str) -> Principal {
    Principal::of_account(account(id))
}

fn bucket<'a>(acl: &'a Acl, policy: Option<&'a Policy>) -> BucketAccess<'a> {
    let (ownership, block) = (Ownership::ObjectWriter, Block::default());
    BucketAccess {
        name: "b",
        owner: "bucket",
        account: "000000000650",
        acl,
        policy,
        ownership,
        block,
        requester_pays: false,
    }
}

/// What each canned list lets a stranger's account, nobody, and the image import do with an object.
#[test]
fn canned_lists_let_in_whom_they_name() {
    let (owner, bucket_owner) = ("owner", "bucket");
    let private = Acl::private(bucket_owner);
    let may = |who: &Principal, acl: &Acl| {
        let object = Some(ObjectAccess { owner, acl, tags: &[] });
        allow(who, Action::GetObject, Resource::Key { bucket: bucket(&private, None), key: "k", object })
    };
    let table = [
        ("private", [false, false, false, false]),
        ("public-read", [true, true, true, true]),
        ("public-read-write", [true, true, true, true]),
        ("authenticated-read", [false, true, true, true]),
        ("aws-exec-read", [false, false, true, false]),
        ("bucket-owner-read", [false, false, false, true]),
        ("bucket-owner-full-control", [false, false, false, true]),
    ];
    for (name, [anonymous, account_may, import, bucket_may]) in table {
        let acl = Acl::canned(name, owner, bucket_owner).unwrap();
        assert_eq!(may(&Principal::anonymous(), &acl), anonymous, "{name}");
        assert_eq!(may(&as_account("stranger"), &acl), account_may, "{name}");
        assert_eq!(may(&Principal::importer(account("stranger")), &acl), import, "{name}");
        assert_eq!(may(&as_account(bucket_owner), &acl), bucket_may, "{name}");
        assert!(may(&as_account(owner), &acl), "{name}");
    }
    assert_eq!(Acl::canned("public", owner, bucket_owner), None);
}

#[test]
fn a_stranger_may_do_nothing_to_a_private_bucket() {
    let acl = Acl::private("bucket");
    let strangers = [
        Principal::anonymous(),
        as_account("stranger"),
        Principal::importer(account("x")),
        Principal::log_delivery(account("bucket")),
    ];
    for who in strangers {
        for action in Action::ALL {
            let object = Some(ObjectAccess { owner: "bucket", acl: &acl, tags: &[] });
            let key = Resource::Key { bucket: bucket(&acl, None), key: "k", object };
            assert!(
                !allow(&who, *action, Resource::Bucket(bucket(&acl, None))) && !allow(&who, *action, key),
                "{action:?}"
            );
        }
    }
}

#[test]
fn an_owner_may_do_everything_to_a_private_bucket() {
    let acl = Acl::private("bucket");
    let owner = as_account("bucket");
    for action in Action::ALL {
        let object = Some(ObjectAccess { owner: "bucket", acl: &acl, tags: &[] });
        let resource = match action {
            Action::ListAllMyBuckets | Action::CreateBucket => Resource::Service,
            action if action.on() == Kind::Bucket => Resource::Bucket(bucket(&acl, None)),
            _ => Resource::Key { bucket: bucket(&acl, None), key: "k", object },
        };
        assert!(allow(&owner, *action, resource), "{action:?}");
    }
}

fn policy(statements: &str) -> Policy {
    Policy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).unwrap()
}

#[test]
fn a_policy_gives_what_is_the_bucket_owners_and_denies_anybody() {
    let policy = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/open/*"},
           {"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::b","arn:aws:s3:::b/open/secret"]}"#,
    );
    let acl = Acl::private("bucket");
    let may = |who: &Principal, action, key, owner, ownership, block| {
        let bucket = BucketAccess { ownership, block, ..bucket(&acl, Some(&policy)) };
        let acl = Acl::private(owner);
        allow(who, action, Resource::Key { bucket, key, object: Some(ObjectAccess { owner, acl: &acl, tags: &[] }) })
    };
    let (open, writer) = (Block::default(), Ownership::ObjectWriter);
    let (nobody, owner) = (Principal::anonymous(), as_account("bucket"));
    assert!(may(&nobody, Action::GetObject, "open/x", "bucket", writer, open));
    assert!(!may(&nobody, Action::GetObject, "shut/x", "bucket", writer, open));
    // Reading what was is another right than reading what is.
    assert!(!may(&nobody, Action::GetObjectVersion, "open/x", "bucket", writer, open));
    assert!(!may(&nobody, Action::GetObject, "open/secret", "bucket", writer, open));
    assert!(!may(&owner, Action::GetObject, "open/secret", "bucket", writer, open));
    // What another account owns is not the bucket owner's to give, unless ownership was settled so.
    assert!(!may(&nobody, Action::GetObject, "open/x", "guest", writer, open));
    assert!(may(&nobody, Action::GetObject, "open/x", "guest", Ownership::BucketOwnerEnforced, open));
    let restricted = Block { restrict_public_buckets: true, ..open };
    assert!(!may(&nobody, Action::GetObject, "open/x", "bucket", writer, restricted));
    assert!(may(&owner, Action::GetObject, "open/x", "bucket", writer, restricted));

    let with_policy = bucket(&acl, Some(&policy));
    assert!(!allow(&owner, Action::ListBucket, Resource::Bucket(with_policy)));
    // Or nobody could ever take it back.
    assert!(allow(&owner, Action::DeleteBucketPolicy, Resource::Bucket(with_policy)));
}

#[test]
fn conditions_see_the_objects_tags() {
    let policy = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*",
            "Condition":{"StringEquals":{"s3:ExistingObjectTag/open":"yes"}}}"#,
    );
    let acl = Acl::private("bucket");
    let may = |tags: &[(String, String)]| {
        let object = Some(ObjectAccess { owner: "bucket", acl: &acl, tags });
        allow(
            &Principal::anonymous(),
            Action::GetObject,
            Resource::Key { bucket: bucket(&acl, Some(&policy)), key: "k", object },
        )
    };
    assert!(may(&[("open".into(), "yes".into())]));
    assert!(!may(&[("open".into(), "no".into())]));
    assert!(!may(&[]));
}

#[test]
fn lists_can_be_switched_off_and_the_public_kept_out() {
    let acl = Acl::canned("public-read", "bucket", "bucket").unwrap();
    let may = |who: &Principal, ownership, block| {
        allow(who, Action::ListBucket, Resource::Bucket(BucketAccess { ownership, block, ..bucket(&acl, None) }))
    };
    let ignore = Block { ignore_public_acls: true, ..Block::default() };
    assert!(may(&Principal::anonymous(), Ownership::ObjectWriter, Block::default()));
    assert!(!may(&Principal::anonymous(), Ownership::ObjectWriter, ignore));
    assert!(!may(&as_account("stranger"), Ownership::ObjectWriter, ignore));
    assert!(!may(&Principal::anonymous(), Ownership::BucketOwnerEnforced, Block::default()));
    assert!(may(&as_account("bucket"), Ownership::BucketOwnerEnforced, ignore));
}
