//! Every mistake that a runtime or an operator can make.

use podwire_cni::protocol::{Call, codes};
use serde_json::{Value, json};

use crate::lab::{Agent, Lab};

/// A mistake in the environment or the configuration of a call.
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
    // Some mistakes in routes show only after the agent has told gateway and MTU of the pod.
    let asked = agent.requests();
    let added = asked.iter().filter(|call| matches!(call, Call::Add(_))).count();
    let taken_back = asked.iter().filter(|call| matches!(call, Call::Del(_))).count();
    assert_eq!((added, taken_back), (3, 3), "{asked:?}");
}
