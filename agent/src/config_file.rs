//! The file of `--config`: a YAML mapping from the agent's long option names to values.
//!
//! clap knows everything about each option. So the file's values are appended to the arguments of
//! the command line, except for options that the command line or the environment gives. A new
//! option needs no code here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches as _};
use serde::de::{self, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::events::{Event, Unheeded};
use crate::watched_file::{Opened, WatchError, Watched};

/// The subcommand that has the options.
const AGENT: &str = "agent";
/// Largest size of the file in bytes: as much as a ConfigMap holds.
const LARGEST: u64 = 1 << 20;
/// The option that names the file.
const CONFIG: &str = "config";

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("{0}")]
    Read(String),
    /// The file's content is wrong.
    #[error("the configuration {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key and the allowed values.
        reason: String,
    },
}

/// The command line, with and without what the file of `--config` adds.
#[derive(Debug)]
pub struct CommandLine {
    command: Command,
    given: Vec<OsString>,
    complete: Vec<OsString>,
}

/// By long name, the values that would follow it on the command line.
type Values = BTreeMap<String, Vec<OsString>>;

impl CommandLine {
    /// Takes all arguments of the program, with its name first, and reads the file of `--config`.
    /// Keeps wrong arguments as they are: the caller parses them and reports the error.
    ///
    /// # Errors
    /// [`ConfigFileError`].
    pub fn new(command: Command, given: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigFileError> {
        let given: Vec<_> = given.into_iter().collect();
        let mut line = Self { command, complete: given.clone(), given };
        let path = line.matches().and_then(|matches| matches.get_one::<PathBuf>("config_file").cloned());
        if let Some(path) = path {
            let text = watched(&path).read().map_err(ConfigFileError::Read)?;
            line.complete = line.with(&text).map_err(|reason| ConfigFileError::Content { path, reason })?;
        }
        Ok(line)
    }

    /// Returns the arguments, followed by what the file adds.
    pub fn arguments(&self) -> &[OsString] {
        &self.complete
    }

    /// Sends an event now and after every change of the file: the options in it that have no
    /// effect, or what is wrong with it.
    ///
    /// # Errors
    /// Those of [`Watched::watch`].
    pub async fn watch(self, path: PathBuf, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
        let file = watched(&path);
        let compare = move |file: Opened| {
            let text = io::read_to_string(file).map_err(|error| error.to_string())?;
            let changed =
                differences(&self.options_of(&self.complete)?, &self.options_of(&self.with(&text)?)?);
            Ok(Unheeded { changed, overridden: self.overridden(&text)? })
        };
        file.watch(&events, move |file| {
            let compare = |file| {
                compare(file)
                    .map_err(|reason: String| format!("the configuration {}: {reason}", path.display()))
            };
            Event::ConfigFile(file.and_then(compare))
        })
        .await
    }

    fn with(&self, text: &str) -> Result<Vec<OsString>, String> {
        let given = self.matches().ok_or("the command line does not parse")?;
        let mut arguments = self.given.clone();
        for (name, values) in parse(self.agent()?, text)? {
            if self.given_for(&given, &name)?.is_none() {
                arguments.extend(values.iter().map(|value| argument(&name, value)));
            }
        }
        Ok(arguments)
    }

    /// Returns the options that the file sets differently from the command line or the environment,
    /// which take precedence.
    fn overridden(&self, text: &str) -> Result<Vec<String>, String> {
        let given = self.matches().ok_or("the command line does not parse")?;
        let mut overridden = Vec::new();
        for (name, values) in parse(self.agent()?, text)? {
            if self.given_for(&given, &name)?.is_some_and(|given| given != values) {
                overridden.push(name);
            }
        }
        Ok(overridden)
    }

    /// Returns an option's values from the command line or the environment.
    fn given_for(&self, given: &ArgMatches, name: &str) -> Result<Option<Vec<OsString>>, String> {
        let option = options(self.agent()?).find(|option| option.get_long() == Some(name));
        let id = option.map(|option| option.get_id().as_str()).filter(|id| {
            matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        });
        Ok(id.map(|id| given.get_raw(id).into_iter().flatten().map(OsString::from).collect()))
    }

    /// Returns the agent's options that are given, even if required ones are missing.
    fn matches(&self) -> Option<ArgMatches> {
        let lenient = self.command.clone().mut_subcommand(AGENT, optional);
        let matches = lenient.try_get_matches_from(&self.given).ok()?;
        matches.subcommand_matches(AGENT).cloned()
    }

    /// Returns the values with which an agent with these arguments would run.
    fn options_of(&self, arguments: &[OsString]) -> Result<Values, String> {
        let matches = self.command.clone().try_get_matches_from(arguments).map_err(|error| told(&error))?;
        let matches = matches.subcommand_matches(AGENT).ok_or("the command line does not run the agent")?;
        Config::from_arg_matches(matches).map_err(|error| told(&error))?.check()?;
        let values = |option: &Arg| {
            let raw = matches.get_raw(option.get_id().as_str()).into_iter().flatten();
            (name(option), raw.map(OsString::from).collect())
        };
        Ok(options(self.agent()?).map(values).collect())
    }

    fn agent(&self) -> Result<&Command, String> {
        self.command.find_subcommand(AGENT).ok_or_else(|| format!("there is no command {AGENT}"))
    }
}

fn watched(path: &Path) -> Watched {
    Watched { what: "the configuration", path: path.to_owned(), limit: LARGEST }
}

/// Returns the options that may be in the file.
fn options(agent: &Command) -> impl Iterator<Item = &Arg> {
    agent.get_arguments().filter(|option| {
        !option.is_hide_set() && option.get_long().is_some_and(|long| long != CONFIG) && takes_values(option)
    })
}

/// Returns whether an option takes values. `--help` does not.
fn takes_values(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append)
}

fn name(option: &Arg) -> String {
    option.get_long().unwrap_or_default().to_owned()
}

fn argument(name: &str, value: &OsString) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value);
    argument
}

fn optional(agent: Command) -> Command {
    agent.mut_args(|option| option.required(false))
}

fn differences(running: &Values, wanted: &Values) -> Vec<String> {
    let differs = |(name, values): &(&String, &Vec<OsString>)| wanted.get(*name) != Some(values);
    running.iter().filter(differs).map(|(name, _)| name.clone()).collect()
}

/// Parses the file, and checks that each value is valid for its option.
fn parse(agent: &Command, text: &str) -> Result<Values, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        // Refused below, with a message for operators.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
    };
    // A file with only comments and empty lines has no mapping to read.
    let is_empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    let read = |deserializer: serde_saphyr::Deserializer<'_, '_>| deserializer.deserialize_map(Reader(agent));
    let values = match is_empty {
        true => Values::new(),
        false => serde_saphyr::with_deserializer_from_str_with_options(text, options, read)
            .map_err(|error| error.to_string())?,
    };
    for (name, values) in &values {
        let lone = optional(agent.clone()).no_binary_name(true);
        let arguments = values.iter().map(|value| argument(name, value));
        lone.try_get_matches_from(arguments).map_err(|error| format!("{name}: {}", told(&error)))?;
    }
    Ok(values)
}

/// Returns clap's message in one line.
fn told(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    said.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}

/// Reads the mapping. The key's option decides whether a value may be a list.
struct Reader<'a>(&'a Command);

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping from the agent's options, by their long names without `--`, to values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
        let mut values = Values::new();
        while let Some(key) = map.next_key::<String>()? {
            let option = options(self.0).find(|option| option.get_long() == Some(&key));
            let option = option.ok_or_else(|| de::Error::custom(unknown(self.0, &key)))?;
            let read = match option.get_action() {
                ArgAction::Append => map.next_value::<OneOrMore>().map(|several| several.0),
                _ => map.next_value::<Option<String>>().map(|one| one.into_iter().collect()),
            };
            let read = read.map_err(|error| de::Error::custom(format!("{key}: {error}")))?;
            let reason = match (read.is_empty(), values.contains_key(&key)) {
                (false, false) => None,
                (true, _) => Some("it has no value: give it one, or leave it out"),
                (_, true) => Some("it is there twice: remove one of the two"),
            };
            if let Some(reason) = reason {
                return Err(de::Error::custom(format!("{key}: {reason}")));
            }
            values.insert(key, read.into_iter().map(OsString::from).collect());
        }
        Ok(values)
    }
}

fn unknown(agent: &Command, key: &str) -> String {
    if agent.get_arguments().any(|option| option.get_long() == Some(key)) {
        return format!("{key}: this option is for the command line only");
    }
    let lone = optional(agent.clone()).no_binary_name(true);
    let refusal = lone.try_get_matches_from([format!("--{key}=")]).err();
    let nearest = refusal.and_then(|error| match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(option)) => Some(option.trim_start_matches('-').to_owned()),
        _ => None,
    });
    let hint = nearest.map_or_else(
        || "`podwire agent --help` lists the options".to_owned(),
        |nearest| format!("the nearest is `{nearest}`"),
    );
    format!("{key}: the agent has no option of that name; {hint}")
}

/// Values of an option that may be repeated: one value or a list of values.
struct OneOrMore(Vec<String>);

impl<'de> de::Deserialize<'de> for OneOrMore {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_str<E: de::Error>(self, one: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![one.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<OneOrMore, A::Error> {
                let mut several = Vec::new();
                while let Some(value) = sequence.next_element()? {
                    several.push(value);
                }
                Ok(OneOrMore(several))
            }
        }
        deserializer.deserialize_any(Values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    fn agent() -> Command {
        Config::augment_args(Command::new(AGENT))
    }

    fn parsed(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let plain = |value: OsString| value.into_string().unwrap();
        let values = parse(&agent(), text)?;
        Ok(values.into_iter().map(|(name, values)| (name, values.into_iter().map(plain).collect())).collect())
    }

    #[test]
    fn values_are_what_the_file_says_to_the_letter() {
        let text = "# ours\nuplink-xdp: off\nvni: 7\nnode-name: 1e3\nuplink: [eth0, eth1]\nnon-masquerade-cidrs: 10.0.0.0/8\nmasquerade-ipv6: false\nlog-level: \"podwire::daemon=debug\"\n";
        let expected: [(&str, &[&str]); 7] = [
            ("log-level", &["podwire::daemon=debug"]),
            ("masquerade-ipv6", &["false"]),
            ("node-name", &["1e3"]),
            ("non-masquerade-cidrs", &["10.0.0.0/8"]),
            ("uplink", &["eth0", "eth1"]),
            ("uplink-xdp", &["off"]),
            ("vni", &["7"]),
        ];
        let expected = expected.map(|(name, values)| {
            (name.to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
        });
        assert_eq!(parsed(text).unwrap(), expected);
        assert_eq!(parsed("").unwrap(), []);
        assert_eq!(parsed("# nothing\n\n").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_and_what_is_allowed() {
        for (text, says) in [
            ("vxlan-prt: 1", &["vxlan-prt", "`vxlan-port`"][..]),
            ("xyz: 1", &["xyz", "--help"]),
            ("mode: bridge", &["mode:", "bridge", "vxlan, direct"]),
            ("vxlan-port: 0", &["vxlan-port:", "1..=65535"]),
            ("mtu: many", &["mtu:", "many"]),
            ("snat-ports: 5-1", &["snat-ports:", "5-1", "range of ports"]),
            ("non-masquerade-cidrs: [10.0.0.0/8, ten]", &["non-masquerade-cidrs:", "ten"]),
            ("mtu:", &["mtu:", "no value"]),
            ("uplink: []", &["uplink:", "no value"]),
            ("mtu: [1400]", &["mtu:", "line 1"]),
            ("uplink: {a: b}", &["uplink:", "a list of values"]),
            ("vni: 1\nvni: 2", &["vni:", "twice"]),
            ("config: /etc/other", &["config:", "command line only"]),
            ("bpf-object: /x", &["bpf-object:", "command line only"]),
            ("help: true", &["help"]),
            ("- vni", &["mapping", "line 1"]),
            ("vni: \"7", &["line"]),
        ] {
            let refusal = parsed(text).expect_err(text);
            assert!(says.iter().all(|part| refusal.contains(part)), "{text}: {refusal}");
            assert!(!refusal.contains('\n'), "{text}: {refusal}");
        }
    }

    #[test]
    fn every_option_of_the_agent_can_be_in_the_file() {
        let agent = agent();
        for option in agent.get_arguments().filter(|option| !option.is_hide_set()) {
            assert!(takes_values(option), "{}: what would a file say?", option.get_id());
        }
        let names: Vec<_> = options(&agent).map(name).collect();
        assert!(names.len() > 25 && names.contains(&"state-dir".to_owned()), "{names:?}");
    }
}
