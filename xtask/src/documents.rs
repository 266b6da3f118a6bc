//! Checks the documents for `cargo xtask check`: lengths of lines and pages, and targets of links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Columns of a line of text. Tables, code and links that stand alone may be longer.
const COLUMNS: usize = 100;
/// Lines of a page, by file; any other page of `docs/` has [`PAGE`].
const PAGES: [(&str, usize); 2] = [("README.md", 200), ("ARCHITECTURE.md", 150)];
const PAGE: usize = 300;

/// Reads all documents.
///
/// # Errors
/// The number of faults. Each fault was printed with its file and line.
pub(crate) fn check() -> Result<()> {
    let root = run::root();
    let mut faults = Vec::new();
    for file in documents(root)? {
        let text =
            fs::read_to_string(root.join(&file)).with_context(|| format!("read {}", file.display()))?;
        let name = file.to_string_lossy().into_owned();
        faults.extend(faults_of_page(&name, &text));
        for (line, link) in links(&text) {
            if let Some(fault) = fault_of_link(root, &file, &link) {
                faults.push(format!("{name}:{line}: {fault}"));
            }
        }
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    match faults.len() {
        0 => Ok(()),
        faults => bail!("{faults} faults in the documents"),
    }
}

/// The Markdown files of the repository's root and of `docs/`, as paths from the root. Results of
/// measurements are left out.
fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/design"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let path = entry.context("list the documents")?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn faults_of_page(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let own = PAGES.iter().find(|(page, _)| *page == name).map(|(_, lines)| *lines);
    let most = own.or_else(|| name.starts_with("docs/").then_some(PAGE)).unwrap_or(usize::MAX);
    let lines = text.lines().count();
    if lines > most {
        faults.push(format!("{name}: {lines} lines, at most {most}"));
    }
    for (number, line) in prose(text) {
        let columns = line.chars().count();
        if columns > COLUMNS && line.trim().contains(' ') {
            faults.push(format!("{name}:{number}: {columns} columns, at most {COLUMNS}"));
        }
    }
    faults
}

/// Numbers and texts of the lines that are neither code nor table.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let is_text = !is_code && !is_fence && !line.starts_with("    ") && !line.starts_with('|');
        is_text.then_some((index + 1, line))
    })
}

/// The targets of inline links, with the line's number. Those of the web are left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if is_code || is_fence || line.starts_with("    ") {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.is_empty() {
                found.push((index + 1, target.to_owned()));
            }
        }
    }
    found
}

fn fault_of_link(root: &Path, from: &Path, link: &str) -> Option<String> {
    let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
    let target = match file {
        "" => from.to_owned(),
        file => from.parent().unwrap_or(Path::new("")).join(file),
    };
    let path = root.join(&target);
    if !path.exists() {
        return Some(format!("the link {link} leads to no file"));
    }
    let heading = heading?;
    let text = fs::read_to_string(&path).unwrap_or_default();
    (!headings(&text).contains(heading)).then(|| format!("the link {link} leads to no heading"))
}

/// The anchors of a page's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter_map(|line| line.strip_prefix('#'));
    titles.map(|title| anchor(title.trim_start_matches('#').trim())).collect()
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_of_text_are_faults_and_of_tables_and_code_none() {
        let long = "word ".repeat(30);
        let text = format!("{long}\n| {long} |\n\n    {long}\n```\n{long}\n```\n{}\n", "x".repeat(200));
        assert_eq!(faults_of_page("docs/a.md", &text), ["docs/a.md:1: 150 columns, at most 100"]);
    }

    #[test]
    fn pages_have_a_bound() {
        let page = "line\n".repeat(201);
        assert_eq!(faults_of_page("README.md", &page), ["README.md: 201 lines, at most 200"]);
        assert_eq!(faults_of_page("docs/a.md", &page), [""; 0]);
        assert_eq!(faults_of_page("CHANGELOG.md", &"line\n".repeat(1000)), [""; 0]);
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let root = run::root();
        let fault = |link: &str| fault_of_link(root, Path::new("docs/performance.md"), link);
        assert_eq!(fault("../README.md"), None);
        assert_eq!(fault("../README.md#podwire"), None);
        assert_eq!(fault("nowhere.md").unwrap(), "the link nowhere.md leads to no file");
        assert!(fault("../README.md#no-such-heading").unwrap().contains("no heading"));
        assert_eq!(anchor("What `a` is, and (not) B"), "what-a-is-and-not-b");
        let text = "[a](b.md) and [c](https://example.org/d)\n\n    [e](f.md)\n";
        assert_eq!(links(text), [(1, "b.md".to_owned())]);
    }
}
