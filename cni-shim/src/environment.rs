//! The environment of a call: `CNI_COMMAND` and the variables that it needs (CNI specification,
//! section "Parameters").

use std::ffi::OsString;

use ipnet::IpNet;
use podwire_cni::protocol::{Attachment, PodName, codes};

use crate::error::CniError;
use crate::mac::Mac;
use crate::runtime_config::pod_addresses;

/// The kernel's `IFNAMSIZ`, including the terminating zero.
const INTERFACE_NAME_SIZE: usize = 16;

/// One call, with the variables that it needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    Version,
    Add(Target),
    /// DEL needs no namespace: the kernel deletes the pod's side together with the host side.
    Del(Attachment),
    Check(Target),
    /// STATUS and GC are not about a pod. The specification tells runtimes to set `CNI_PATH` for
    /// both, because a plugin may execute other plugins. This plugin executes none, so it does not
    /// require `CNI_PATH`.
    Status,
    Gc,
}

/// An attachment and the pod that it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) attachment: Attachment,
    /// `CNI_NETNS`: path of the pod's network namespace.
    pub(crate) netns: String,
    /// From `CNI_ARGS`, if the runtime is Kubernetes'.
    pub(crate) pod: Option<PodName>,
    /// `IP` from `CNI_ARGS`, one address of each family at most: used if the configuration requests
    /// no address.
    pub(crate) addresses: Vec<IpNet>,
    /// `MAC` from `CNI_ARGS`: used if the configuration requests none.
    pub(crate) mac: Option<Mac>,
}

/// An error of the environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("CNI_COMMAND is not set: podwire-cni is a CNI plugin, executed by a container runtime")]
    NoCommand,
    #[error("CNI_COMMAND is {0:?}: this plugin knows ADD, DEL, CHECK, STATUS, GC and VERSION")]
    UnknownCommand(String),
    #[error("{command} needs {}, not set or empty", .variables.join(", "))]
    Missing { command: &'static str, variables: Vec<&'static str> },
    #[error("{0} is not UTF-8")]
    NotUtf8(String),
    #[error(
        "CNI_CONTAINERID {0:?} is not a container ID: a letter or digit, then letters, digits, '_', '.' and '-'"
    )]
    ContainerId(String),
    #[error("CNI_IFNAME {name:?} is not a name for an interface: {reason}")]
    InterfaceName { name: String, reason: &'static str },
    #[error("CNI_ARGS has {0:?}, which is not KEY=VALUE; pairs are separated by ';'")]
    Arguments(String),
    #[error("CNI_ARGS has {key}={found:?}: {reason}")]
    Argument { key: &'static str, found: String, reason: &'static str },
}

impl From<EnvironmentError> for CniError {
    fn from(error: EnvironmentError) -> Self {
        CniError::new(codes::INVALID_ENVIRONMENT, error.to_string())
    }
}

impl Invocation {
    /// Reads the call from the environment that `lookup` returns.
    pub(crate) fn parse(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvironmentError> {
        let variables = Variables { lookup };
        match variables.get("CNI_COMMAND")?.as_deref() {
            None => Err(EnvironmentError::NoCommand),
            Some("VERSION") => Ok(Invocation::Version),
            Some("ADD") => {
                let mut target = variables.target("ADD")?;
                target.read_arguments(&variables.get("CNI_ARGS")?.unwrap_or_default())?;
                Ok(Invocation::Add(target))
            }
            Some("CHECK") => Ok(Invocation::Check(variables.target("CHECK")?)),
            Some("DEL") => {
                let [container_id, interface] =
                    variables.require("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"])?;
                Ok(Invocation::Del(attachment(container_id, interface)?))
            }
            Some("STATUS") => Ok(Invocation::Status),
            Some("GC") => Ok(Invocation::Gc),
            Some(other) => Err(EnvironmentError::UnknownCommand(other.to_owned())),
        }
    }
}

struct Variables<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn target(&self, command: &'static str) -> Result<Target, EnvironmentError> {
        let [container_id, netns, interface] =
            self.require(command, ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
        let attachment = attachment(container_id, interface)?;
        Ok(Target { attachment, netns, pod: None, addresses: Vec::new(), mac: None })
    }

    /// Returns the values of all `names`, or an error with all missing names.
    fn require<const N: usize>(
        &self,
        command: &'static str,
        names: [&'static str; N],
    ) -> Result<[String; N], EnvironmentError> {
        let mut values = [const { String::new() }; N];
        let mut missing = Vec::new();
        for (value, name) in values.iter_mut().zip(names) {
            match self.get(name)? {
                Some(found) => *value = found,
                None => missing.push(name),
            }
        }
        if missing.is_empty() {
            Ok(values)
        } else {
            Err(EnvironmentError::Missing { command, variables: missing })
        }
    }

    /// Returns a variable. An empty one counts as not set: runtimes write `CNI_NETNS=` for a pod
    /// that is gone.
    fn get(&self, name: &str) -> Result<Option<String>, EnvironmentError> {
        (self.lookup)(name)
            .filter(|value| !value.is_empty())
            .map(|value| value.into_string().map_err(|_| EnvironmentError::NotUtf8(name.to_owned())))
            .transpose()
    }
}

fn attachment(container_id: String, interface: String) -> Result<Attachment, EnvironmentError> {
    if !is_identifier(&container_id) {
        return Err(EnvironmentError::ContainerId(container_id));
    }
    if let Some(reason) = interface_name_fault(&interface) {
        return Err(EnvironmentError::InterfaceName { name: interface, reason });
    }
    Ok(Attachment { container_id, interface })
}

/// Returns whether a text may be a container ID or a network name: a letter or digit, then letters,
/// digits, `_`, `.` and `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Returns why the kernel would refuse a name (`dev_valid_name`), or take it for a pattern
/// (`dev_alloc_name`): `eth%d` would make an `eth0`.
fn interface_name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() >= INTERFACE_NAME_SIZE {
        Some("it has more than 15 bytes")
    } else if name == "." || name == ".." {
        Some("it names a folder")
    } else if name.contains(['/', ':']) {
        Some("it contains '/' or ':'")
    } else if name.contains(char::is_whitespace) {
        Some("it contains whitespace")
    } else if name.contains('%') {
        Some("it contains '%', which the kernel would replace with a number")
    } else {
        None
    }
}

impl Target {
    /// Reads this plugin's keys of `CNI_ARGS`. All other keys belong to other plugins.
    fn read_arguments(&mut self, arguments: &str) -> Result<(), EnvironmentError> {
        let (mut namespace, mut name) = (None, None);
        for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| EnvironmentError::Arguments(pair.to_owned()))?;
            let wrong = |key, reason| EnvironmentError::Argument { key, found: value.to_owned(), reason };
            match key {
                "K8S_POD_NAMESPACE" => namespace = Some(value.to_owned()),
                "K8S_POD_NAME" => name = Some(value.to_owned()),
                // A comma separates two addresses, as for the reference plugin `static`.
                "IP" if !value.is_empty() => {
                    let texts: Vec<_> = value.split(',').map(str::trim).collect();
                    self.addresses = pod_addresses(&texts).map_err(|(_, reason)| wrong("IP", reason))?;
                }
                "MAC" if !value.is_empty() => {
                    self.mac = Some(Mac::unicast(value).ok_or_else(|| wrong("MAC", Mac::UNICAST))?);
                }
                _ => {}
            }
        }
        self.pod = namespace.zip(name).map(|(namespace, name)| PodName { namespace, name });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = include_str!("../../testdata/cni-calls/plain.add.env");
    const CAPTURED: [&str; 4] = [
        PLAIN,
        include_str!("../../testdata/cni-calls/plain.del.env"),
        include_str!("../../testdata/cni-calls/hostports-and-bandwidth.add.env"),
        include_str!("../../testdata/cni-calls/hostports-and-bandwidth.del.env"),
    ];

    /// Returns the invocation for an environment with one `NAME=VALUE` on each line.
    fn parse(environment: &str) -> Result<Invocation, EnvironmentError> {
        Invocation::parse(|name| {
            environment
                .lines()
                .filter_map(|line| line.split_once('='))
                .find_map(|(key, value)| (key == name).then(|| value.into()))
        })
    }

    /// Returns [`PLAIN`] with one variable changed.
    fn with(name: &str, value: &str) -> String {
        let kept: Vec<_> =
            PLAIN.lines().filter(|line| !line.starts_with(&format!("{name}="))).map(str::to_owned).collect();
        format!("{}\n{name}={value}", kept.join("\n"))
    }

    #[test]
    fn a_captured_add_names_attachment_namespace_and_pod() {
        let Invocation::Add(target) = parse(PLAIN).unwrap() else { panic!("not an ADD") };
        assert_eq!(
            target.attachment.container_id,
            "ba8eb2dbdf81d461ae22d9a9ed4445852ffe0bb98728c47f617776b66e8136e9"
        );
        assert_eq!(target.attachment.interface, "eth0");
        assert_eq!(target.netns, "/var/run/netns/cni-93ea432b-2fa5-e51f-ab15-dca510175b0c");
        assert_eq!(target.pod, Some(PodName { namespace: "default".into(), name: "plain".into() }));
    }

    #[test]
    fn every_captured_environment_parses() {
        for environment in CAPTURED {
            parse(environment).unwrap();
        }
    }

    #[test]
    fn del_needs_no_namespace_and_no_arguments() {
        for environment in ["CNI_NETNS", "CNI_ARGS"].map(|name| with(name, "")) {
            let del = environment.replace("CNI_COMMAND=ADD", "CNI_COMMAND=DEL");
            assert!(matches!(parse(&del), Ok(Invocation::Del(_))), "{del}");
        }
    }

    #[test]
    fn what_is_about_no_pod_needs_nothing_else() {
        assert_eq!(parse("CNI_COMMAND=VERSION"), Ok(Invocation::Version));
        assert_eq!(parse("CNI_COMMAND=STATUS"), Ok(Invocation::Status));
        assert_eq!(parse("CNI_COMMAND=GC"), Ok(Invocation::Gc));
    }

    #[test]
    fn an_address_and_a_link_address_may_come_as_arguments() {
        let Ok(Invocation::Add(target)) = parse(&with("CNI_ARGS", "IP=10.244.1.7;MAC=02:00:00:00:00:01"))
        else {
            panic!("not an ADD")
        };
        assert_eq!(target.addresses, ["10.244.1.7/32".parse().unwrap()]);
        assert_eq!(target.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert!(parse(&with("CNI_ARGS", "IP=;MAC=")).is_ok());
        let Ok(Invocation::Add(target)) = parse(&with("CNI_ARGS", "IP=fd00::7/64, 10.244.1.7")) else {
            panic!("not an ADD")
        };
        assert_eq!(target.addresses, ["fd00::7/128", "10.244.1.7/32"].map(|net| net.parse().unwrap()));
        for (arguments, said) in [
            ("IP=here", "CNI_ARGS has IP=\"here\": an address looks like"),
            ("IP=fd00::7,fd00::8", "CNI_ARGS has IP=\"fd00::7,fd00::8\": a pod has one address of each"),
            (
                "MAC=01:00:5e:00:00:01",
                "CNI_ARGS has MAC=\"01:00:5e:00:00:01\": an interface's address is unicast",
            ),
        ] {
            let error = parse(&with("CNI_ARGS", arguments)).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let error = parse("CNI_COMMAND=ADD\nCNI_NETNS=").unwrap_err();
        assert_eq!(error.to_string(), "ADD needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, not set or empty");
        assert_eq!(CniError::from(error).code, codes::INVALID_ENVIRONMENT);
    }

    #[test]
    fn container_ids_follow_the_specification() {
        for good in ["a", "7f", "a_b.c-d", "0-"] {
            assert!(parse(&with("CNI_CONTAINERID", good)).is_ok(), "{good}");
        }
        for bad in ["-a", ".a", "_a", "a/b", "a b", "ä", "a\u{e9}", "../../etc"] {
            let error = parse(&with("CNI_CONTAINERID", bad)).unwrap_err();
            assert_eq!(error, EnvironmentError::ContainerId(bad.into()));
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "fifteen-bytes-x", "eth0.100", "..."] {
            assert!(parse(&with("CNI_IFNAME", good)).is_ok(), "{good}");
        }
        for bad in [".", "..", "a/b", "a:b", "a b", "a\tb", "eth%d", "sixteen-bytes-xx", "ääääääää"] {
            let error = parse(&with("CNI_IFNAME", bad)).unwrap_err();
            assert!(error.to_string().starts_with("CNI_IFNAME"), "{bad}: {error}");
        }
    }

    #[test]
    fn other_commands_are_refused_by_name() {
        for command in ["UPDATE", "add", "gc"] {
            let error = parse(&with("CNI_COMMAND", command)).unwrap_err();
            assert_eq!(error, EnvironmentError::UnknownCommand(command.into()));
        }
        assert_eq!(parse(""), Err(EnvironmentError::NoCommand));
    }

    #[test]
    fn arguments_are_pairs_and_foreign_keys_are_left_alone() {
        assert!(parse(&with("CNI_ARGS", "FOO=BAR;IgnoreUnknown=1;")).is_ok());
        let error = parse(&with("CNI_ARGS", "FOO=BAR;nonsense")).unwrap_err();
        assert_eq!(error, EnvironmentError::Arguments("nonsense".into()));
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let error = Invocation::parse(|_| Some(OsString::from_vec(vec![0xff]))).unwrap_err();
        assert_eq!(error, EnvironmentError::NotUtf8("CNI_COMMAND".into()));
    }
}
