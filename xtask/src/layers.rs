//! The layer rules: which folder may depend on what. ARCHITECTURE.md gives the reasons.
//!
//! A rule looks at source lines, so a violation has a file and a line. Comments are ignored.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Paths that some files must not mention.
struct Rule {
    /// Files and folders that the rule covers, relative to the repository.
    within: &'static [&'static str],
    /// Files and folders in `within` that the rule does not cover.
    except: &'static [&'static str],
    /// Paths in full, as in an import.
    forbidden: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        within: &["agent/core/src"],
        except: &[],
        forbidden: &["std::fs", "std::process", "std::os"],
        why: "the core decides and touches nothing; its Cargo.toml keeps everything else from it",
    },
    Rule {
        within: &["agent/src/migrate_flannel/net_conf.rs"],
        except: &[],
        forbidden: &["aya", "kube", "tokio", "std::fs", "rtnetlink", "rustix", "axum", "notify"],
        why: "the pure modules decide and touch nothing",
    },
    Rule {
        within: &["agent/src"],
        except: &["agent/src/daemon", "agent/src/main.rs"],
        forbidden: &["crate::daemon"],
        why: "sources and edges do not know the receiver of their events",
    },
    Rule {
        within: &["agent/src", "cni-shim/src"],
        // Variants of the error type carry errors of the libraries that the edges call.
        except: &["agent/src/dataplane", "agent/src/error.rs"],
        forbidden: &["aya"],
        why: "only dataplane/ knows BPF",
    },
    Rule {
        within: &["agent/src"],
        except: &["agent/src/links.rs", "agent/src/links", "agent/src/error.rs"],
        forbidden: &["rtnetlink"],
        why: "only links knows netlink",
    },
    Rule {
        within: &["agent/src"],
        except: &["agent/src/nodes/kube", "agent/src/objects"],
        forbidden: &["kube", "k8s_openapi", "http", "tower"],
        why: "only objects/ and nodes/kube/ talk to the API server",
    },
    Rule {
        within: &["agent/src"],
        except: &["agent/src/conntrack.rs", "agent/src/firewall", "agent/src/socket_diag.rs"],
        forbidden: &[
            "netlink_sys",
            "netlink_packet_core",
            "netlink_packet_netfilter",
            "netlink_packet_sock_diag",
        ],
        why: "only conntrack and firewall/ ask netfilter, and socket_diag asks about sockets",
    },
    Rule {
        within: &["ebpf/src/hooks"],
        except: &[],
        forbidden: &["crate::packet::rewrite", "crate::packet::redirect"],
        why: "a hook is the order of its stages: it looks up which stage is next, and changes nothing itself",
    },
    Rule {
        within: &["ebpf/src"],
        except: &["ebpf/src/helpers"],
        forbidden: &[
            "aya_ebpf::helpers",
            "aya_ebpf::macros::btf_map",
            "aya_ebpf::macros::map",
            "aya_ebpf::maps",
        ],
        why: "helpers are called and maps declared through helpers/, where the counting build counts them",
    },
    Rule {
        within: &["ebpf/src/hooks", "ebpf/src/stage", "ebpf/src/verdict.rs"],
        except: &[],
        forbidden: &["crate::helpers"],
        why: "hooks and stages ask the kernel only through packet/ and maps",
    },
    Rule {
        within: &["ebpf/src/helpers"],
        except: &[],
        forbidden: &["crate::maps", "crate::packet", "crate::stage", "crate::hooks", "crate::verdict"],
        why: "helpers/ is the kernel as the programs see it",
    },
    Rule {
        within: &["ebpf/src/packet"],
        except: &[],
        forbidden: &["crate::maps", "crate::stage", "crate::hooks", "crate::verdict", "aya_ebpf::btf_maps"],
        why: "packet/ knows bytes, and neither maps nor policy",
    },
    Rule {
        within: &["ebpf/src/maps"],
        except: &[],
        forbidden: &["crate::packet", "crate::stage", "crate::hooks", "crate::verdict"],
        why: "maps know nothing of packets",
    },
    Rule {
        within: &["ebpf/src/stage"],
        except: &[],
        forbidden: &["crate::hooks"],
        why: "stages do not know their caller",
    },
    Rule {
        within: &["common/src"],
        except: &[],
        forbidden: &["std::fs", "std::io", "aya_ebpf", "std::process"],
        why: "common is arithmetic that both sides share",
    },
];

/// Folders in which no function name, tests included, may be longer than [`LONGEST_NAME`].
const NAMED: [&str; 5] = ["agent", "cni-shim", "common", "ebpf", "xtask"];
/// Characters. A longer name is a sentence, and a sentence belongs in a comment.
const LONGEST_NAME: usize = 60;

/// Crates that the plugin must not link: it has to start within milliseconds and stay small.
const NOT_IN_PLUGIN: [&str; 5] = ["aya", "kube", "tokio", "k8s-openapi", "hyper"];

/// Checks all rules, and prints every violation.
pub(crate) fn check() -> Result<()> {
    let mut violations = Vec::new();
    for rule in RULES {
        for file in rule.files()? {
            let text = fs::read_to_string(run::root().join(&file))
                .with_context(|| format!("read {}", file.display()))?;
            violations.extend(rule.violations(&file, &text));
        }
    }
    let mut named = Vec::new();
    for folder in NAMED {
        collect(Path::new(folder), &mut named)?;
    }
    for file in named {
        let text = fs::read_to_string(run::root().join(&file))
            .with_context(|| format!("read {}", file.display()))?;
        violations.extend(long_names(&file, &text));
    }
    let tree = run::captured(&mut run::cargo(&[
        "tree",
        "--package",
        "podwire-cni",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    violations.extend(plugin_violations(&tree));
    // An import of several items from one forbidden path counts as one violation.
    violations.dedup();
    for violation in &violations {
        eprintln!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} lines break the layer rules", violations.len());
    }
    Ok(())
}

impl Rule {
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for place in self.within {
            collect(Path::new(place), &mut files)?;
        }
        files.retain(|file| !self.except.iter().any(|place| file.starts_with(place)));
        Ok(files)
    }

    fn violations(&self, file: &Path, text: &str) -> Vec<String> {
        let mentions = mentions(text);
        let broken = mentions.iter().flat_map(|(line, path)| {
            let forbidden = self.forbidden.iter().filter(move |forbidden| is_within(path, forbidden));
            forbidden.map(move |forbidden| (line, forbidden))
        });
        broken.map(|(line, name)| format!("{}:{line}: `{name}`: {}", file.display(), self.why)).collect()
    }
}

/// Collects the Rust files at or below a place. A place that does not exist adds no files.
fn collect(place: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = run::root().join(place);
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(&path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            collect(&place.join(entry.file_name()), files)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
        files.push(place.to_owned());
    }
    Ok(())
}

/// Returns a violation for each function name that is too long.
fn long_names(file: &Path, text: &str) -> Vec<String> {
    let names = text.lines().enumerate().filter_map(|(index, line)| {
        let code = without_strings(line.split("//").next().unwrap_or_default());
        let mut words = code.split(|character: char| !(character.is_alphanumeric() || character == '_'));
        words.find(|word| *word == "fn")?;
        let name = words.next().filter(|name| name.len() > LONGEST_NAME)?.to_owned();
        Some((index + 1, name))
    });
    let found = names.map(|(line, name)| {
        format!("{}:{line}: `{name}`: a name has at most {LONGEST_NAME} characters", file.display())
    });
    found.collect()
}

/// Returns every path that the code mentions, with its line. Paths of imports are complete, all
/// others are as written.
fn mentions(text: &str) -> Vec<(usize, String)> {
    let mut mentions = Vec::new();
    let mut import: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let code = without_strings(line.split("//").next().unwrap_or_default());
        let opens = code
            .trim_start()
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("use ");
        match (&mut import, opens) {
            (Some((_, tree)), _) => *tree += &code,
            (None, Some(tree)) => import = Some((index + 1, tree.to_owned())),
            (None, None) => {
                let words =
                    code.split(|character: char| !(character.is_alphanumeric() || "_:".contains(character)));
                mentions
                    .extend(words.filter(|word| !word.is_empty()).map(|word| (index + 1, word.to_owned())));
            }
        }
        if let Some((line, tree)) = import.take_if(|(_, tree)| tree.contains(';')) {
            mentions.extend(flatten(&tree).into_iter().map(|path| (line, path)));
        }
    }
    mentions
}

/// Returns the paths of a use tree: `a::{b, c::d};` becomes `a::b` and `a::c::d`.
fn flatten(tree: &str) -> Vec<String> {
    let (mut paths, mut prefixes, mut path) = (Vec::new(), Vec::new(), String::new());
    for character in tree.chars().filter(|character| !character.is_whitespace()) {
        match character {
            '{' => prefixes.push(path.clone()),
            ',' | '}' | ';' => {
                let prefix = prefixes.last().cloned().unwrap_or_default();
                if path.len() > prefix.len() {
                    paths.push(path);
                }
                path = prefix;
                if character == '}' {
                    prefixes.pop();
                    path = String::new();
                }
                if path.is_empty() {
                    path = prefixes.last().cloned().unwrap_or_default();
                }
            }
            _ => path.push(character),
        }
    }
    paths
}

/// Returns whether a path equals another or goes through it: `aya::maps` is within `aya`, but
/// `aya_ebpf` is not. A crate's name alone does not count, because it may be any word.
fn is_within(path: &str, other: &str) -> bool {
    match path.strip_prefix(other) {
        Some("") => other.contains("::"),
        Some(rest) => rest.starts_with("::"),
        None => false,
    }
}

/// Removes the text between quotes: every second part of a line. This is right only for strings
/// that end on their line.
fn without_strings(code: &str) -> String {
    code.replace("\\\"", "").split('"').step_by(2).collect()
}

fn plugin_violations(tree: &str) -> Vec<String> {
    let crates = tree.lines().filter_map(|line| line.split_whitespace().next());
    crates
        .filter(|name| {
            NOT_IN_PLUGIN.iter().any(|banned| name == banned || name.starts_with(&format!("{banned}-")))
        })
        .map(|name| format!("cni-shim/Cargo.toml: `{name}`: the plugin is executed for every pod"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { within: &[], except: &[], forbidden: &["aya", "std::fs"], why: "for the test" };

    fn violations(text: &str) -> usize {
        RULE.violations(Path::new("a.rs"), text).len()
    }

    #[test]
    fn a_path_is_found_wherever_code_names_it() {
        for line in [
            "use aya::maps::HashMap;",
            "let x = aya::Ebpf::load(b)?;",
            "use std::fs;",
            "    pub(crate) use std::{io, fs::File};",
            "use std::{\n    net::{IpAddr, Ipv4Addr},\n    fs,\n};",
        ] {
            assert_eq!(violations(line), 1, "{line}");
        }
    }

    #[test]
    fn other_words_comments_and_strings_are_no_violation() {
        for line in ["use aya_ebpf::maps;", "use std::{net::fs, io};", "// aya::maps", "println!(\"aya::x\")"]
        {
            assert_eq!(violations(line), 0, "{line}");
        }
    }

    #[test]
    fn a_use_tree_is_all_its_paths() {
        assert_eq!(flatten("a::{b, c::{d, self}, e as f};"), ["a::b", "a::c::d", "a::c::self", "a::easf"]);
    }

    #[test]
    fn a_violation_has_file_line_and_reason() {
        let found = RULE.violations(Path::new("a.rs"), "use std::net;\nuse std::fs;\n");
        assert_eq!(found, ["a.rs:2: `std::fs`: for the test"]);
    }

    #[test]
    fn name_of_more_than_sixty_characters_is_a_violation() {
        let function = |length| format!("    async fn {}() {{}}\n", "a".repeat(length));
        let found = |text: &str| long_names(Path::new("a.rs"), text).len();
        assert_eq!(found(&function(LONGEST_NAME)), 0);
        assert_eq!(found(&function(LONGEST_NAME + 1)), 1);
        assert_eq!(found(&format!("// {}", function(LONGEST_NAME + 1))), 0);
    }

    #[test]
    fn banned_crate_of_the_plugin_is_named_for_each_of_its_parts() {
        let tree =
            "podwire-cni v0.2.0 (/x)\nserde v1.0.0\ntokio v1.54.0\ntokio-util v0.7.0\nayatollah v1.0.0\n";
        assert_eq!(plugin_violations(tree).len(), 2);
    }
}
