//! A command's options, read from its `--help`. So manifests are compared with the program itself.

use anyhow::{Result, ensure};

/// An option of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandOption {
    /// The name without the dashes.
    pub name: String,
    /// The placeholder of its value, for example `PORT`.
    pub value: String,
    /// The description; each line is a paragraph or a possible value.
    pub description: Vec<String>,
    /// The environment variable that may be set instead.
    pub variable: Option<String>,
    /// The value if the option is not given.
    pub default: Option<String>,
}

impl CommandOption {
    /// Returns whether the pod's manifest sets the option, or the option names something in the
    /// pod's own file system.
    pub fn is_the_pods(&self, manifest: &str) -> bool {
        let is_set = manifest.contains(&format!("--{}=", self.name))
            || self.variable.as_ref().is_some_and(|variable| manifest.contains(variable));
        is_set || ["FILE", "FOLDER"].contains(&self.value.as_str())
    }
}

/// Parses clap's long help: options begin at the seventh column, and their descriptions at the
/// eleventh.
pub(super) fn parse(help: &str) -> Result<Vec<CommandOption>> {
    let mut options: Vec<CommandOption> = Vec::new();
    let (_, listed) = help.split_once("\nOptions:\n").unwrap_or_default();
    for line in listed.lines() {
        if let Some(option) = line.strip_prefix("      --") {
            let (name, value) = option.split_once(' ').unwrap_or((option, ""));
            let value = value.trim_matches(['<', '>']).to_owned();
            options.push(CommandOption { name: name.to_owned(), value, ..CommandOption::default() });
        } else if line.starts_with("  -") {
            // Every command has `-h, --help`. It is the last option.
            break;
        } else if let Some(option) = options.last_mut() {
            option.add(line.trim());
        }
    }
    ensure!(!options.is_empty(), "no options are listed in:\n{help}");
    Ok(options)
}

impl CommandOption {
    fn add(&mut self, said: &str) {
        let bracketed = |what: &str| said.strip_prefix(what)?.strip_suffix(']').map(str::to_owned);
        if let Some(variable) = bracketed("[env: ") {
            self.variable = variable.split_once('=').map(|(name, _)| name.to_owned());
        } else if let Some(default) = bracketed("[default: ") {
            self.default = Some(default);
        } else if !said.is_empty() && said != "Possible values:" {
            self.description.push(said.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_has_name_value_description_variable_and_default() {
        let help = "Serve\n\nUsage: x\n\nOptions:\n      --vni <VNI>\n          A network\n          \n          Possible values:\n\
                    \x20         - one: the first\n          \n          [env: X_VNI=7]\n          [default: 1]\n\n\
                    \x20     --on\n          Switched\n\n  -h, --help\n          Print help\n";
        let text = |text: &str| text.to_owned();
        let vni = CommandOption {
            name: text("vni"),
            value: text("VNI"),
            description: vec![text("A network"), text("- one: the first")],
            variable: Some(text("X_VNI")),
            default: Some(text("1")),
        };
        let on = CommandOption {
            name: text("on"),
            description: vec![text("Switched")],
            ..CommandOption::default()
        };
        assert_eq!(parse(help).unwrap(), [vni, on]);
    }

    #[test]
    fn no_options_are_an_error() {
        assert!(parse("Usage: x").is_err());
    }
}
