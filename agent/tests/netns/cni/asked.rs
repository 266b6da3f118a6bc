//! Values that the configuration or, for one pod, the runtime asks for. The test looks for them in
//! the pod and in its packets.

use serde_json::json;
use xtask::lab::{Lab, traffic};

use super::{Container, address, succeeded};

#[test]
fn pod_talks_by_the_addresses_and_routes_that_were_asked_for() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    let mut pod = Container::new(node, "pod");
    pod.call.args = "IP=10.244.1.77;MAC=02:00:00:00:00:0A".to_owned();
    pod.call.config["routes"] = json!([
        {"dst": "198.51.100.0/24", "mtu": 1300, "advmss": 1000, "priority": 7},
        {"dst": "0.0.0.0/0"},
    ]);
    let result = pod.add();
    assert_eq!(address(&result), "10.244.1.77");
    assert_eq!(pod.ns.mac("eth0").unwrap(), [2, 0, 0, 0, 0, 10]);
    succeeded(pod.run("CHECK", Some(&result)));
    // `from_pod` accepts this link address as the source, and `to_pod` sends to it.
    let to = address(&result).parse().unwrap();
    traffic::tcp_exchange(&far, &pod.ns, to, 8080, 100_000).unwrap();
    traffic::tcp_exchange(&pod.ns, lab.world(), lab.world_address(), 8080, 100_000).unwrap();
    let unfragmented = |address, size| traffic::ping_unfragmented(&pod.ns, address, size);
    // The headers add 28 bytes.
    unfragmented(lab.world_address(), 1272).unwrap();
    assert!(unfragmented(lab.world_address(), 1273).is_err(), "larger than the route's MTU");
    unfragmented(far.address(), 1422).unwrap();
    // A repeated ADD gives the new link the same values.
    let again = pod.add();
    assert_eq!(
        (address(&again).as_str(), &again["interfaces"][1]["mac"]),
        ("10.244.1.77", &json!("02:00:00:00:00:0a"))
    );
    traffic::tcp_exchange(&far, &pod.ns, to, 8080, 100_000).unwrap();
    succeeded(pod.run("DEL", Some(&again)));
}
