//! The plugin's binary, run as a runtime runs it, between network namespaces made for each test.

mod lab;

use std::os::unix::net::UnixListener;

use lab::{Agent, Answer, Lab, failed};
use podwire_cni::protocol::{Attachment, Call, Gc, Reply, codes};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn version_tells_what_is_spoken() {
    let lab = Lab::new();
    let output = lab.call("VERSION").input(&json!({"cniVersion": "0.4.0"})).run();
    output.succeeded();
    assert_eq!(output.json(), json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS}));
}

/// What a call gets wrong, in its environment or its configuration, and what it is told: code, and what the message names.
enum Bad {
    Variable(&'static str, String),
    Key(&'static str, Value),
    Input(&'static str),
}

#[test]
fn bad_input_is_refused_with_its_code_and_named() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.ip_in_pod("link add taken0 type veth peer name other");
    let (env, config) = (codes::INVALID_ENVIRONMENT, codes::INVALID_CONFIGURATION);
    let (variable, key) = (|name, value: &str| Bad::Variable(name, value.to_owned()), Bad::Key);
    let runtime = |value| Bad::Key("runtimeConfig", value);
    let route = |value| Bad::Key("routes", json!([value]));
    let cases = [
        // Content.
        (Bad::Input(""), codes::DECODING_FAILURE, "standard input is not JSON"),
        (Bad::Input(r#"{"cniVersion": "1.1.0", "name": "podw"#), codes::DECODING_FAILURE, "not JSON: EOF"),
        (Bad::Input("[]"), codes::DECODING_FAILURE, "not a JSON object"),
        // Versions.
        (key("cniVersion", json!("1.2.0")), codes::INCOMPATIBLE_VERSION, "cniVersion \"1.2.0\""),
        (key("cniVersion", json!(1)), config, "cniVersion is 1"),
        // The environment.
        (variable("CNI_COMMAND", ""), env, "CNI_COMMAND"),
        (variable("CNI_COMMAND", "UPDATE"), env, "CNI_COMMAND is \"UPDATE\""),
        (variable("CNI_CONTAINERID", ""), env, "ADD needs CNI_CONTAINERID"),
        (variable("CNI_CONTAINERID", "../../etc/passwd"), env, "CNI_CONTAINERID \"../../etc/passwd\""),
        (variable("CNI_IFNAME", ""), env, "ADD needs CNI_IFNAME"),
        (variable("CNI_IFNAME", "sixteen-bytes-xx"), env, "CNI_IFNAME \"sixteen-bytes-xx\""),
        (variable("CNI_IFNAME", "a/b"), env, "CNI_IFNAME \"a/b\""),
        (variable("CNI_IFNAME", "taken0"), env, "CNI_IFNAME taken0 is already"),
        (variable("CNI_NETNS", ""), env, "ADD needs CNI_NETNS"),
        (Bad::Variable("CNI_NETNS", format!("{}-gone", lab.netns())), env, "CNI_NETNS /var/run/netns/pwshim"),
        (variable("CNI_NETNS", "/etc/hostname"), env, "CNI_NETNS /etc/hostname"),
        (Bad::Variable("CNI_NETNS", lab.node_netns()), env, "the node's own network namespace"),
        (variable("CNI_ARGS", "no-pair"), env, "CNI_ARGS has \"no-pair\""),
        (variable("CNI_ARGS", "IP=nowhere"), env, "CNI_ARGS has IP=\"nowhere\""),
        (variable("CNI_ARGS", "MAC=01:00:5e:00:00:01"), env, "CNI_ARGS has MAC=\"01:00:5e:00:00:01\""),
        // The configuration.
        (key("name", json!(null)), config, "name is missing"),
        (key("name", json!("a b")), config, "name is \"a b\""),
        (key("type", json!("")), config, "type is missing"),
        (key("mtu", json!("1450")), config, "mtu is \"1450\""),
        (key("socket", json!("agent.sock")), config, "socket is \"agent.sock\""),
        (key("dns", json!({"search": "here"})), config, "dns.search is"),
        (key("prevResult", json!([])), config, "prevResult is []"),
        (
            key("prevResult", json!({"ips": [{"address": "10.88.0.2/16"}]})),
            config,
            "prevResult.ips[0].address",
        ),
        (route(json!({})), config, "routes[0].dst is missing"),
        (route(json!({"dst": "10.0.0.0/8", "gw": "10.244.1.9"})), config, "routes[0].gw is \"10.244.1.9\""),
        (route(json!({"dst": "fd00::/8"})), config, "routes[0].dst is \"fd00::/8\""),
        (route(json!({"dst": "10.0.0.0/8", "mtu": 9000})), config, "routes[0].mtu is \"9000\""),
        (runtime(json!({"ips": ["here"]})), config, "runtimeConfig.ips is \"here\""),
        (runtime(json!({"mac": "ff:ff:ff:ff:ff:ff"})), config, "runtimeConfig.mac is \"ff:ff:ff:ff:ff:ff\""),
        (
            runtime(json!({"portMappings": [{"hostPort": 70000}]})),
            config,
            "runtimeConfig.portMappings[0].hostPort",
        ),
    ];
    for (bad, code, named) in cases {
        let call = lab.call("ADD");
        let call = match bad {
            Bad::Variable(name, value) => call.env(name, &value),
            Bad::Key(key, value) => call.config(key, value),
            Bad::Input(input) => call.raw_input(input),
        };
        call.run().failed_with(code, named);
    }
    let huge = " ".repeat(2 << 20);
    lab.call("ADD").raw_input(&huge).run().failed_with(codes::DECODING_FAILURE, "larger than");
    for verb in ["STATUS", "GC"] {
        lab.call(verb).raw_input("{").run().failed_with(codes::DECODING_FAILURE, "not JSON");
    }
    lab.ip_in_pod("link del taken0");
    lab.nothing_is_left();
    // Only the gateway and the MTU of the pod tell what is wrong with some routes.
    let asked = agent.requests();
    let added = asked.iter().filter(|call| matches!(call, Call::Add(_))).count();
    let taken_back = asked.iter().filter(|call| matches!(call, Call::Del(_))).count();
    assert_eq!((added, taken_back), (3, 3), "{asked:?}");
}

#[test]
fn add_without_an_agent_asks_to_try_again_and_leaves_nothing() {
    let lab = Lab::new();
    let said = format!("not running or not ready: nobody listens on {}", lab.socket().display());
    lab.call("ADD").run().failed_with(codes::TRY_AGAIN_LATER, &said);
    // A socket file that an agent left behind when it was killed.
    drop(UnixListener::bind(lab.socket()).unwrap());
    lab.call("ADD").run().failed_with(codes::TRY_AGAIN_LATER, &said);
    lab.nothing_is_left();
}

#[test]
fn add_sets_the_pod_up_and_reports_it() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let output = lab
        .call("ADD")
        .config("mtu", json!(1400))
        .config("runtimeConfig", json!({"ips": ["10.244.1.7/24"], "dns": {"Servers": ["10.96.0.10"]}}))
        .run();
    output.succeeded();

    let Call::Add(asked) = agent.requests().remove(0) else { panic!("no ADD was asked for") };
    assert_eq!(asked.addresses, ["10.244.1.7/32".parse().unwrap()]);
    assert_eq!(asked.mtu, Some(1400));
    assert_eq!(asked.netns, lab.netns());
    assert_eq!(asked.pod.as_ref().map(|pod| pod.name.as_str()), Some("web"));
    assert_ne!(asked.pod_mac, asked.host_mac);

    assert_eq!(
        output.json(),
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": asked.host_interface, "mac": asked.host_mac},
                {"name": "eth0", "mac": asked.pod_mac, "sandbox": lab.netns()},
            ],
            "ips": [{"interface": 1, "address": "10.244.1.7/32", "gateway": "10.244.1.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        })
    );

    let link = &lab.in_pod("address show dev eth0")[0];
    assert_eq!((&link["address"], &link["mtu"]), (&json!(asked.pod_mac), &json!(1400)));
    assert!(has_flag(link, "UP"), "{link}");
    let addresses: Vec<_> = list(&link["addr_info"]).iter().filter(|ip| ip["family"] == "inet").collect();
    assert_eq!(addresses.len(), 1, "{link}");
    assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&json!("10.244.1.7"), &json!(32)));
    assert!(has_flag(&lab.in_pod("link show dev lo")[0], "UP"));

    let routes = lab.in_pod("route show");
    let route = |dst: &str| list(&routes).iter().find(|route| route["dst"] == dst).unwrap();
    assert_eq!(
        (&route("default")["gateway"], &route("default")["dev"]),
        (&json!("10.244.1.1"), &json!("eth0"))
    );
    assert_eq!(
        (&route("10.244.1.1")["scope"], &route("10.244.1.1")["dev"]),
        (&json!("link"), &json!("eth0"))
    );
    assert_eq!(list(&routes).len(), 2, "{routes}");
    let neighbours = lab.in_pod("-4 neighbour show dev eth0");
    assert_eq!(
        (&neighbours[0]["dst"], &neighbours[0]["lladdr"], &neighbours[0]["state"]),
        (&json!("10.244.1.1"), &json!(asked.host_mac), &json!(["PERMANENT"]))
    );

    let host = &lab.on_node(&format!("link show dev {}", asked.host_interface))[0];
    assert_eq!(host["address"], json!(asked.host_mac));
    assert!(has_flag(host, "NOARP"), "{host}");
}

#[test]
fn the_link_is_down_and_without_arp_when_the_agent_is_asked() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| {
        let Call::Add(add) = &request else { return lab.serve(request) };
        let link = lab.on_node(&format!("link show dev {}", add.host_interface));
        let ready = has_flag(&link[0], "NOARP") && !has_flag(&link[0], "UP");
        let mac = link[0]["address"] == json!(add.host_mac);
        if ready && mac { lab.serve(request) } else { failed(codes::AGENT_FAILURE, &link.to_string()) }
    });
    lab.call("ADD").run().succeeded();
    assert_eq!(agent.requests().len(), 1);
}

#[test]
fn results_come_in_the_version_asked_for() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    for version in VERSIONS {
        let result = lab.call("ADD").config("cniVersion", json!(version)).run().json();
        assert_eq!(result["cniVersion"], version);
        let ip_version = if version.starts_with("0.") { json!("4") } else { Value::Null };
        let mtu = if version == "1.1.0" { json!(1450) } else { Value::Null };
        match version {
            "0.1.0" | "0.2.0" => assert_eq!(result["ip4"]["ip"], "10.244.1.7/32", "{result}"),
            _ => {
                assert_eq!(result["ips"][0]["version"], ip_version, "{result}");
                assert_eq!((&result["interfaces"][0]["mtu"], &result["interfaces"][1]["mtu"]), (&mtu, &mtu));
            }
        }
    }
    // A configuration without a version is of the first one.
    let result = lab.call("ADD").config("cniVersion", Value::Null).run().json();
    assert_eq!((&result["cniVersion"], &result["ip4"]["gateway"]), (&json!("0.1.0"), &json!("10.244.1.1")));
}

#[test]
fn the_pods_side_gets_the_address_and_the_link_address_that_are_asked_for() {
    let by_configuration = json!({"mac": "02:00:00:00:00:0a", "ips": ["10.244.1.8"]});
    for (arguments, runtime_config, mac, address) in [
        ("IP=10.244.1.7;MAC=02:00:00:00:00:0B", json!({}), "02:00:00:00:00:0b", "10.244.1.7/32"),
        ("IP=10.244.1.7;MAC=02:00:00:00:00:0B", by_configuration, "02:00:00:00:00:0a", "10.244.1.8/32"),
    ] {
        let lab = Lab::new();
        let agent = Agent::start(&lab, |lab, request| lab.serve(request));
        let call = lab.call("ADD").env("CNI_ARGS", arguments).config("runtimeConfig", runtime_config);
        let result = call.run().json();
        let Call::Add(asked) = agent.requests().remove(0) else { panic!("no ADD was asked for") };
        assert_eq!(asked.addresses, [address.parse().unwrap()]);
        assert_eq!((asked.pod_mac.as_str(), &result["interfaces"][1]["mac"]), (mac, &json!(mac)));
        assert_eq!(lab.in_pod("link show dev eth0")[0]["address"], mac);
    }
}

#[test]
fn routes_of_the_configuration_are_set_told_and_checked() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let full = json!({
        "dst": "10.0.0.0/8", "gw": "10.244.1.1", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 1000, "scope": 200
    });
    let routes = json!([full, {"dst": "192.0.2.7/24"}, {"dst": "0.0.0.0/0"}]);
    let call =
        |verb: &str| lab.call(verb).config("cniVersion", json!("1.1.0")).config("routes", routes.clone());
    let result = call("ADD").run().json();
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, full, {"dst": "192.0.2.0/24", "gw": "10.244.1.1"}])
    );
    let route = &lab.in_pod("route show table 1000")[0];
    assert_eq!((&route["dst"], &route["gateway"]), (&json!("10.0.0.0/8"), &json!("10.244.1.1")));
    assert_eq!((&route["metric"], &route["scope"]), (&json!(5), &json!("site")));
    assert_eq!(route["metrics"][0], json!({"mtu": 1400, "advmss": 1300}), "{route}");
    let check = || call("CHECK").config("prevResult", result.clone()).run();
    check().succeeded();
    lab.ip_in_pod(
        "route change 10.0.0.0/8 via 10.244.1.1 table 1000 metric 5 scope site mtu 1200 advmss 1300",
    );
    lab.ip_in_pod("route del 192.0.2.0/24");
    let wanted =
        "route 10.0.0.0/8 via 10.244.1.1 table 1000 metric 5 scope 200 mtu 1400 advmss 1300 dev eth0 is";
    check().failed_with(codes::CHECK_FAILED, wanted);
    check().failed_with(codes::CHECK_FAILED, "route 192.0.2.0/24 via 10.244.1.1 dev eth0 is missing");
    lab.call("DEL").config("routes", json!([{"dst": "nowhere"}])).run().succeeded();
}

#[test]
fn del_takes_everything_back_and_may_be_repeated() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.call("ADD").run().succeeded();
    lab.call("DEL").run().succeeded();
    lab.nothing_is_left();
    lab.call("DEL").env("CNI_NETNS", "").run().succeeded();
    lab.call("DEL").env("CNI_NETNS", "/var/run/netns/gone").run().succeeded();
    assert_eq!(agent.requests().iter().filter(|call| matches!(call, Call::Del(_))).count(), 3);
}

#[test]
fn del_removes_the_link_itself_when_the_agent_is_away_or_in_trouble() {
    let answers: [fn() -> Option<Answer>; 4] = [
        || None,
        || Some(failed(codes::AGENT_FAILURE, "the map is gone")),
        || Some(Answer::Bytes(b"HTTP/1.1 400 Bad Request".to_vec())),
        || Some(Answer::HangUp),
    ];
    for answer in answers {
        let lab = Lab::new();
        let agent = Agent::start(&lab, |lab, request| lab.serve(request));
        lab.call("ADD").run().succeeded();
        drop(agent);
        let _troubled = answer().map(|_| Agent::start(&lab, move |_, _| answer().unwrap()));
        let output = lab.call("DEL").run();
        output.succeeded();
        assert!(output.stderr.contains("released when the agent is back"), "{}", output.stderr);
        lab.nothing_is_left();
    }
}

#[test]
fn a_refusal_of_the_agent_is_passed_on_and_nothing_is_left() {
    let lab = Lab::new();
    let agent =
        Agent::start(&lab, |_, _| failed(codes::ADDRESS_UNAVAILABLE, "10.244.1.7 is taken by default/web"));
    lab.call("ADD").run().failed_with(codes::ADDRESS_UNAVAILABLE, "10.244.1.7 is taken by default/web");
    lab.nothing_is_left();
    assert_eq!(agent.requests().len(), 1, "a refusal leaves nothing to take back");
}

#[test]
fn an_agent_that_answers_nonsense_or_hangs_up_is_asked_to_take_it_back() {
    for (answer, code) in [
        (Answer::Bytes(b"HTTP/1.1 400 Bad Request".to_vec()), codes::DECODING_FAILURE),
        (Answer::Bytes(b"\0\0\0\x04nope".to_vec()), codes::DECODING_FAILURE),
        (Answer::HangUp, codes::TRY_AGAIN_LATER),
    ] {
        let lab = Lab::new();
        let agent = Agent::start(&lab, move |lab, request| match request {
            Call::Add(_) => answer.clone(),
            other => lab.serve(other),
        });
        lab.call("ADD").run().failed_with(code, lab.socket().to_str().unwrap());
        lab.nothing_is_left();
        assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
    }
}

#[test]
fn a_stalled_agent_is_given_up_and_nothing_is_left() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |_, _| Answer::Stall);
    let output = lab.call("ADD").run();
    output.failed_with(codes::TRY_AGAIN_LATER, "did not answer within 10 s");
    assert!(output.json()["details"].as_str().unwrap().contains("while undoing"), "{}", output.stdout);
    lab.nothing_is_left();
}

#[test]
fn an_answer_that_cannot_be_configured_is_taken_back() {
    for (change, said) in [
        (json!({"addresses": []}), "no address"),
        (json!({"gateways": []}), "has no gateway"),
        (json!({"mtu": 20}), "MTU 20"),
        (json!({"pod_mac": "02:00:00:00:00:07"}), "not the link of this call"),
    ] {
        let lab = Lab::new();
        let agent = Agent::start(&lab, move |lab, request| {
            let is_add = matches!(request, Call::Add(_));
            match lab.serve(request) {
                Answer::Reply(reply) if is_add => {
                    let mut reply = serde_json::to_value(reply).unwrap();
                    let added = reply["added"].as_object_mut().unwrap();
                    added.extend(change.as_object().unwrap().clone());
                    Answer::Reply(serde_json::from_value(reply).unwrap())
                }
                other => other,
            }
        });
        let output = lab.call("ADD").run();
        assert!(output.json()["msg"].as_str().unwrap().contains(said), "{}", output.stdout);
        assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
        lab.nothing_is_left();
    }
}

#[test]
fn a_result_that_nobody_reads_is_taken_back() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let output = lab.call("ADD").without_reader().run();
    assert!(!output.success, "the result went nowhere");
    assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
    lab.nothing_is_left();
}

#[test]
fn a_link_left_from_an_earlier_attempt_is_replaced() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let first = lab.call("ADD").run().json();
    let second = lab.call("ADD").run();
    second.succeeded();
    assert_eq!(first["interfaces"][0]["name"], second.json()["interfaces"][0]["name"]);
    assert_ne!(first["interfaces"][0]["mac"], second.json()["interfaces"][0]["mac"]);
}

#[test]
fn a_name_taken_inside_the_pod_is_refused_and_the_other_link_stays() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.ip_in_pod("link add eth0 type veth peer name other");
    let before = lab.in_pod("link show");
    lab.call("ADD").run().failed_with(codes::INVALID_ENVIRONMENT, "CNI_IFNAME eth0 is already");
    assert_eq!(lab.in_pod("link show"), before);
    assert_eq!(list(&lab.on_node("link show")).len(), 1);
    assert_eq!(agent.requests().len(), 0, "the agent was not bothered");
}

#[test]
fn a_foreign_default_route_fails_the_call_with_nothing_left() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.ip_in_pod("link set lo up");
    lab.ip_in_pod("route add default dev lo");
    lab.call("ADD").run().failed_with(codes::NETLINK_FAILURE, "route default via 10.244.1.1");
    assert!(matches!(agent.requests()[..], [Call::Add(_), Call::Del(_)]));
    lab.nothing_is_left();
}

#[test]
fn the_captured_calls_are_served() {
    let calls = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/cni-calls");
    for name in ["plain", "hostports-and-bandwidth"] {
        let lab = Lab::new();
        let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
        for verb in ["add", "del"] {
            let environment = std::fs::read_to_string(format!("{calls}/{name}.{verb}.env")).unwrap();
            let input = std::fs::read_to_string(format!("{calls}/{name}.{verb}.json")).unwrap();
            let mut input: Value = serde_json::from_str(&input).unwrap();
            input["socket"] = json!(lab.socket());
            let mut call = lab.call("ADD").input(&input);
            for (key, value) in environment.lines().filter_map(|line| line.split_once('=')) {
                call = call.env(key, value);
            }
            let output = call.env("CNI_NETNS", &lab.netns()).run();
            output.succeeded();
            assert_eq!(
                output.stderr.contains("not enforced"),
                name != "plain" && verb == "add",
                "{}",
                output.stderr
            );
        }
        lab.nothing_is_left();
    }
}

#[test]
fn an_unknown_key_is_a_warning_on_standard_error() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let output = lab.call("ADD").config("bridge", json!("cni0")).run();
    output.succeeded();
    assert!(output.stderr.contains("unknown key \"bridge\""), "{}", output.stderr);
}

#[test]
fn check_succeeds_after_add_and_names_each_thing_that_was_broken() {
    let breakages = [
        ("address flush dev eth0", "address 10.244.1.7/32 is missing"),
        ("route del default", "route default via 10.244.1.1 dev eth0 is missing"),
        ("route del 10.244.1.1/32 dev eth0", "route 10.244.1.1/32 dev eth0 is missing"),
        ("neighbour del 10.244.1.1 dev eth0", "permanent neighbour 10.244.1.1 at"),
        (
            "neighbour change 10.244.1.1 lladdr 02:00:00:00:00:09 dev eth0",
            "permanent neighbour 10.244.1.1 at",
        ),
        ("link set eth0 mtu 1280", "eth0 has MTU 1280, not 1450"),
        ("link set eth0 address 02:00:00:00:00:09", "eth0 has the MAC address 02:00:00:00:00:09, not"),
        ("link set eth0 down", "eth0 is down"),
        ("link del eth0", "eth0 is missing in the pod"),
    ];
    for (command, fault) in breakages {
        let lab = Lab::new();
        let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
        let result = lab.call("ADD").run().json();
        lab.call("CHECK").config("prevResult", result.clone()).run().succeeded();
        lab.ip_in_pod(command);
        lab.call("CHECK").config("prevResult", result).run().failed_with(codes::CHECK_FAILED, fault);
    }
}

#[test]
fn check_names_every_fault_at_once_the_agents_too() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| match request {
        Call::Check(_) => {
            failed(codes::CHECK_FAILED, "the host's route is missing; from_pod is not attached")
        }
        other => lab.serve(other),
    });
    let result = lab.call("ADD").run().json();
    lab.ip_in_pod("link set eth0 mtu 1280");
    lab.ip_in_pod("route del default");
    lab.ip_in_pod("neighbour del 10.244.1.1 dev eth0");
    let output = lab.call("CHECK").config("prevResult", result).run();
    for fault in [
        "the host's route is missing; from_pod is not attached; ",
        "permanent neighbour 10.244.1.1 at",
        "route default via 10.244.1.1 dev eth0 is missing",
    ] {
        output.failed_with(codes::CHECK_FAILED, fault);
    }
}

#[test]
fn a_later_plugin_may_have_lowered_the_mtu_and_taken_a_route_out() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let call = |verb: &str| lab.call(verb).config("cniVersion", json!("1.1.0"));
    let mut result = call("ADD").run().json();
    lab.ip_in_pod("link set eth0 mtu 1280");
    lab.ip_in_pod("route del default");
    call("CHECK")
        .config("prevResult", result.clone())
        .run()
        .failed_with(codes::CHECK_FAILED, "has MTU 1280, not 1450");
    result["interfaces"][1]["mtu"] = json!(1280);
    result["routes"] = json!([]);
    call("CHECK").config("prevResult", result).run().succeeded();
}

#[test]
fn status_says_nothing_when_add_can_be_served_and_why_when_not() {
    let lab = Lab::new();
    let status = || lab.call("STATUS").config("cniVersion", json!("1.1.0"));
    let answer = |answer: Answer| Agent::start(&lab, move |_, _| answer.clone());
    {
        let agent = answer(Answer::Reply(Reply::Serving));
        let mut call = status();
        for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
            call = call.env(variable, "");
        }
        let output = call.run();
        output.succeeded();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
        assert_eq!(agent.requests(), [Call::Status]);
    }
    for (code, said) in
        [(codes::UNAVAILABLE, "no address is free"), (codes::UNAVAILABLE_AND_LIMITED, "no uplink")]
    {
        let _agent = answer(failed(code, said));
        status().run().failed_with(code, said);
    }
    for (answer_to, said) in [
        (failed(codes::DECODING_FAILURE, "version 3 of the protocol"), "version 3 of the protocol"),
        (Answer::HangUp, "closed the connection"),
        (Answer::Stall, "did not answer within 10 s"),
    ] {
        let _agent = answer(answer_to);
        status().run().failed_with(codes::UNAVAILABLE, said);
    }
    status().run().failed_with(codes::UNAVAILABLE, "nobody listens");
}

#[test]
fn gc_hands_the_agent_what_is_to_stay_and_needs_a_list() {
    let lab = Lab::new();
    let gc = || lab.call("GC").config("cniVersion", json!("1.1.0"));
    let key = "cni.dev/valid-attachments";
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    gc().config(key, valid.clone()).run().failed_with(codes::TRY_AGAIN_LATER, "nobody listens");
    let agent = Agent::start(&lab, |_, _| Answer::Reply(Reply::Collected(2)));
    gc().run().failed_with(codes::INVALID_CONFIGURATION, "cni.dev/valid-attachments is missing");
    assert_eq!(agent.requests(), []);
    let output = gc().config(key, valid).run();
    output.succeeded();
    assert_eq!(output.stdout, "");
    assert!(output.stderr.contains("2 attachments"), "{}", output.stderr);
    let attachment = Attachment { container_id: "c1".into(), interface: "eth0".into() };
    assert_eq!(agent.requests(), [Call::Gc(Gc { network: "podwire".into(), valid: vec![attachment] })]);
}

#[test]
fn check_compares_the_previous_result_and_needs_one() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let mut result = lab.call("ADD").run().json();
    lab.call("CHECK").run().failed_with(codes::INVALID_CONFIGURATION, "prevResult is missing");
    result["ips"][0]["address"] = json!("10.244.1.8/32");
    let fault = "prevResult has no address 10.244.1.7/32";
    lab.call("CHECK").config("prevResult", result).run().failed_with(codes::CHECK_FAILED, fault);
}

#[test]
fn a_verb_is_refused_in_a_version_that_did_not_have_it() {
    let lab = Lab::new();
    for (verb, since, before) in [
        ("CHECK", "0.4.0", &VERSIONS[..4]),
        ("STATUS", "1.1.0", &VERSIONS[..6]),
        ("GC", "1.1.0", &VERSIONS[..6]),
    ] {
        for version in before {
            let output = lab.call(verb).config("cniVersion", json!(version)).run();
            output.failed_with(codes::INCOMPATIBLE_VERSION, &format!("{verb} needs cniVersion {since}"));
            assert_eq!(output.json()["cniVersion"], *version);
        }
    }
    let call = lab.call("CHECK").config("prevResult", json!({}));
    call.run().failed_with(codes::TRY_AGAIN_LATER, "not running or not ready");
}

fn has_flag(link: &Value, flag: &str) -> bool {
    list(&link["flags"]).iter().any(|set| set == flag)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
