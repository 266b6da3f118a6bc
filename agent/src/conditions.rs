//! All problems that a node can have, by name. This module accesses no kernel and no disk.
//!
//! The owner of state sets and clears the conditions. `/readyz`, ADD, STATUS and the gauge
//! `podwire_condition` follow from the severities of the conditions that hold. STATUS also reports
//! when no address is free. `/readyz?verbose` lists all conditions. No condition affects
//! `/healthz`, because a restart of the agent does not repair the node. `/healthz` fails only when
//! the owner of state does not answer.
//!
//! The agent logs a condition when it begins, when its sentence changes, and when it ends.

use std::collections::BTreeMap;
use std::fmt;

use tracing::{debug, error, info, warn};

/// Largest number of subjects of one name that one change logs individually. A node list may bring
/// thousands.
const LOGGED: usize = 10;

/// What does not work while a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The node's pods may be cut off, and ADD is refused.
    CutOff,
    /// The node's pods may be cut off. ADD is tried, and the agent's readiness does not change.
    DataPath,
    /// ADD is refused; pods have their network.
    NoAdds,
    /// ADD is refused; pods have their network. What is missing comes by itself: every agent starts
    /// this way.
    Waiting,
    /// ADD is tried and fails; pods have their network.
    AddsFail,
    /// Runtimes may not know the agent, because it cannot write their network configuration. It
    /// serves every runtime that calls it.
    Unannounced,
    /// Something works worse than it could, or does not work for some pods, nodes or processes.
    Degraded,
}

impl Severity {
    /// Returns the name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::CutOff => "cut-off",
            Self::DataPath => "data-path",
            Self::NoAdds => "no-adds",
            Self::Waiting => "waiting",
            Self::AddsFail => "adds-fail",
            Self::Unannounced => "unannounced",
            Self::Degraded => "degraded",
        }
    }

    /// Returns whether ADD is refused before the agent tries anything.
    pub fn refuses_adds(self) -> bool {
        matches!(self, Self::CutOff | Self::NoAdds | Self::Waiting)
    }

    /// Returns whether `/readyz` fails.
    pub fn is_unready(self) -> bool {
        self.refuses_adds() || matches!(self, Self::AddsFail | Self::Unannounced)
    }

    /// Returns whether STATUS reports that existing pods may be cut off (code 51).
    pub fn cuts_pods_off(self) -> bool {
        matches!(self, Self::CutOff | Self::DataPath)
    }

    /// Returns whether STATUS reports that no pod can be added (code 50, or 51).
    pub fn keeps_pods_out(self) -> bool {
        self.cuts_pods_off() || self.refuses_adds() || self == Self::AddsFail
    }

    fn is_error(self) -> bool {
        !matches!(self, Self::Waiting | Self::Degraded)
    }
}

/// Declares the conditions, each in one row: variant, name, severity, remedy. If several conditions
/// hold, the one declared first is shown as the reason.
macro_rules! names {
    ($($(#[$doc:meta])+ $variant:ident, $name:literal, $severity:ident, $remedy:literal;)+) => {
        /// The name of a problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ConditionName {
            $($(#[$doc])+ $variant,)+
        }

        impl ConditionName {
            /// All names, the most important first.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the name for metrics and the log.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns the name as the reason of a Kubernetes Event.
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }

            /// Returns what does not work while the condition holds.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)+
                }
            }

            /// Returns what the operator should do.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                }
            }
        }
    };
}

names! {
    /// No link of this node leads to other nodes or to the world.
    NoUplink, "no-uplink", CutOff, "bring the link up, or name it with --uplink";
    /// The agent could not bring the kernel into the wanted state at its last try.
    ReconcileFailed, "reconcile-failed", DataPath,
        "do what the sentence says; the agent tries again every ten seconds";
    /// Maps or links are not pinned, and the agent cannot pin them.
    PinsMissing, "pins-missing", NoAdds, "mount a writable BPF file system at --bpf-dir again";
    /// The agent cannot set kernel switches that pods need.
    Switches, "switches", CutOff, "make the node's /proc/sys/net writable for the agent (--sysctl-dir), or set the switch yourself";
    /// Another tool's queueing discipline is in the place of an uplink's programs. Subject: the
    /// link.
    UplinkObstructed, "uplink-obstructed", CutOff, "remove the other queueing discipline as the sentence says";
    /// The agent has not read the node list yet or cannot read it, and knows no entry for this
    /// node.
    NodeListUnread, "node-list-unread", Waiting, "check that the agent can reach the API server, or read the file of --nodes";
    /// The node list has no usable entry for this node, or no longer has one.
    OwnNodeMissing, "own-node-missing", Waiting,
        "check --node-name, and that the cluster gives this node a podCIDR and an InternalIP";
    /// A condition made the agent refuse ADD, and the agent has not set up the kernel successfully
    /// since then.
    NotSetUp, "not-set-up", Waiting, "do what the sentence says; the agent tries again every ten seconds";
    /// The state folder cannot be written, or its disk does not answer.
    StateFolder, "state-folder", AddsFail, "free space on the disk of --state-dir, or repair the disk";
    /// The agent cannot write the runtime's network configuration.
    CniConfiguration, "cni-configuration", Unannounced, "make the folder of --cni-conf-dir writable for the agent";
    /// The node list may be out of date.
    NodeListStale, "node-list-stale", Degraded, "check that the agent can reach the API server, or read the file of --nodes";
    /// The agent does not use a node, or a part of its entry. Subject: the problem.
    NodeProblem, "node-problem", Degraded, "correct the Node object, or the entry in the file of --nodes, as the sentence says";
    /// The agent cannot read the services, or they may be out of date.
    ServiceListStale, "service-list-stale", Degraded, "check that the agent can reach the API server, or read the file of --services-file";
    /// A Service or an EndpointSlice does not decode. Subject: the object.
    ServiceProblem, "service-problem", Degraded, "correct the object, or the entry in the file of --services-file, as the sentence says";
    /// The agent cannot answer load balancers' health checks at an address. Subject: the address.
    ServiceHealthPort, "service-health-port", Degraded,
        "end the process that has the port (`ss -ltnp` names it); leave --service-health-address out if kube-proxy runs here; the agent tries again every ten seconds";
    /// No link has this node's InternalIP.
    InternalIpAbsent, "internal-ip-absent", Degraded,
        "give the node the address, or set its kubelet's --node-ip to an address that the node has; do nothing if the cloud maps the address one to one";
    /// This node has no route to another node. Subject: the node.
    NoRouteToNode, "no-route-to-node", Degraded, "give this node a route to that node's InternalIP";
    /// The route to another node leaves by a link that is not an uplink. Subject: the node.
    RoutePastUplinks, "route-past-uplinks", Degraded, "route by an uplink, or name this link with --uplink and not with --exclude-uplink";
    /// A route leads pods' packets to the world to a link without programs. The packets are
    /// dropped. Subject: the link.
    LinkWithoutPrograms, "link-without-programs", Degraded,
        "route by another link, or name this link with --uplink and not with --exclude-uplink; do nothing if pods need not reach the networks behind it";
    /// Like [`Self::UplinkObstructed`], for a link that is not an uplink.
    LinkObstructed, "link-obstructed", Degraded, "remove the other queueing discipline as the sentence says";
    /// The host's firewall may drop pods' packets. Subject: the place in the firewall.
    FirewallDrops, "firewall-drops", Degraded, "run the commands that the sentence names";
    /// The agent cannot read the host's firewall.
    FirewallUnreadable, "firewall-unreadable", Degraded,
        "let the agent use netlink sockets of netfilter (its seccomp profile) and restart it; until then check yourself whether the chains of the forward hook drop pods' packets";
    /// The table of translations is nearly full.
    TranslationsNearlyFull, "translations-nearly-full", Degraded, "raise --max-translations";
    /// A pod or a hostPort has nearly used its share of the table of translations. Subject: its
    /// address, port and protocol.
    HolderCrowded, "holder-crowded", Degraded, "raise --max-translations if these flows are legitimate";
    /// The node's own processes cannot reach hostPorts.
    HostProcesses, "host-processes", Degraded, "name the root of the cgroup2 hierarchy with --cgroup-dir";
    /// The agent cannot query connection tracking.
    ConntrackUnavailable, "conntrack-unavailable", Degraded,
        "load the kernel module nf_conntrack_netlink, and let the agent use netlink sockets of netfilter (its seccomp profile); then restart the agent";
    /// The agent cannot read which addresses host-local has assigned.
    HostLocalUnreadable, "host-local-unreadable", Degraded, "make the folder of --cni-state-dir readable for the agent";
    /// The agent assigns some addresses of the podCIDR to no pod, because something else uses them.
    AddressesOfOthers, "addresses-of-others", Degraded,
        "once the pods of the other pod network are gone, remove its leftovers from the node";
    /// A pod's hostIP is not an address of this node. Subject: the pod's link.
    HostIpAbsent, "host-ip-absent", Degraded, "give the node the address, or give the pod another hostIP";
    /// A file in the endpoints' folder is not a usable endpoint file. Subject: the file.
    EndpointFile, "endpoint-file", Degraded, "remove the file; the agent checks the folder again at its next start";
    /// No file describes a pod that the maps have, so its bandwidth limits are unknown. Subject:
    /// the pod's link.
    EndpointRecovered, "endpoint-recovered", Degraded, "recreate the pod if it needs its bandwidth limits";
    /// The runtime takes another network configuration.
    OtherConfigurationFirst, "other-configuration-first", Degraded,
        "remove the other configuration, or rename it so that it comes after Podwire's; then recreate the pods that used it";
    /// The pods' MTU is too large for the uplinks.
    MtuTooLarge, "mtu-too-large", Degraded, "lower --mtu";
    /// A tunnel of IPv6 does not take the packets that every IPv6 path must take.
    UnderlayTooSmall, "underlay-too-small", Degraded,
        "raise the MTU of the links between the nodes to 1350 or more, or set --tunnel-family ipv4 if all nodes have IPv4";
    /// The node's podCIDR is too small to have an address for a pod.
    NoRoomForPods, "no-room-for-pods", Degraded, "give the node a larger podCIDR";
    /// No address of the node's podCIDR is free. STATUS reports it, too.
    NoFreeAddress, "no-free-address", Degraded, "delete pods, or give the node a larger podCIDR";
    /// A pod has an address outside the node's podCIDR. Subject: the pod's link.
    PodsOutsidePodCidr, "pods-outside-pod-cidr", Degraded, "recreate these pods, so that they get new addresses";
    /// A pod's device is gone, but the agent cannot release its address yet. Subject: the pod's
    /// link.
    NotReleased, "not-released", Degraded, "do what the sentence says; the agent tries again every ten seconds";
    /// The agent cannot use the file of `--non-masquerade-file`.
    NonMasqueradeFile, "non-masquerade-file", Degraded, "correct the file; until then the agent uses the previous networks";
    /// The agent cannot use the file of `--config`.
    ConfigFileUnusable, "config-file-unusable", Degraded,
        "correct the file: the agent cannot start with it";
    /// The file of `--config` sets options differently from what the agent runs with.
    ConfigFileDiffers, "config-file-differs", Degraded, "restart the agent";
    /// The file of `--config` sets options differently from the command line or the environment.
    ConfigFileOverridden, "config-file-overridden", Degraded, "remove these options from the file, or from the command line and the environment";
}

/// A problem that exists now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// The problem's name.
    pub name: ConditionName,
    /// The pod, node, link or file that has the problem; empty if a name has only one subject.
    pub subject: &'a str,
    /// The sentence for the operator.
    pub sentence: &'a str,
}

/// All problems that exist now.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// The sentence for each name and subject.
    hold: BTreeMap<(ConditionName, String), String>,
}

impl Conditions {
    /// Returns the conditions of an agent that has seen no node list yet. Logs nothing, because
    /// every agent starts this way.
    pub fn at_start(sentence: String) -> Self {
        Self { hold: BTreeMap::from([((ConditionName::NodeListUnread, String::new()), sentence)]) }
    }

    /// Records that a condition holds, with its sentence.
    pub fn set(&mut self, name: ConditionName, sentence: impl Into<String>) {
        self.set_for(name, "", sentence);
    }

    /// Records that a condition holds for one of several subjects.
    pub fn set_for(&mut self, name: ConditionName, subject: impl Into<String>, sentence: impl Into<String>) {
        if let Some(begun) = self.insert(name, subject.into(), sentence.into()) {
            begun.log();
        }
    }

    /// Ends a condition for all subjects.
    pub fn clear(&mut self, name: ConditionName) {
        self.retain(name, |_| false);
    }

    /// Ends a condition for one subject.
    pub fn clear_for(&mut self, name: ConditionName, subject: &str) {
        self.retain(name, |other| other != subject);
    }

    /// Records the condition if there is a sentence, and ends it otherwise. Returns whether
    /// anything changed.
    pub fn update(&mut self, name: ConditionName, sentence: Option<String>) -> bool {
        let before = self.of(name).next().map(|condition| condition.sentence);
        if before == sentence.as_deref() {
            return false;
        }
        match sentence {
            Some(sentence) => self.set(name, sentence),
            None => self.clear(name),
        }
        true
    }

    /// Records that a condition holds for exactly these subjects, each with its sentence.
    pub fn replace(&mut self, name: ConditionName, sentences: impl IntoIterator<Item = (String, String)>) {
        let sentences: BTreeMap<String, String> = sentences.into_iter().collect();
        self.retain(name, |subject| sentences.contains_key(subject));
        let mut begun = 0;
        for (subject, sentence) in sentences {
            let Some(new) = self.insert(name, subject, sentence) else { continue };
            begun += 1;
            match begun <= LOGGED {
                true => new.log(),
                false => debug!(condition = name.name(), "{}", new.sentence),
            }
        }
        if let Some(more @ 1..) = begun.checked_sub(LOGGED) {
            warn!(condition = name.name(), more, "more subjects have it; --log-level debug logs them");
        }
    }

    /// Ends a condition for every subject that `keep` rejects.
    pub fn retain(&mut self, name: ConditionName, keep: impl Fn(&str) -> bool) {
        let is_over = |(of, subject): &(ConditionName, String)| *of == name && !keep(subject);
        let over = self.hold.extract_if((name, String::new()).., |key, _| is_over(key));
        for (ended, ((_, subject), sentence)) in over.enumerate() {
            let (condition, is_waiting) = (name.name(), name.severity() == Severity::Waiting);
            // The line "ready" reports the end of a wait.
            match ended < LOGGED && !is_waiting {
                true => info!(condition, subject, "condition over"),
                false => debug!(condition, subject, "condition over: {sentence}"),
            }
        }
    }

    /// Returns whether a condition holds for any subject.
    pub fn holds(&self, name: ConditionName) -> bool {
        self.of(name).next().is_some()
    }

    /// Returns all conditions of one name, sorted by subject.
    pub fn of(&self, name: ConditionName) -> impl Iterator<Item = Condition<'_>> {
        let of_name = self.hold.range((name, String::new())..).take_while(move |((of, _), _)| *of == name);
        of_name.map(|((name, subject), sentence)| Condition { name: *name, subject, sentence })
    }

    /// Returns all conditions, the most important first.
    pub fn iter(&self) -> impl Iterator<Item = Condition<'_>> {
        ConditionName::ALL.iter().flat_map(|name| self.of(*name))
    }

    /// Returns the number of subjects for each name that holds.
    pub fn counts(&self) -> Vec<(ConditionName, usize)> {
        let count = |name: &ConditionName| (*name, self.of(*name).count());
        ConditionName::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Returns why ADD is refused, if it is.
    pub fn refusal(&self) -> Option<Condition<'_>> {
        self.first(Severity::refuses_adds)
    }

    /// Returns why the agent is not ready, if it is not.
    pub fn unready(&self) -> Option<Condition<'_>> {
        self.first(Severity::is_unready)
    }

    /// Returns what STATUS reports, if anything. Conditions that may cut pods off come first.
    pub fn status(&self) -> Option<Condition<'_>> {
        self.first(Severity::cuts_pods_off).or_else(|| self.first(Severity::keeps_pods_out))
    }

    fn first(&self, is: impl Fn(Severity) -> bool) -> Option<Condition<'_>> {
        let names = ConditionName::ALL.iter().filter(|name| is(name.severity()));
        names.copied().find_map(|name| self.of(name).next())
    }

    /// Stores a sentence. Returns the condition, or `None` if it already had this sentence.
    fn insert(&mut self, name: ConditionName, subject: String, sentence: String) -> Option<Condition<'_>> {
        let key = (name, subject);
        if self.hold.get(&key) == Some(&sentence) {
            return None;
        }
        self.hold.insert(key.clone(), sentence);
        let ((_, subject), sentence) = self.hold.get_key_value(&key)?;
        Some(Condition { name, subject, sentence })
    }
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, sentence, .. } = self;
        write!(f, "{} ({}): {sentence} [{}]", name.name(), name.severity().name(), name.remedy())
    }
}

impl Condition<'_> {
    fn log(&self) {
        let (condition, remedy, sentence) = (self.name.name(), self.name.remedy(), self.sentence);
        match self.name.severity().is_error() {
            true => error!(condition, remedy, "{sentence}"),
            false => warn!(condition, remedy, "{sentence}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Checks which conditions ADD, `/readyz` and STATUS show, in this order, while these hold.
    #[track_caller]
    fn check(hold: &[ConditionName], shown: [Option<ConditionName>; 3]) {
        let mut conditions = Conditions::default();
        for name in hold {
            conditions.set(*name, name.name());
        }
        let said = [conditions.refusal(), conditions.unready(), conditions.status()];
        assert_eq!(said.map(|condition| condition.map(|condition| condition.name)), shown, "{hold:?}");
    }

    #[test]
    fn what_is_shown_follows_from_severity_and_order() {
        use ConditionName::{
            CniConfiguration, FirewallDrops, NoUplink, OwnNodeMissing, PinsMissing, ReconcileFailed,
            StateFolder, Switches,
        };
        check(&[], [None; 3]);
        check(&[FirewallDrops], [None; 3]);
        check(&[CniConfiguration], [None, Some(CniConfiguration), None]);
        check(&[StateFolder, CniConfiguration], [None, Some(StateFolder), Some(StateFolder)]);
        check(&[ReconcileFailed], [None, None, Some(ReconcileFailed)]);
        check(&[OwnNodeMissing, StateFolder], [Some(OwnNodeMissing); 3]);
        check(&[NoUplink, ReconcileFailed, PinsMissing], [Some(NoUplink); 3]);
        // STATUS shows conditions that may cut pods off first.
        check(&[Switches, PinsMissing], [Some(PinsMissing), Some(PinsMissing), Some(Switches)]);
        check(
            &[ReconcileFailed, OwnNodeMissing],
            [Some(OwnNodeMissing), Some(OwnNodeMissing), Some(ReconcileFailed)],
        );
    }

    #[test]
    fn a_condition_holds_for_its_subjects() {
        let name = ConditionName::NoRouteToNode;
        let mut conditions = Conditions::default();
        let sentence = |node: &str| (node.to_owned(), format!("no route to {node}"));
        conditions.replace(name, ["node2", "node3"].map(sentence));
        conditions.set_for(name, "node4", "no route to node4");
        assert_eq!(conditions.counts(), [(name, 3)]);
        conditions.replace(name, ["node3", "node4", "node5"].map(sentence));
        conditions.clear_for(name, "node4");
        let subjects: Vec<_> = conditions.of(name).map(|condition| condition.subject).collect();
        assert_eq!(subjects, ["node3", "node5"]);
        conditions.clear(name);
        assert!(!conditions.holds(name) && conditions.counts().is_empty());
    }

    #[test]
    fn a_changed_sentence_is_new_and_the_same_is_not() {
        let mut conditions = Conditions::at_start("not read yet".into());
        let insert = |conditions: &mut Conditions, sentence: &str| {
            conditions.insert(ConditionName::NodeListUnread, String::new(), sentence.into()).is_some()
        };
        assert!(!insert(&mut conditions, "not read yet"));
        assert!(insert(&mut conditions, "the API server does not answer"));
        assert_eq!(conditions.refusal().unwrap().sentence, "the API server does not answer");
    }

    #[test]
    fn names_are_unique_kebab_case_with_remedies() {
        let names: BTreeSet<_> = ConditionName::ALL.iter().map(|name| name.name()).collect();
        assert_eq!(names.len(), ConditionName::ALL.len());
        for name in ConditionName::ALL {
            let is_kebab = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
            assert!(name.name().bytes().all(is_kebab), "{name:?}");
            assert!(!name.remedy().is_empty(), "{name:?}");
        }
    }
    /// The table of the tests in which each condition appears and ends, and stays away.
    const TESTED: &str = include_str!("../../docs/design/conditions.md");

    #[test]
    fn each_condition_has_its_tests() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let rows = TESTED.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let rows: Vec<(&str, &str)> = rows.collect();
        let names: Vec<_> = ConditionName::ALL.iter().map(|name| name.name()).collect();
        assert_eq!(rows.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        for (name, tests) in rows {
            let mut names_it = false;
            // Every second part is between backticks.
            let tests = tests.split('`').skip(1).step_by(2).filter_map(|test| test.rsplit_once("::"));
            for (module, function) in tests {
                let path = folder.join(module.replace("::", "/")).with_extension("rs");
                let text = std::fs::read_to_string(&path);
                let text = text.unwrap_or_else(|error| panic!("{name}: {}: {error}", path.display()));
                assert!(text.contains(&format!("fn {function}(")), "{name}: no test {module}::{function}");
                names_it |= text.contains(&format!("\"{name}\""));
            }
            assert!(names_it, "no test of {name} names it");
        }
    }
}
