//! The output of commands that the documents show.

use std::collections::BTreeSet;

use xtask::transcripts;

#[test]
fn documents_show_what_commands_print_now() {
    let recorded = transcripts::record().unwrap();
    let faults: Vec<String> = recorded.iter().filter_map(|one| transcripts::fault(one).unwrap()).collect();
    let documents: BTreeSet<&str> = recorded.iter().map(|one| one.document).collect();
    for document in documents {
        let of_document = recorded.iter().filter(|one| one.document == document);
        let names: BTreeSet<String> = of_document.map(|one| one.name.to_owned()).collect();
        assert_eq!(names, transcripts::places(document).unwrap(), "{document}");
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
