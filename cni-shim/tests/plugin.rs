//! Runs the plugin's binary as a runtime does, between network namespaces made for each test.

mod cases;
mod lab;

use std::os::unix::net::UnixListener;

use lab::{Agent, Answer, Lab, failed};
use podwire_cni::protocol::{Call, codes};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn version_tells_what_is_spoken() {
    let lab = Lab::new();
    let output = lab.call("VERSION").input(&json!({"cniVersion": "0.4.0"})).run();
    output.succeeded();
    assert_eq!(output.json(), json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS}));
}

#[test]
fn add_without_an_agent_asks_to_try_again_and_leaves_nothing() {
    let lab = Lab::new();
    let said = format!(
        "not running, not ready or overloaded: no agent accepts connections on {}",
        lab.socket().display()
    );
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
    // A configuration without a version has the first one.
    let result = lab.call("ADD").config("cniVersion", Value::Null).run().json();
    assert_eq!((&result["cniVersion"], &result["ip4"]["gateway"]), (&json!("0.1.0"), &json!("10.244.1.1")));
}

#[test]
fn pods_side_gets_the_addresses_that_are_asked_for() {
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
fn del_removes_the_link_when_the_agent_is_away_or_in_trouble() {
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
fn agent_that_answers_nonsense_is_asked_to_take_it_back() {
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
fn name_taken_in_the_pod_is_refused_and_that_link_stays() {
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
    for (name, rates) in
        [("plain", [None; 2]), ("hostports-and-bandwidth", [Some(50_000_000), Some(20_000_000)])]
    {
        let lab = Lab::new();
        let agent = Agent::start(&lab, |lab, request| lab.serve(request));
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
            assert_eq!(output.stderr, "", "{name}");
        }
        lab.nothing_is_left();
        let requests = agent.requests();
        let Some(Call::Add(add)) = requests.first() else { panic!("{requests:?}") };
        let asked =
            [add.bandwidth.ingress, add.bandwidth.egress].map(|limit| limit.map(|limit| limit.rate.get()));
        assert_eq!(asked, rates, "{name}: received, sent");
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

fn has_flag(link: &Value, flag: &str) -> bool {
    list(&link["flags"]).iter().any(|set| set == flag)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
