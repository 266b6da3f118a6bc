//! CHECK, and everything that it compares.

use podwire_cni::protocol::{Call, codes};
use serde_json::json;

use crate::lab::{Agent, Lab, failed};

#[test]
fn check_succeeds_after_add_and_names_each_broken_thing() {
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
fn later_plugin_may_lower_the_mtu_and_take_a_route_out() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let limit = json!({"bandwidth": {"egressRate": 10_000_000}});
    let call = |verb: &str| {
        lab.call(verb).config("cniVersion", json!("1.1.0")).config("runtimeConfig", limit.clone())
    };
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
