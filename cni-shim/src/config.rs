//! The network configuration that the runtime writes to standard input.

use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use podwire_cni::protocol::{Attachment, Bandwidth, DEFAULT_SOCKET, PortMapping};
use serde_json::{Map, Value};

use crate::config_error::ConfigError;
use crate::dns::Dns;
use crate::environment::is_identifier;
use crate::fields::{Fields, Keys};
use crate::mac::Mac;
use crate::previous::PreviousResult;
use crate::routes::{self, Asked};
use crate::runtime_config::RuntimeConfig;
use crate::skim::skim;
use crate::version::SpecVersion;

/// The keys that have a meaning in the specification or for this plugin. Keys of a network
/// configuration *list* are among them: a runtime may copy them into the plugin's own object.
const KNOWN: [&str; 17] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "socket",
    "mtu",
    "args",
    "capabilities",
    "dns",
    "ipam",
    "ipMasq",
    "prevResult",
    "routes",
    "runtimeConfig",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];
/// The keys for the attachments that GC must keep. libcni 1.2.0 to 1.2.2 wrote the second key,
/// which the specification 1.1.0 had at first.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
/// The keys that DEL, STATUS and GC read.
const NEEDED_BY_ALL: [&str; 6] =
    ["cniVersion", "name", "type", "socket", VALID_ATTACHMENTS[0], VALID_ATTACHMENTS[1]];
/// The MTUs that the kernel accepts on a link with IPv4 (`ETH_MIN_MTU` to `ETH_MAX_MTU`).
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65535;

/// The configuration of a call, beyond its environment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) version: SpecVersion,
    /// `name`: the network that the attachment belongs to.
    pub(crate) network: String,
    /// Path of the agent's socket.
    pub(crate) socket: PathBuf,
    /// MTU of the pod's link, bytes; `None`: the agent chooses.
    pub(crate) mtu: Option<u32>,
    /// Requested addresses, each with its full prefix length.
    pub(crate) addresses: Vec<IpNet>,
    /// hostPorts.
    pub(crate) port_mappings: Vec<PortMapping>,
    /// The pod side's link address (`mac` capability).
    pub(crate) mac: Option<Mac>,
    /// Routes that the pod gets in addition to its default one.
    pub(crate) routes: Vec<Asked>,
    /// How fast the pod may receive and send.
    pub(crate) bandwidth: Bandwidth,
    /// Name resolution, as the result reports it.
    pub(crate) dns: Dns,
    /// `prevResult`: for ADD the result of earlier plugins, for CHECK the result of the ADD.
    pub(crate) previous: Option<Value>,
    /// The attachments that GC must keep, still undecoded.
    valid_attachments: Option<Value>,
}

/// A configuration, and warnings about it for the operator.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) config: Config,
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// Reads a configuration. Sets `version` as soon as it is known, so that an error about a later
    /// key is reported in the version that the runtime speaks.
    pub(crate) fn parse(json: &[u8], version: &mut SpecVersion) -> Result<Parsed, ConfigError> {
        let document: Value = serde_json::from_slice(json).map_err(ConfigError::NotJson)?;
        Self::of(document.as_object().ok_or(ConfigError::NotAnObject)?, version)
    }

    /// Reads a configuration for DEL, GC and STATUS, which need no keys about one pod
    /// (`runtimeConfig`, `routes`). DEL must succeed for a configuration that ADD has refused,
    /// whatever its size, depth or text.
    pub(crate) fn parse_for_others(
        json: impl io::Read,
        version: &mut SpecVersion,
    ) -> Result<Parsed, ConfigError> {
        let map = skim(json, &NEEDED_BY_ALL).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ConfigError::NotSkimmed(error),
            _ => ConfigError::Unread(error),
        })?;
        Self::of(&map, version)
    }

    fn of(map: &Map<String, Value>, version: &mut SpecVersion) -> Result<Parsed, ConfigError> {
        let fields = Fields::root(map, Keys::Exact);
        *version = spec_version(&fields)?;
        let network = network(&fields)?.to_owned();

        let runtime = fields.object("runtimeConfig", Keys::AnyCase)?;
        let runtime =
            runtime.map_or_else(|| Ok(RuntimeConfig::default()), |fields| RuntimeConfig::parse(&fields))?;
        let routes = routes::parse(&fields)?;
        let mut warnings = warnings(&fields)?;
        warnings.extend(runtime.warnings);
        fields.object("prevResult", Keys::Exact)?;
        let config = Config {
            version: *version,
            network,
            socket: socket(&fields)?,
            mtu: mtu(&fields)?,
            addresses: runtime.addresses,
            port_mappings: runtime.port_mappings,
            mac: runtime.mac,
            bandwidth: runtime.bandwidth,
            routes,
            dns: Dns::parse(&fields)?.overridden_by(runtime.dns),
            previous: fields.get("prevResult").cloned(),
            valid_attachments: valid_attachments(&fields).cloned(),
        };
        Ok(Parsed { config, warnings })
    }

    /// Returns the result that CHECK compares with.
    pub(crate) fn previous_result(&self) -> Result<PreviousResult, ConfigError> {
        let missing = || ConfigError::Missing { field: "prevResult".to_owned() };
        let map = self.previous.as_ref().and_then(Value::as_object).ok_or_else(missing)?;
        PreviousResult::parse(&Fields::at("prevResult", map, Keys::Exact))
    }

    /// Returns the attachments that GC must keep. An entry that does not decode is an error: a
    /// guess could cost a pod its network.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>, ConfigError> {
        let [key, _] = VALID_ATTACHMENTS;
        let missing = |field: String| ConfigError::Missing { field };
        let value = self.valid_attachments.as_ref().ok_or_else(|| missing(key.to_owned()))?;
        let map = serde_json::Map::from_iter([(key.to_owned(), value.clone())]);
        let attachment = |fields: &Fields<'_>| {
            let text = |key: &str| {
                let text = fields.string(key)?.filter(|text| !text.is_empty());
                text.map(str::to_owned).ok_or_else(|| missing(fields.path_of(key)))
            };
            Ok(Attachment { container_id: text("containerID")?, interface: text("ifname")? })
        };
        Fields::root(&map, Keys::Exact).objects(key)?.iter().map(attachment).collect()
    }
}

/// Returns the list of attachments that GC must keep. `null` is an empty list: Go's encoder writes
/// it for a list to which nothing was added. A runtime without pods has such a list (CRI-O after a
/// boot).
fn valid_attachments<'a>(fields: &Fields<'a>) -> Option<&'a Value> {
    let [own, other] = VALID_ATTACHMENTS.map(|key| fields.written(key));
    own.filter(|value| !value.is_null()).or(other).or(own)
}

/// Returns the configuration's version. A configuration without `cniVersion` has the first version,
/// which did not have that key.
fn spec_version(fields: &Fields<'_>) -> Result<SpecVersion, ConfigError> {
    let Some(text) = fields.string("cniVersion")?.filter(|text| !text.is_empty()) else {
        return Ok(SpecVersion::V0_1_0);
    };
    SpecVersion::parse(text).ok_or_else(|| ConfigError::Version { found: text.to_owned() })
}

fn network<'a>(fields: &Fields<'a>) -> Result<&'a str, ConfigError> {
    let required = |key: &str| {
        let missing = ConfigError::Missing { field: key.to_owned() };
        fields.string(key)?.filter(|text| !text.is_empty()).ok_or(missing)
    };
    required("type")?;
    let name = required("name")?;
    if is_identifier(name) {
        return Ok(name);
    }
    let reason = "a network's name is a letter or digit, then letters, digits, '_', '.' and '-'".to_owned();
    Err(ConfigError::Invalid { field: "name".to_owned(), found: name.to_owned(), reason })
}

fn socket(fields: &Fields<'_>) -> Result<PathBuf, ConfigError> {
    let path = fields.string("socket")?.unwrap_or(DEFAULT_SOCKET);
    if Path::new(path).is_absolute() {
        return Ok(path.into());
    }
    let reason = "the path of the agent's socket must be absolute".to_owned();
    Err(ConfigError::Invalid { field: "socket".to_owned(), found: path.to_owned(), reason })
}

/// Returns the configured MTU. Zero means "not set", as for the reference plugins.
fn mtu(fields: &Fields<'_>) -> Result<Option<u32>, ConfigError> {
    match fields.unsigned("mtu")? {
        None | Some(0) => Ok(None),
        Some(mtu) if MTU_RANGE.contains(&mtu) => Ok(u32::try_from(mtu).ok()),
        Some(mtu) => Err(ConfigError::Invalid {
            field: "mtu".to_owned(),
            found: mtu.to_string(),
            reason: format!("a link's MTU is between {} and {} bytes", MTU_RANGE.start(), MTU_RANGE.end()),
        }),
    }
}

/// Returns warnings about keys that this plugin ignores, so that the author of the configuration
/// knows.
fn warnings(fields: &Fields<'_>) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    // Keys with this prefix are later additions of the specification (`cni.dev/valid-attachments`).
    let unknown = fields.unknown(&KNOWN).into_iter().filter(|key| !key.starts_with("cni.dev/"));
    warnings
        .extend(unknown.map(|key| format!("unknown key {key:?} in the network configuration is ignored")));
    if fields.object("ipam", Keys::Exact)?.is_some_and(|ipam| !ipam.unknown(&[]).is_empty()) {
        warnings
            .push("ipam is ignored: the node agent assigns addresses from the node's podCIDRs".to_owned());
    }
    if fields.boolean("ipMasq")?.is_some() {
        warnings
            .push("ipMasq is ignored: the node agent masquerades traffic that leaves the cluster".to_owned());
    }
    fields.object("args", Keys::Exact)?;
    fields.object("capabilities", Keys::Exact)?;
    fields.boolean("disableCheck")?;
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use podwire_cni::protocol::codes;
    use serde_json::json;

    use super::*;
    use crate::error::CniError;

    fn parse(document: &Value) -> Result<Parsed, CniError> {
        let mut version = SpecVersion::NEWEST;
        Ok(Config::parse(document.to_string().as_bytes(), &mut version)?)
    }

    /// Returns the smallest configuration, with keys added or replaced.
    fn with(changes: &Value) -> Value {
        let mut document = json!({"cniVersion": "1.0.0", "name": "podwire", "type": "podwire-cni"});
        let map = document.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        document
    }

    #[test]
    fn the_captured_calls_parse_without_a_word() {
        let plain = [
            include_bytes!("../../testdata/cni-calls/plain.add.json").as_slice(),
            include_bytes!("../../testdata/cni-calls/plain.del.json"),
        ];
        let full = [
            include_bytes!("../../testdata/cni-calls/hostports-and-bandwidth.add.json").as_slice(),
            include_bytes!("../../testdata/cni-calls/hostports-and-bandwidth.del.json"),
        ];
        for (call, is_full) in
            plain.map(|call| (call, false)).into_iter().chain(full.map(|call| (call, true)))
        {
            let parsed = Config::parse(call, &mut SpecVersion::V0_3_0).unwrap();
            assert_eq!(parsed.config.socket, Path::new(DEFAULT_SOCKET));
            assert_eq!(parsed.config.dns.nameservers, ["10.96.0.10"]);
            assert_eq!(parsed.config.dns.options, ["ndots:5"]);
            assert_eq!(parsed.warnings, Vec::<String>::new());
            let mappings = parsed.config.port_mappings.iter().map(ToString::to_string).collect::<Vec<_>>();
            let expected =
                ["*:9088/tcp to port 8080", "*:9089/udp to port 8081", "127.0.0.1:9090/tcp to port 8080"];
            assert_eq!(mappings, if is_full { &expected[..] } else { &[] });
            let Bandwidth { ingress, egress } = parsed.config.bandwidth;
            let rates = [ingress, egress].map(|limit| limit.map(|limit| limit.rate.get()));
            assert_eq!(rates, if is_full { [Some(50_000_000), Some(20_000_000)] } else { [None; 2] });
        }
    }

    #[test]
    fn what_add_refuses_does_not_keep_del_from_succeeding() {
        let refused = with(&json!({"runtimeConfig": {
            "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "sctp"}],
            "ips": ["nowhere"],
            "mac": "nobody",
        }, "routes": [{"dst": "nowhere"}], "mtu": 70000, "dns": [], "ipMasq": "yes", "prevResult": "none"}));
        assert_eq!(parse(&refused).unwrap_err().code, codes::INVALID_CONFIGURATION);
        let mut version = SpecVersion::NEWEST;
        let parsed = Config::parse_for_others(refused.to_string().as_bytes(), &mut version).unwrap();
        assert_eq!(parsed.config.port_mappings, []);
    }

    #[test]
    fn the_configuration_that_is_shipped_is_taken_without_a_word() {
        let shipped = include_bytes!("../../manifests/10-podwire.conflist");
        let list: Value = serde_json::from_slice(shipped).unwrap();
        // A runtime gives a plugin of a list its own object, with the list's name and version added
        // (CNI specification, section 3).
        let mut plugin = list["plugins"][0].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        let parsed = Config::parse(plugin.to_string().as_bytes(), &mut SpecVersion::V0_3_0).unwrap();
        assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    }

    #[test]
    fn what_is_not_json_or_no_object_does_not_decode() {
        for (text, said) in
            [("", "EOF"), ("{", "EOF"), ("\u{0}", "expected value"), ("[1]", "not a JSON object")]
        {
            let error = Config::parse(text.as_bytes(), &mut SpecVersion::V0_3_0).unwrap_err();
            assert!(error.to_string().contains(said), "{text:?}: {error}");
            assert_eq!(CniError::from(error).code, codes::DECODING_FAILURE);
        }
    }

    #[test]
    fn versions_that_we_do_not_speak_are_refused() {
        for version in [json!("0.1"), json!("1.2.0"), json!("1.0"), json!("v1.0.0")] {
            let error = parse(&with(&json!({"cniVersion": version}))).unwrap_err();
            assert_eq!(error.code, codes::INCOMPATIBLE_VERSION, "{version}");
            assert!(error.message.contains("0.4.0, 1.0.0, 1.1.0"), "{}", error.message);
        }
    }

    #[test]
    fn without_a_version_it_is_the_first() {
        for version in [json!(""), Value::Null] {
            let config = parse(&with(&json!({"cniVersion": version}))).unwrap().config;
            assert_eq!(config.version, SpecVersion::V0_1_0);
        }
    }

    #[test]
    fn what_gc_keeps_is_read_by_either_name_and_whole_or_not() {
        let valid = |changes: Value| parse(&with(&changes)).unwrap().config.valid_attachments();
        let entry = json!({"containerID": "c1", "ifname": "eth0"});
        let attachment = Attachment { container_id: "c1".into(), interface: "eth0".into() };
        for key in VALID_ATTACHMENTS {
            assert_eq!(valid(json!({ key: [entry] })).unwrap(), std::slice::from_ref(&attachment), "{key}");
        }
        assert_eq!(valid(json!({ VALID_ATTACHMENTS[0]: [], VALID_ATTACHMENTS[1]: [entry] })).unwrap(), []);
        for key in VALID_ATTACHMENTS {
            assert_eq!(valid(json!({ key: null })).unwrap(), [], "{key}: Go's empty list");
        }
        for (changes, said) in [
            (json!({}), "cni.dev/valid-attachments is missing"),
            (json!({"cni.dev/valid-attachments": {}}), "cni.dev/valid-attachments is {}"),
            (
                json!({"cni.dev/valid-attachments": [entry, {}]}),
                "cni.dev/valid-attachments[1].containerID is missing",
            ),
            (
                json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]}),
                "cni.dev/valid-attachments[0].ifname is missing",
            ),
            (
                json!({"cni.dev/valid-attachments": [{"containerID": 1}]}),
                "cni.dev/valid-attachments[0].containerID is 1",
            ),
        ] {
            let error = valid(changes).unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            assert_eq!(CniError::from(error).code, codes::INVALID_CONFIGURATION);
        }
    }

    #[test]
    fn the_version_is_known_before_a_later_key_is_found_wrong() {
        let mut version = SpecVersion::NEWEST;
        let document = with(&json!({"cniVersion": "0.3.1", "mtu": "big"}));
        Config::parse(document.to_string().as_bytes(), &mut version).unwrap_err();
        assert_eq!(version, SpecVersion::V0_3_1);
    }

    #[test]
    fn a_wrong_type_or_value_is_an_error_that_names_the_field() {
        for (changes, field) in [
            (json!({"cniVersion": 1}), "cniVersion"),
            (json!({"name": null}), "name"),
            (json!({"name": 7}), "name"),
            (json!({"name": "two words"}), "name"),
            (json!({"type": ""}), "type"),
            (json!({"socket": false}), "socket"),
            (json!({"socket": "run/agent.sock"}), "socket"),
            (json!({"mtu": "1450"}), "mtu"),
            (json!({"mtu": 67}), "mtu"),
            (json!({"mtu": 65536}), "mtu"),
            (json!({"mtu": -1}), "mtu"),
            (json!({"ipam": "host-local"}), "ipam"),
            (json!({"ipMasq": "yes"}), "ipMasq"),
            (json!({"dns": []}), "dns"),
            (json!({"dns": {"nameservers": "1.1.1.1"}}), "dns.nameservers"),
            (json!({"dns": {"domain": 7}}), "dns.domain"),
            (json!({"routes": [1]}), "routes[0]"),
            (json!({"routes": [{"dst": 1}]}), "routes[0].dst"),
            (json!({"args": 1}), "args"),
            (json!({"capabilities": ["ips"]}), "capabilities"),
            (json!({"disableCheck": 1}), "disableCheck"),
            (json!({"prevResult": "none"}), "prevResult"),
            (json!({"runtimeConfig": []}), "runtimeConfig"),
            (json!({"runtimeConfig": {"ips": "10.0.0.1"}}), "runtimeConfig.ips"),
        ] {
            let error = parse(&with(&changes)).unwrap_err();
            assert_eq!(error.code, codes::INVALID_CONFIGURATION, "{changes}");
            assert!(error.message.starts_with(&format!("{field} is ")), "{changes}: {}", error.message);
        }
    }

    #[test]
    fn an_unknown_key_is_a_warning() {
        let parsed = parse(&with(&json!({"bridge": "cni0", "cni.dev/attachments": []}))).unwrap();
        assert_eq!(parsed.warnings, [r#"unknown key "bridge" in the network configuration is ignored"#]);
    }

    #[test]
    fn socket_and_mtu_are_taken_and_zero_is_no_mtu() {
        let config = parse(&with(&json!({"socket": "/run/a.sock", "mtu": 9000}))).unwrap().config;
        assert_eq!((config.socket.as_path(), config.mtu), (Path::new("/run/a.sock"), Some(9000)));
        assert_eq!(parse(&with(&json!({"mtu": 0}))).unwrap().config.mtu, None);
    }

    #[test]
    fn a_pods_own_dns_replaces_the_networks_and_keeps_its_domain() {
        let parsed = parse(&with(&json!({
            "dns": {"nameservers": ["1.1.1.1"], "domain": "example.org", "search": ["example.org"]},
            "runtimeConfig": {"dns": {"servers": ["10.96.0.10"], "options": ["ndots:5"]}},
        })));
        assert_eq!(
            parsed.unwrap().config.dns,
            Dns {
                nameservers: vec!["10.96.0.10".into()],
                domain: "example.org".into(),
                search: vec!["example.org".into()],
                options: vec!["ndots:5".into()],
            }
        );
    }

    #[test]
    fn check_needs_the_previous_result() {
        let config = parse(&with(&json!({}))).unwrap().config;
        assert_eq!(config.previous_result().unwrap_err().to_string(), "prevResult is missing");
    }
}
