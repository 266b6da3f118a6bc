//! The list of options for an operator to edit.

use crate::manifests::CommandOption;

/// The largest width of a comment line, in columns.
const WIDTH: usize = 100;
const HEAD: &str = "\
# Options of the agent, each with its default. To set one, remove the # before its name.
# Agents read this file when they start. To restart them all:
# kubectl --namespace kube-system rollout restart daemonset podwire
";

/// Returns the list of all options, each commented out.
pub fn config_reference(options: &[&CommandOption]) -> String {
    let entries = options.iter().map(|option| {
        let description: String = option.description.iter().map(|line| comment(line)).collect();
        let value = in_yaml(option.default.as_ref().unwrap_or(&option.value));
        format!("\n{description}#{}: {value}\n", option.name)
    });
    std::iter::once(HEAD.to_owned()).chain(entries).collect()
}

/// Returns a value as a YAML string. helm reads YAML 1.1, which takes some words as booleans.
fn in_yaml(value: &str) -> String {
    let is_boolean = ["y", "n", "yes", "no", "on", "off", "true", "false"].contains(&value);
    if is_boolean { format!("\"{value}\"") } else { value.to_owned() }
}

/// Formats a text as comment lines.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.len() + word.len() < WIDTH);
        match line {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(format!("# {word}")),
        }
    }
    lines.join("\n") + "\n"
}
