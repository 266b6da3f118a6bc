//! The output of commands that the documents show.

use xtask::transcripts;

#[test]
fn documents_show_what_commands_print_now() {
    let recorded = transcripts::record().unwrap();
    let faults: Vec<String> = recorded.iter().filter_map(|one| transcripts::fault(one).unwrap()).collect();
    assert!(recorded.len() > 5, "only {} outputs were recorded", recorded.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
