//! Everything that can be wrong with a node, by name. Pure.
//!
//! The owner of state says what holds. `/readyz`, STATUS, ADD and the gauge `podwire_condition` follow from the
//! severities of what holds, and from nothing else. `/readyz?verbose` lists all of it. `/healthz` follows from no condition: it fails when the owner of
//! state does not answer, and a restart of the agent cures none of these.
//!
//! A condition is logged when it begins, when its sentence changes, and when it ends.

use std::collections::BTreeMap;
use std::fmt;

use tracing::{debug, error, info, warn};

/// Subjects of one name that one change logs one by one: a list of nodes may bring thousands.
const LOGGED: usize = 10;

/// What a condition keeps from working.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The node's pods may be cut off, and ADD is refused.
    CutOff,
    /// The node's pods may be cut off. ADD is tried, and the agent is as ready as before.
    DataPath,
    /// ADD is refused; pods have their network.
    NoAdds,
    /// The same, and what is missing comes by itself: this is how an agent starts.
    Waiting,
    /// ADD is tried and fails; pods have their network.
    AddsFail,
    /// Runtimes do not know of the agent; it serves those that do.
    Unannounced,
    /// Something works worse than it could, or not at all for some.
    Degraded,
}

impl Severity {
    /// As metrics have it.
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

    /// Whether ADD is refused before anything is tried.
    pub fn refuses_adds(self) -> bool {
        matches!(self, Self::CutOff | Self::NoAdds | Self::Waiting)
    }

    /// Whether `/readyz` fails.
    pub fn is_unready(self) -> bool {
        self.refuses_adds() || matches!(self, Self::AddsFail | Self::Unannounced)
    }

    /// Whether STATUS tells that pods that are there may be cut off (code 51).
    pub fn cuts_pods_off(self) -> bool {
        matches!(self, Self::CutOff | Self::DataPath)
    }

    /// Whether STATUS tells that no pod can be added (code 50, or 51).
    pub fn keeps_pods_out(self) -> bool {
        self.cuts_pods_off() || self.refuses_adds() || self == Self::AddsFail
    }

    fn is_error(self) -> bool {
        !matches!(self, Self::Waiting | Self::Degraded)
    }
}

/// Declares the names, each in one row: variant, name, severity, remedy. Of several conditions that hold, the one
/// that is declared first is the reason that is shown.
macro_rules! names {
    ($($(#[$doc:meta])+ $variant:ident, $name:literal, $severity:ident, $remedy:literal;)+) => {
        /// What can be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ConditionName {
            $($(#[$doc])+ $variant,)+
        }

        impl ConditionName {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As metrics and the log have it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it keeps from working.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)+
                }
            }

            /// What the operator does.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                }
            }
        }
    };
}

names! {
    /// No link of this node leads out.
    NoUplink, "no-uplink", CutOff, "bring the link up, or name it with --uplink";
    /// The last comparison of the kernel with what is wanted failed.
    ReconcileFailed, "reconcile-failed", DataPath,
        "do what the sentence says; the agent tries again every ten seconds";
    /// Maps or links are not pinned, and cannot be.
    PinsMissing, "pins-missing", NoAdds, "mount a BPF file system at --bpf-dir again, writable";
    /// Kernel switches that pods need cannot be set.
    Switches, "switches", CutOff, "make the node's /proc/sys/net writable for the agent (--sysctl-dir), or set the switch";
    /// Another tool's queueing discipline stands where the programs of a link belong. Subject: the link.
    UplinkObstructed, "uplink-obstructed", CutOff, "remove the other discipline as the sentence says";
    /// The agent has not got a node list with this node yet, and cannot read one.
    NodeListUnread, "node-list-unread", Waiting, "check that the API server, or the file of --nodes, can be read";
    /// The node list has no usable entry for this node, or has none any more.
    OwnNodeMissing, "own-node-missing", Waiting,
        "check --node-name, and that the cluster gives this node a podCIDR and an InternalIP";
    /// Nothing has gone through since something last kept ADD from being served.
    NotSetUp, "not-set-up", Waiting, "do what the sentence says; the agent tries again every ten seconds";
    /// The state folder takes no file.
    StateFolder, "state-folder", AddsFail, "free or repair the disk of --state-dir";
    /// The runtime's network configuration cannot be written.
    CniConfiguration, "cni-configuration", Unannounced, "make the folder of --cni-conf-dir writable";
    /// The node list may be out of date.
    NodeListStale, "node-list-stale", Degraded, "check that the API server, or the file of --nodes, can be read";
    /// A node, or a part of its entry, is not used. Subject: the problem.
    NodeProblem, "node-problem", Degraded, "correct that node's entry";
    /// No link has this node's InternalIP.
    InternalIpAbsent, "internal-ip-absent", Degraded,
        "give the node the address, or have its kubelet report another (--node-ip); nothing is to do if the cloud maps the address one to one";
    /// Another node is out of reach. Subject: the node.
    NoRouteToNode, "no-route-to-node", Degraded, "give this node a route to that node's InternalIP";
    /// The route to another node leaves by a link without programs. Subject: the node.
    RoutePastUplinks, "route-past-uplinks", Degraded, "name the link with --uplink";
    /// The route for pods' packets to the world leads by a link without programs. Subject: the link.
    LinkWithoutPrograms, "link-without-programs", Degraded,
        "have the route lead by another link, or name this one with --uplink unless --exclude-uplink does; nothing, if pods need not reach what is behind it";
    /// As [`Self::UplinkObstructed`], of a link that is no uplink.
    LinkObstructed, "link-obstructed", Degraded, "remove the other discipline as the sentence says";
    /// The host's firewall may drop pods' packets. Subject: the place.
    FirewallDrops, "firewall-drops", Degraded, "run the commands that the sentence names";
    /// The host's firewall cannot be read.
    FirewallUnreadable, "firewall-unreadable", Degraded, "look at the chains of the forward hook yourself";
    /// The table of translations is nearly full.
    TranslationsNearlyFull, "translations-nearly-full", Degraded, "raise --max-translations";
    /// A pod or a hostPort has nearly used its share of the table of translations. Subject: its address and port.
    HolderCrowded, "holder-crowded", Degraded, "raise --max-translations, where the flows are wanted";
    /// The node's own processes do not reach hostPorts.
    HostProcesses, "host-processes", Degraded, "name the root of cgroup2 with --cgroup-dir";
    /// Connection tracking does not answer.
    ConntrackUnavailable, "conntrack-unavailable", Degraded, "load nf_conntrack_netlink";
    /// The addresses that host-local has given are not known.
    HostLocalUnreadable, "host-local-unreadable", Degraded, "make the folder of --cni-state-dir readable";
    /// Addresses of the podCIDR are not given to pods, as others have them.
    AddressesOfOthers, "addresses-of-others", Degraded,
        "remove what another pod network has left on the node, once its pods are gone";
    /// A hostPort is at an address that the node does not have. Subject: the pod's link.
    HostIpAbsent, "host-ip-absent", Degraded, "give the node the address, or the pod another hostIP";
    /// A file in the place of an endpoint's is none. Subject: the file.
    EndpointFile, "endpoint-file", Degraded, "remove the file; the agent looks again when it starts";
    /// No file tells of a pod that the maps have, with its limits. Subject: its link.
    EndpointRecovered, "endpoint-recovered", Degraded, "make the pod anew, if it is to be limited";
    /// The runtime takes another network configuration.
    OtherConfigurationFirst, "other-configuration-first", Degraded,
        "remove the other configuration, or rename it so that it comes after, and make its pods anew";
    /// Pods' MTU is more than what fits the uplinks.
    MtuTooLarge, "mtu-too-large", Degraded, "lower --mtu";
    /// The node's podCIDR has no address for a pod.
    NoRoomForPods, "no-room-for-pods", Degraded, "give the node a larger podCIDR";
    /// A pod has an address outside the node's podCIDR. Subject: its link.
    PodsOutsidePodCidr, "pods-outside-pod-cidr", Degraded, "restart these pods";
    /// A pod is gone, but what it had cannot be taken back. Subject: its link.
    NotReleased, "not-released", Degraded, "do what the sentence says; the agent tries again every ten seconds";
    /// The file of `--non-masquerade-file` cannot be used.
    NonMasqueradeFile, "non-masquerade-file", Degraded, "correct the file; the networks of before count meanwhile";
    /// The file of `--config` cannot be used.
    ConfigFileUnusable, "config-file-unusable", Degraded,
        "correct the file: an agent could not be started with it";
    /// The file of `--config` says otherwise than what the agent runs with.
    ConfigFileDiffers, "config-file-differs", Degraded, "restart the agent";
    /// The file of `--config` says otherwise than the command line or the environment.
    ConfigFileOverridden, "config-file-overridden", Degraded, "take the options out of one of them";
}

/// Something that is wrong now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// Which.
    pub name: ConditionName,
    /// Of what, where there can be several; else empty.
    pub subject: &'a str,
    /// What an operator reads.
    pub sentence: &'a str,
}

/// Everything that is wrong now.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Name and subject, and the sentence.
    hold: BTreeMap<(ConditionName, String), String>,
}

impl Conditions {
    /// Of an agent that has seen no node list yet. Every agent starts so, and nothing is logged.
    pub fn at_start(sentence: String) -> Self {
        Self { hold: BTreeMap::from([((ConditionName::NodeListUnread, String::new()), sentence)]) }
    }

    /// It holds, for this reason.
    pub fn set(&mut self, name: ConditionName, sentence: impl Into<String>) {
        self.set_for(name, "", sentence);
    }

    /// It holds for one of several subjects.
    pub fn set_for(&mut self, name: ConditionName, subject: impl Into<String>, sentence: impl Into<String>) {
        if let Some(begun) = self.insert(name, subject.into(), sentence.into()) {
            begun.log();
        }
    }

    /// It holds for no subject.
    pub fn clear(&mut self, name: ConditionName) {
        self.retain(name, |_| false);
    }

    /// It does not hold for this subject.
    pub fn clear_for(&mut self, name: ConditionName, subject: &str) {
        self.retain(name, |other| other != subject);
    }

    /// It holds if there is a sentence. Says whether that is news.
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

    /// It holds for these subjects, each with its sentence, and for no others.
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
            warn!(condition = name.name(), more, "others, which --log-level debug names");
        }
    }

    /// It holds no longer for the subjects that are not to be kept.
    pub fn retain(&mut self, name: ConditionName, keep: impl Fn(&str) -> bool) {
        let is_over = |(of, subject): &(ConditionName, String)| *of == name && !keep(subject);
        let over = self.hold.extract_if((name, String::new()).., |key, _| is_over(key));
        for (ended, ((_, subject), sentence)) in over.enumerate() {
            let (condition, is_waiting) = (name.name(), name.severity() == Severity::Waiting);
            // An agent that waits no longer says "ready".
            match ended < LOGGED && !is_waiting {
                true => info!(condition, subject, "over"),
                false => debug!(condition, subject, "over: {sentence}"),
            }
        }
    }

    /// Whether it holds for any subject.
    pub fn holds(&self, name: ConditionName) -> bool {
        self.of(name).next().is_some()
    }

    /// All of one name, by subject.
    pub fn of(&self, name: ConditionName) -> impl Iterator<Item = Condition<'_>> {
        let of_name = self.hold.range((name, String::new())..).take_while(move |((of, _), _)| *of == name);
        of_name.map(|((name, subject), sentence)| Condition { name: *name, subject, sentence })
    }

    /// All that hold, the most important first.
    pub fn iter(&self) -> impl Iterator<Item = Condition<'_>> {
        ConditionName::ALL.iter().flat_map(|name| self.of(*name))
    }

    /// How many subjects each name that holds has.
    pub fn counts(&self) -> Vec<(ConditionName, usize)> {
        let count = |name: &ConditionName| (*name, self.of(*name).count());
        ConditionName::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Why ADD is refused, if it is.
    pub fn refusal(&self) -> Option<Condition<'_>> {
        self.first(Severity::refuses_adds)
    }

    /// Why the agent is not ready, if it is not.
    pub fn unready(&self) -> Option<Condition<'_>> {
        self.first(Severity::is_unready)
    }

    /// What STATUS tells, if anything: what may cut pods off comes first.
    pub fn status(&self) -> Option<Condition<'_>> {
        self.first(Severity::cuts_pods_off).or_else(|| self.first(Severity::keeps_pods_out))
    }

    fn first(&self, is: impl Fn(Severity) -> bool) -> Option<Condition<'_>> {
        let names = ConditionName::ALL.iter().filter(|name| is(name.severity()));
        names.copied().find_map(|name| self.of(name).next())
    }

    /// What is new, if anything is.
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

    /// What is shown where these hold: by ADD, by `/readyz`, by STATUS.
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
        // What may cut pods off comes first where the runtime asks for it.
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
}
