//! A host with a firewall that drops forwarded packets: the agent reports it, and its advice helps.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use podwire::firewall;
use podwire_core::forward_policy::Place;
use podwire_core::model::Family;
use xtask::lab::{Families, Lab, Mode, Node, Ns, Pod, traffic};

use crate::service::{API_SERVER, iptables_of};
use crate::sweep::{condition, goes, told};

const DROPS: &str = "firewall-drops";
const PATIENCE: Duration = Duration::from_secs(10);
/// firewalld 1.3.3's rules for its default configuration, and for that configuration after the
/// advice, as `nft list ruleset` prints them.
const FIREWALLD: &str = include_str!("../../../testdata/firewalld/default.nft");
const FIREWALLD_PODS_TRUSTED: &str = include_str!("../../../testdata/firewalld/pods-trusted.nft");

#[test]
fn iptables_nft_drop_policy_is_told_with_rules_that_lift_it() {
    let scene = Scene::new();
    scene.run("iptables-nft -P FORWARD DROP");
    let advice = scene.cut(&scene.outside_of(Family::V4), "nftables ip filter FORWARD");
    advice.iter().for_each(|command| scene.run(command));
    scene.cured();
    scene.run("ip6tables-nft -P FORWARD DROP");
    let advice = scene.cut(&scene.outside_of(Family::V6), "nftables ip6 filter FORWARD");
    advice.iter().for_each(|command| scene.run(command));
    scene.cured();
}

#[test]
fn iptables_legacy_drop_policy_is_told_with_rules_that_lift_it() {
    let scene = Scene::new();
    scene.run("iptables-legacy -w -P FORWARD DROP");
    let advice = scene.cut(&scene.outside_of(Family::V4), "legacy iptables filter FORWARD");
    advice.iter().for_each(|command| scene.run(command));
    scene.cured();
}

#[test]
fn any_nftables_drop_policy_is_told_with_rules_that_lift_it() {
    let scene = Scene::new();
    scene.nft("table inet host { chain forwarded { type filter hook forward priority 10; policy drop; }; }");
    let advice = scene.cut(&scene.outside(), "nftables inet host forwarded");
    advice.iter().for_each(|command| scene.run(command));
    scene.cured();
}

#[test]
fn firewalld_is_told_with_the_commands_that_let_pods_pass() {
    let scene = Scene::new();
    scene.nft(FIREWALLD);
    let reverse_path = "nftables inet firewalld filter_PREROUTING";
    let advice = scene.cut_at(&scene.outside(), &["firewalld", reverse_path]);
    let trust = [
        "firewall-cmd --permanent --zone=trusted --add-interface=pw+",
        "firewall-cmd --permanent --add-port=8472/udp",
        "firewall-cmd --reload",
    ];
    let loosen = [
        "sed -i 's/^IPv6_rpfilter=.*/IPv6_rpfilter=no/' /etc/firewalld/firewalld.conf",
        "systemctl restart firewalld",
    ];
    assert_eq!(advice, [&trust[..], &loosen].concat());
    // There is no firewalld here that could run the commands, so load the rules that it would make.
    scene.run("nft delete table inet firewalld");
    scene.nft(FIREWALLD_PODS_TRUSTED);
    let [service, world] = scene.outside_of(Family::V6)[..] else { panic!("a service and the world") };
    scene.reaches(&[world]);
    assert_eq!(scene.cut(&[service], reverse_path), loosen);
    scene.run("nft delete table inet firewalld");
    let is_kept = |line: &&str| !line.contains("fib saddr");
    scene.nft(&FIREWALLD_PODS_TRUSTED.lines().filter(is_kept).collect::<Vec<_>>().join("\n"));
    scene.cured();
}

#[test]
fn a_reverse_path_rule_is_told_with_a_rule_for_the_tunnel() {
    let scene = Scene::new();
    // The first rule is in nobody's way: the packets have another route back.
    scene.nft(
        "table inet host { chain pre { type filter hook prerouting priority 10; policy accept; \
         fib daddr . iif type blackhole drop; fib saddr . iif oif missing drop; }; }",
    );
    // For IPv4, the kernel's own switch is off, and this rule takes its place.
    let services = [Family::V4, Family::V6].map(|family| scene.outside_of(family)[0]);
    let advice = scene.cut(&services, "nftables inet host pre");
    assert_eq!(advice, ["nft insert rule inet host pre iifname \"podwire-vxlan\" accept"]);
    advice.iter().for_each(|command| scene.run(command));
    scene.cured();
    // Without a tunnel, packets arrive by the link of the route back.
    let scene = Scene::by(Families::Dual, Mode::Direct);
    scene.nft(
        "table inet host { chain pre { type filter hook prerouting priority 10; policy accept; \
         fib saddr . iif oif missing drop; }; }",
    );
    assert_eq!(scene.warnings_of_new_agent(), [""; 0]);
    scene.reaches(&scene.outside());
}

#[test]
fn rules_for_one_way_do_not_silence_the_agent() {
    let scene = Scene::new();
    scene.run("iptables-nft -P FORWARD DROP");
    scene.run("iptables-nft -I FORWARD -i pw+ -j ACCEPT");
    // The world's answers go past the host's rules.
    let [service, world] = scene.outside_of(Family::V4)[..] else { panic!("a service and the world") };
    scene.reaches(&[world]);
    scene.cut(&[service], "nftables ip filter FORWARD");
}

#[test]
fn of_a_firewall_that_is_not_in_the_way_nothing_is_said() {
    // A chain of IPv6 is in nobody's way on a node without IPv6 pods.
    let scene = Scene::of(Families::V4);
    scene.run("iptables-nft -P FORWARD ACCEPT");
    scene.run("iptables-nft -A FORWARD -p tcp --dport 25 -j DROP");
    scene.run("iptables-legacy -w -P FORWARD ACCEPT");
    scene
        .nft("table inet host { chain forwarded { type filter hook forward priority 10; policy accept; }; }");
    scene.nft("table ip6 host { chain forwarded { type filter hook forward priority 10; policy drop; }; }");
    scene.nft("table ip mine { chain in { type filter hook input priority 10; policy drop; accept; }; }");
    assert_eq!(scene.warnings_of_new_agent(), [""; 0]);
    assert!(!scene.metrics().contains("podwire_forward_policy_drop{"));
    scene.reaches(&scene.outside());
}

#[test]
fn places_of_ipv6_are_found_and_their_remedies_lift_them() {
    let lab = Lab::builder().agents(false).nodes(1).build().unwrap();
    for (number, (made_by, label)) in [
        ("ip6tables-nft -P FORWARD DROP", "nftables ip6 filter FORWARD"),
        ("ip6tables-legacy -w -P FORWARD DROP", "legacy ip6tables filter FORWARD"),
        (
            "nft 'table ip6 host { chain c { type filter hook forward priority 10; policy drop; }; }'",
            "nftables ip6 host c",
        ),
        (
            "nft 'table inet host { chain c { type filter hook forward priority 10; policy drop; }; }'",
            "nftables inet host c",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let host = lab.add_namespace(&format!("host{number}")).unwrap();
        let run = |command: &str| host.exec(&["sh", "-c", command]).unwrap();
        let look = || host.enter(|| firewall::look().unwrap()).unwrap();
        // Rules for some packets only, and for one way only, accept too little.
        run("ip6tables-legacy -w -A FORWARD -i pw+ -p tcp -j ACCEPT");
        assert_eq!(look(), [].into(), "{label}");
        run(made_by);
        let found = look();
        let labels: Vec<_> = found.iter().map(Place::label).collect();
        assert_eq!(labels, [label]);
        let place = found.first().unwrap();
        assert!(place.sees_ipv6(), "{label}");
        let remedies = place.remedies(Some(8472));
        run(&remedies[0]);
        assert_eq!(look(), found, "{label}: one way only");
        run(&remedies[1]);
        assert_eq!(look(), [].into(), "{label}");
    }
}

/// A pod on a node with a firewall that the test changes, and the destinations that it talks to.
struct Scene {
    client: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

impl Scene {
    /// Returns a scene where everything can be reached.
    fn new() -> Self {
        Self::of(Families::Dual)
    }

    fn of(families: Families) -> Self {
        Self::by(families, Mode::Vxlan)
    }

    fn by(families: Families, mode: Mode) -> Self {
        let lab = Lab::builder().families(families).mode(mode).build().unwrap();
        let scene = Self {
            client: lab.node(0).add_pod("client").unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            lab,
        };
        for backend in scene.lab.node(1).addresses() {
            let service = Family::of(backend).first_of(API_SERVER).unwrap();
            let rule = format!("-t nat -A PREROUTING -d {service} -j DNAT --to-destination {backend}");
            iptables_of(service, scene.node(), &rule);
        }
        assert_eq!(condition(scene.node(), DROPS), 0);
        scene.reaches(&scene.outside());
        scene
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Returns what is reached through the host's stack: a service and the world, of each family.
    fn outside(&self) -> Vec<IpAddr> {
        let world = self.lab.world_addresses().into_iter();
        world.flat_map(|world| [Family::of(world).first_of(API_SERVER).unwrap(), world]).collect()
    }

    fn outside_of(&self, family: Family) -> Vec<IpAddr> {
        self.outside().into_iter().filter(|address| Family::of(*address) == family).collect()
    }

    /// Runs a command as a person types it.
    fn run(&self, command: &str) {
        self.node().exec(&["sh", "-c", command]).unwrap();
    }

    fn nft(&self, rules: &str) {
        self.node().exec(&["nft", rules]).unwrap();
    }

    /// Asserts that these addresses cannot be reached but pods and the other family can, and that a
    /// new agent reports it with the place. Returns the commands that the agent advises.
    fn cut(&self, unreachable: &[IpAddr], place: &str) -> Vec<String> {
        self.cut_at(unreachable, &[place])
    }

    /// Does the same for several places.
    fn cut_at(&self, unreachable: &[IpAddr], places: &[&str]) -> Vec<String> {
        thread::scope(|scope| {
            for address in unreachable.iter().copied() {
                scope.spawn(move || {
                    assert!(traffic::ping(&self.client, address, 56).is_err(), "{address} is reached");
                });
            }
        });
        let is_cut = |family: Family| unreachable.iter().any(|address| Family::of(*address) == family);
        let others = self.outside().into_iter().filter(|address| !is_cut(Family::of(*address)));
        self.reaches(&others.collect::<Vec<_>>());
        let warnings = self.warnings_of_new_agent();
        assert_eq!(warnings.len(), places.len(), "{warnings:?}");
        for place in places {
            let metric = format!("podwire_forward_policy_drop{{where=\"{place}\"}} 1");
            assert!(self.metrics().lines().any(|line| line == metric), "{metric} is missing");
        }
        let commands = warnings.iter().flat_map(|warning| {
            let (_, advice) = warning.split_once("; let them pass with ").unwrap();
            advice.split('`').skip(1).step_by(2)
        });
        commands.map(str::to_owned).collect()
    }

    /// Asserts that everything can be reached, that the running agent reports the end of the
    /// problem, and that a new agent reports nothing.
    fn cured(&self) {
        self.reaches(&self.outside());
        goes(self.node(), DROPS);
        assert!(!self.metrics().contains("podwire_forward_policy_drop{"));
        assert_eq!(self.warnings_of_new_agent(), [""; 0]);
    }

    /// Asserts that both pods can be reached, whatever the firewall does, and so can these
    /// addresses.
    fn reaches(&self, addresses: &[IpAddr]) {
        for address in [&self.near, &self.far].into_iter().flat_map(|pod| pod.addresses()).chain(addresses) {
            traffic::ping(&self.client, *address, 56).unwrap();
        }
        for pod in [&self.near, &self.far] {
            for address in pod.addresses() {
                traffic::tcp_exchange(&self.client, pod, *address, 8080, 1 << 20).unwrap();
            }
        }
    }

    fn warnings_of_new_agent(&self) -> Vec<String> {
        self.node().restart_agent().unwrap();
        told(self.node(), DROPS)
    }

    fn metrics(&self) -> String {
        get(self.node(), "/metrics")
    }
}

/// Returns the answer of the agent's metrics server in a namespace.
fn get(ns: &Ns, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 9790)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ns.enter(ask).unwrap().unwrap()
}
