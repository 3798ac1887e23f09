//! `docs/actions.md` is written from the tables.

use std::path::Path;

use mallee_tests_cloud::actions;

/// `MALLEE_WRITE_DOCS=1` writes it.
#[test]
fn actions_md_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/actions.md");
    let page = actions::page();
    if std::env::var_os("MALLEE_WRITE_DOCS").is_some() {
        std::fs::write(&path, page).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/actions.md is not what the tables say: run `tools/test docs --write`");
}

#[test]
fn no_action_is_in_two_tables() {
    for (name, service) in actions::SERVICES {
        let mut names: Vec<_> =
            service.tables.iter().flat_map(|table| table.iter()).map(|action| action.name).collect();
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{name}: {twice:?}");
    }
}
