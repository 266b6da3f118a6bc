//! Pods with an IPv6 address: alone, and beside an IPv4 address in either order.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use podwire_cni::protocol::{Call, codes};
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, sockopt};
use serde_json::{Value, json};

use crate::lab::{Addresses, Agent, DUAL, IPV4, IPV6, Lab, PluginCall, inside, ipv6_switch, set_ipv6_switch};
use crate::{VERSIONS, list};

const IPV6_FIRST: Addresses = &[IPV6[0], IPV4[0]];
const POD: &str = "fd00:10:244:1::7";
/// `ETH_P_IPV6`, in network order.
const IPV6_FRAMES: u16 = 0x86dd_u16.to_be();
/// Switches of both ends of the pair, and their values.
const SWITCHES: [(&str, &str); 3] = [("accept_ra", "0"), ("addr_gen_mode", "1"), ("disable_ipv6", "0")];

/// A lab with a namespace in which a runtime has switched IPv6 off, as some do for every pod.
fn lab() -> Lab {
    let lab = Lab::new();
    inside(&lab.netns(), || {
        ["all", "default"].iter().for_each(|links| set_ipv6_switch(links, "disable_ipv6", "1"));
    });
    lab
}

fn serving(lab: &Lab, addresses: Addresses) -> Agent {
    Agent::start(lab, move |lab, request| lab.serve_with(addresses, request))
}

/// Returns the host side's name from a result of 0.3.0 or later.
fn host_interface(result: &Value) -> &str {
    result["interfaces"][0]["name"].as_str().unwrap()
}

#[test]
fn each_family_is_set_up_and_reported_in_order() {
    for addresses in [DUAL, IPV6_FIRST, IPV6] {
        let lab = lab();
        let agent = serving(&lab, addresses);
        let output = lab.call("ADD").run();
        output.succeeded();
        let result = output.json();
        let ips: Vec<_> = addresses
            .iter()
            .map(|(address, gateway)| json!({"interface": 1, "address": address, "gateway": gateway}))
            .collect();
        let default = |gateway: &str| if gateway.contains(':') { "::/0" } else { "0.0.0.0/0" };
        let routes = addresses.iter().map(|(_, gateway)| json!({"dst": default(gateway), "gw": gateway}));
        assert_eq!(result["ips"], json!(ips));
        assert_eq!(result["routes"], routes.collect::<Value>());

        let link = &lab.in_pod("-6 address show dev eth0")[0];
        let own: Vec<_> = list(&link["addr_info"]).iter().map(|ip| &ip["local"]).collect();
        assert_eq!(own, [POD], "{link}");
        let ip = &link["addr_info"][0];
        assert_eq!(
            (&ip["prefixlen"], &ip["nodad"], &ip["tentative"]),
            (&json!(128), &json!(true), &Value::Null)
        );
        let routes = lab.in_pod("-6 route show dev eth0");
        let told: Vec<_> = list(&routes).iter().map(|route| (&route["dst"], &route["gateway"])).collect();
        for route in [(&json!("default"), &json!("fe80::1")), (&json!("fe80::1"), &Value::Null)] {
            assert!(told.contains(&route), "{route:?} is not in {routes}");
        }
        let Call::Add(asked) = agent.requests().remove(0) else { panic!("no ADD was asked for") };
        let neighbours = lab.in_pod("-6 neighbour show dev eth0");
        let found = (&neighbours[0]["dst"], &neighbours[0]["lladdr"], &neighbours[0]["state"]);
        assert_eq!(found, (&json!("fe80::1"), &json!(asked.host_mac), &json!(["PERMANENT"])));

        let host = &lab.on_node(&format!("address show dev {}", asked.host_interface))[0];
        assert_eq!(list(&host["addr_info"]), [] as [Value; 0], "{host}");
        for (netns, link) in [(lab.netns(), "eth0"), (lab.node_netns(), asked.host_interface.as_str())] {
            let found = inside(&netns, || SWITCHES.map(|(name, _)| ipv6_switch(link, name)));
            assert_eq!(found, SWITCHES.map(|(_, value)| value), "{link}");
        }
        let other = inside(&lab.netns(), || ipv6_switch("default", "disable_ipv6"));
        assert_eq!(other, "1", "the runtime's switch for other links");
        inside(&lab.netns(), || {
            // The kernel delivers it at `lo`.
            let socket = UdpSocket::bind((POD, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send_to(b"own", socket.local_addr().unwrap()).unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 3);
        });
        lab.call("CHECK").config("prevResult", result).run().succeeded();
        lab.call("DEL").run().succeeded();
        lab.nothing_is_left();
    }
}

#[test]
fn results_of_every_version_carry_both_families() {
    let lab = Lab::new();
    let _agent = serving(&lab, IPV6_FIRST);
    for version in VERSIONS {
        let result = lab.call("ADD").config("cniVersion", json!(version)).run().json();
        let (v6, v4) = match version {
            "0.1.0" | "0.2.0" => (&result["ip6"], &result["ip4"]),
            _ => (&result["ips"][0], &result["ips"][1]),
        };
        let address = |ip: &Value| ip.get("address").or(ip.get("ip")).cloned();
        assert_eq!(address(v6), Some(json!("fd00:10:244:1::7/128")), "{result}");
        assert_eq!(address(v4), Some(json!("10.244.1.7/32")), "{result}");
        assert_eq!((&v6["gateway"], &v4["gateway"]), (&json!("fe80::1"), &json!("10.244.1.1")));
        let numbers = if version.starts_with("0.3") || version == "0.4.0" {
            [json!("6"), json!("4")]
        } else {
            [Value::Null, Value::Null]
        };
        assert_eq!([&v6["version"], &v4["version"]], [&numbers[0], &numbers[1]], "{result}");
    }
}

/// Duplicate address detection would take a second, and an address in it cannot be bound to.
#[test]
fn a_pod_sends_over_ipv6_within_50_ms_of_add() {
    let lab = lab();
    let _agent = serving(&lab, IPV6);
    let waited = (0..3).map(|_| first_packet(&lab)).min().unwrap();
    assert!(waited < Duration::from_millis(50), "{waited:?}");
}

/// Returns the time from the end of ADD until the node has the pod's first packet.
fn first_packet(lab: &Lab) -> Duration {
    let node = inside(&lab.node_netns(), || {
        let protocol = rustix::net::Protocol::from_raw(u32::from(IPV6_FRAMES).try_into().unwrap());
        rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, Some(protocol)).unwrap()
    });
    sockopt::set_socket_timeout(&node, sockopt::Timeout::Recv, Some(Duration::from_secs(5))).unwrap();
    lab.call("ADD").run().succeeded();
    let added = Instant::now();
    inside(&lab.netns(), || {
        let socket = UdpSocket::bind((POD, 0)).unwrap();
        socket.send_to(b"first", ("2001:db8::1", 9)).unwrap();
    });
    let mut packet = [0; 64];
    loop {
        let (length, _) = recv(&node, &mut packet, RecvFlags::empty()).unwrap();
        let source = packet[8..24].try_into().map(<[u8; 16]>::into).unwrap();
        if length > 40 && POD.parse::<Ipv6Addr>() == Ok(source) {
            return added.elapsed();
        }
    }
}

#[test]
fn ipv6_of_a_pod_without_an_ipv6_address_stays_as_it_is() {
    let lab = lab();
    let _agent = serving(&lab, IPV4);
    lab.call("ADD").run().succeeded();
    let switches = |link: &str| SWITCHES.map(|(name, _)| ipv6_switch(link, name));
    inside(&lab.netns(), || {
        assert_eq!(switches("eth0"), switches("default"));
        assert_eq!(ipv6_switch("eth0", "disable_ipv6"), "1");
        assert_eq!(ipv6_switch("lo", "disable_ipv6"), "1");
    });
}

#[test]
fn check_names_each_broken_thing_of_ipv6() {
    enum Break {
        Ip(&'static str),
        Pod(&'static str, &'static str, &'static str),
        Host(&'static str, &'static str),
    }
    for (broken, fault) in [
        (Break::Ip("-6 address flush dev eth0"), "address fd00:10:244:1::7/128 is missing on eth0"),
        (Break::Ip("-6 route del default"), "route default via fe80::1 dev eth0 is missing"),
        (Break::Ip("-6 route del fe80::1/128 dev eth0"), "route fe80::1/128 dev eth0 is missing"),
        (Break::Ip("-6 neighbour del fe80::1 dev eth0"), "permanent neighbour fe80::1 at"),
        (Break::Ip("link set eth0 mtu 1200"), "eth0 has no IPv6: its MTU is below 1280"),
        (Break::Pod("eth0", "accept_ra", "1"), "net.ipv6.conf.eth0.accept_ra is 1, not 0 in the pod"),
        (Break::Pod("eth0", "addr_gen_mode", "0"), "net.ipv6.conf.eth0.addr_gen_mode is 0, not 1 in the pod"),
        (Break::Pod("eth0", "disable_ipv6", "1"), "net.ipv6.conf.eth0.disable_ipv6 is 1, not 0 in the pod"),
        (Break::Pod("lo", "disable_ipv6", "1"), "net.ipv6.conf.lo.disable_ipv6 is 1, not 0 in the pod"),
        (Break::Host("accept_ra", "2"), "accept_ra is 2, not 0"),
        (Break::Host("addr_gen_mode", "0"), "addr_gen_mode is 0, not 1"),
        (Break::Host("disable_ipv6", "1"), "disable_ipv6 is 1, not 0"),
    ] {
        let lab = lab();
        let _agent = serving(&lab, DUAL);
        let result = lab.call("ADD").run().json();
        let check = || lab.call("CHECK").config("prevResult", result.clone()).run();
        check().succeeded();
        match broken {
            Break::Ip(command) => lab.ip_in_pod(command),
            Break::Pod(link, name, value) => inside(&lab.netns(), || set_ipv6_switch(link, name, value)),
            Break::Host(name, value) => {
                inside(&lab.node_netns(), || set_ipv6_switch(host_interface(&result), name, value));
            }
        }
        check().failed_with(codes::CHECK_FAILED, fault);
    }
}

#[test]
fn an_mtu_that_ipv6_cannot_work_with_is_refused() {
    let lab = Lab::new();
    let with_mtu = |mtu: u32| lab.call("ADD").config("mtu", json!(mtu));
    {
        let agent = serving(&lab, DUAL);
        let said = "the pod's address fd00:10:244:1::7 needs a link with an MTU of at least 1280 bytes";
        with_mtu(1279).run().failed_with(codes::INVALID_CONFIGURATION, said);
        assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
        lab.nothing_is_left();
        with_mtu(1280).run().succeeded();
    }
    let _agent = serving(&lab, IPV4);
    with_mtu(1279).run().succeeded();
}

#[test]
fn ipv6_routes_of_the_configuration_are_set_and_checked() {
    let lab = Lab::new();
    let _agent = serving(&lab, DUAL);
    let full = json!({"dst": "2001:db8::/32", "gw": "fe80::1", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 1000});
    let routes = json!([full, {"dst": "::/0"}, {"dst": "10.0.0.0/8"}]);
    let call = |verb: &str| -> PluginCall {
        lab.call(verb).config("cniVersion", json!("1.1.0")).config("routes", routes.clone())
    };
    let result = call("ADD").run().json();
    assert!(list(&result["routes"]).contains(&full), "{result}");
    let route = &lab.in_pod("-6 route show table 1000")[0];
    assert_eq!((&route["dst"], &route["gateway"]), (&json!("2001:db8::/32"), &json!("fe80::1")), "{route}");
    let check = || call("CHECK").config("prevResult", result.clone()).run();
    check().succeeded();
    lab.ip_in_pod("-6 route del 2001:db8::/32 table 1000");
    let fault =
        "route 2001:db8::/32 via fe80::1 table 1000 metric 5 mtu 1400 advmss 1300 dev eth0 is missing";
    check().failed_with(codes::CHECK_FAILED, fault);
    lab.call("DEL").run().succeeded();
    let low = json!([{"dst": "2001:db8::/32", "mtu": 1279}]);
    let output = lab.call("ADD").config("routes", low).run();
    output.failed_with(codes::INVALID_CONFIGURATION, "routes[0].mtu is \"1279\"");
}

#[test]
fn host_addresses_that_the_pods_families_cannot_serve_are_told() {
    for (addresses, host_ip, said) in [
        (IPV4, "::", "hostPort [::]:80/tcp to port 8080 is ignored: the pod has no IPv6 address"),
        (IPV6, "0.0.0.0", "hostPort 0.0.0.0:80/tcp to port 8080 is ignored: the pod has no IPv4 address"),
        (DUAL, "::", ""),
        (DUAL, "fd00::1", ""),
        (IPV4, "", ""),
    ] {
        let lab = Lab::new();
        let _agent = serving(&lab, addresses);
        let output = with_host_port(&lab, host_ip);
        output.succeeded();
        assert_eq!(output.stderr.trim_start_matches("podwire-cni: ").trim_end(), said, "{host_ip}");
    }
    for (addresses, host_ip) in [(IPV4, "fd00::1"), (IPV6, "10.200.0.1")] {
        let lab = Lab::new();
        let agent = serving(&lab, addresses);
        with_host_port(&lab, host_ip).failed_with(codes::INVALID_CONFIGURATION, "the pod has no IPv");
        assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
        lab.nothing_is_left();
    }
}

fn with_host_port(lab: &Lab, host_ip: &str) -> crate::lab::Output {
    let mapping = json!({"hostPort": 80, "containerPort": 8080, "hostIP": host_ip});
    lab.call("ADD").config("runtimeConfig", json!({"portMappings": [mapping]})).run()
}

#[test]
fn calls_of_a_dual_stack_cluster_get_the_references_answer() {
    let calls = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/dual-stack/cni-calls");
    for name in ["plain", "hostports-and-bandwidth"] {
        let read = |suffix: &str| std::fs::read_to_string(format!("{calls}/{name}.add.{suffix}")).unwrap();
        let json = |suffix: &str| serde_json::from_str::<Value>(&read(suffix)).unwrap();
        let lab = lab();
        let _agent = serving(&lab, DUAL);
        let mut input = json("json");
        input["socket"] = json!(lab.socket());
        let environment = read("env");
        let variables = environment.lines().filter_map(|line| line.split_once('='));
        let call = variables.fold(lab.call("ADD"), |call, (name, value)| call.env(name, value));
        let output = call.env("CNI_NETNS", &lab.netns()).input(&input).run();
        output.succeeded();
        let (ours, theirs) = (output.json(), json("result.json"));
        let families = |result: &Value| -> Vec<bool> {
            let ips = list(&result["ips"]).iter().map(|ip| ip["address"].as_str().unwrap());
            ips.map(|address| address.contains(':')).collect()
        };
        let destinations = |result: &Value| -> Vec<Value> {
            list(&result["routes"]).iter().map(|route| route["dst"].clone()).collect()
        };
        assert_eq!(families(&ours), families(&theirs));
        assert_eq!(destinations(&ours), destinations(&theirs));
        assert_eq!(ours["cniVersion"], theirs["cniVersion"]);
    }
}

#[test]
fn an_earlier_result_of_both_families_is_kept_in_front() {
    let lab = Lab::new();
    let _agent = serving(&lab, DUAL);
    let earlier = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "sandbox": lab.netns()}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
    });
    let result = lab.call("ADD").config("prevResult", earlier).run().json();
    let addresses: Vec<_> = list(&result["ips"]).iter().map(|ip| &ip["address"]).collect();
    assert_eq!(addresses, ["127.0.0.1/8", "::1/128", "10.244.1.7/32", "fd00:10:244:1::7/128"]);
    lab.call("CHECK").config("prevResult", result).run().succeeded();
    let taken = json!({"cniVersion": "1.0.0", "ips": [{"address": "fd00:10:244:1::9/64"}]});
    let output = lab.call("ADD").config("prevResult", taken).run();
    output.failed_with(codes::INVALID_CONFIGURATION, "prevResult.ips[0].address");
}
