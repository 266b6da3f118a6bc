use std::collections::BTreeSet;
use std::io::Read;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::Path;
use std::process::Command;

use podwire_core::services::TrafficPolicy;
use serde_json::{Value, json};

use super::*;
use crate::objects::{list as lists, saved};

/// The services of a running cluster, and the slices of all its services.
const REAL: &str = include_str!("../../../../testdata/dual-stack/services.json");

fn parsed(text: &str) -> Entries {
    lists::parse(Path::new("services"), text.as_bytes()).unwrap()
}

fn list(items: &[Value]) -> String {
    json!({ "kind": "List", "items": items }).to_string()
}

fn service_of(name: &str) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{ "port": 80 }] },
    })
}

fn slice_of(service: &str) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-x"), "namespace": "shop",
            "labels": { "kubernetes.io/service-name": service },
        },
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.244.0.3"] }],
    })
}

fn one_service(object: &Value) -> Service {
    let mut entries = parsed(&list(std::slice::from_ref(object)));
    assert_eq!(entries.problems, []);
    Arc::unwrap_or_clone(entries.services.pop().unwrap())
}

fn one_slice(object: &Value) -> EndpointSlice {
    let mut entries = parsed(&list(std::slice::from_ref(object)));
    assert_eq!(entries.problems, []);
    Arc::unwrap_or_clone(entries.slices.pop().unwrap())
}

fn real(name: &str) -> Arc<Service> {
    parsed(REAL).services.into_iter().find(|service| &*service.name.name == name).unwrap()
}

#[test]
fn the_services_of_a_real_cluster_are_read() {
    let entries = parsed(REAL);
    assert_eq!(entries.problems, []);
    // Of 17 services `headless` and `hands-off` are left out, and so are both slices of each.
    assert_eq!((entries.services.len(), entries.slices.len(), entries.unused), (15, 27, 6));
    let names: Vec<_> = entries.services.iter().map(|service| &*service.name.name).collect();
    assert!(!names.contains(&"headless") && !names.contains(&"hands-off"), "{names:?}");
    let owners: BTreeSet<_> = entries.slices.iter().map(|slice| &*slice.service.name).collect();
    assert!(owners.iter().all(|owner| names.contains(owner)), "{owners:?}");
    let dns = real("kube-dns");
    let ports: Vec<_> =
        dns.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port.get())).collect();
    assert_eq!(ports, [("dns", Protocol::Udp, 53), ("dns-tcp", Protocol::Tcp, 53)]);
    assert_eq!(
        real("web").cluster_ips,
        ["10.96.253.217".parse::<IpAddr>().unwrap(), "fd00:10:96::60cf".parse().unwrap()]
    );
}

#[test]
fn each_field_of_a_real_service_is_read() {
    let external = real("web-ext").external_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(external, ["203.0.113.7", "2001:db8:200::7"]);
    let balanced = real("web-lb");
    let vips: Vec<_> = balanced.load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["203.0.113.10", "2001:db8:200::10"]);
    let ranges: Vec<_> = balanced.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["198.51.100.0/24", "2001:db8:100::/64"]);
    assert_eq!(balanced.ports[1].node_port.map(NonZeroU16::get), Some(32559));
    let local = real("web-lb-local");
    assert_eq!(
        (local.external_policy, local.internal_policy),
        (TrafficPolicy::Local, TrafficPolicy::Cluster)
    );
    assert_eq!(local.health_check_port.map(NonZeroU16::get), Some(30595));
    assert_eq!(real("web-internal-local").internal_policy, TrafficPolicy::Local);
    assert_eq!(real("web-sticky").affinity, NonZeroU32::new(120));
    assert_eq!(real("web").affinity, None);
}

#[test]
fn hints_and_nodes_of_real_endpoints_are_read() {
    let slices = parsed(REAL).slices;
    let near = slices.iter().find(|slice| slice.name == "web-near-585k7").unwrap();
    let nodes = |endpoint: &podwire_core::services::Endpoint| endpoint.hints.clone().unwrap().nodes;
    let hints: Vec<_> =
        near.endpoints.iter().map(|endpoint| (endpoint.node.as_deref(), nodes(endpoint))).collect();
    assert_eq!(hints, [(Some("kn1"), ["kn1".to_owned()].into()), (Some("kn2"), ["kn2".to_owned()].into())]);
    assert_eq!((near.ports[1].name.as_str(), near.ports[1].protocol), ("udp", Protocol::Udp));
    let empty = slices.iter().find(|slice| slice.name == "empty-wt8t7").unwrap();
    assert!(empty.ports.is_empty() && empty.endpoints.is_empty());
}

#[test]
fn what_is_missing_has_the_default_of_the_api() {
    let service = one_service(&service_of("web"));
    assert_eq!((service.ports[0].protocol, service.ports[0].name.as_str()), (Protocol::Tcp, ""));
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    let mut old = service_of("web");
    old["spec"]["clusterIPs"] = json!(null);
    old["spec"]["sessionAffinity"] = json!("ClientIP");
    let old = one_service(&old);
    assert_eq!(old.cluster_ips, service.cluster_ips);
    assert_eq!(old.affinity, NonZeroU32::new(10_800));

    let mut slice = slice_of("web");
    let at =
        |conditions: Value| json!({ "addresses": ["10.244.0.3", "10.244.0.4"], "conditions": conditions });
    slice["endpoints"] = json!([
        { "addresses": ["10.244.0.3"] },
        at(json!({})),
        at(json!({ "ready": false })),
        at(json!({ "ready": false, "serving": true, "terminating": true })),
    ]);
    slice["ports"] = json!([{ "name": "all" }, { "port": 8080 }]);
    let slice = one_slice(&slice);
    let conditions = slice.endpoints.iter();
    let conditions: Vec<_> = conditions
        .map(|endpoint| (endpoint.is_ready, endpoint.is_serving, endpoint.is_terminating))
        .collect();
    let (usable, not) = ((true, true, false), (false, true, false));
    assert_eq!(conditions, [usable, usable, not, (false, true, true)]);
    assert_eq!(slice.endpoints[1].address, IpAddr::from([10, 244, 0, 3]));
    let ports: Vec<_> = slice.ports.iter().map(|port| (port.name.as_str(), port.protocol)).collect();
    assert_eq!(ports, [("", Protocol::Tcp)], "a port without a number is left out");
}

#[test]
fn addresses_of_a_load_balancer_that_is_a_proxy_are_not_served() {
    let mut object = service_of("web");
    object["status"] = json!({ "loadBalancer": { "ingress": [
        { "hostname": "lb.example" }, { "ip": "203.0.113.1" },
        { "ip": "203.0.113.2", "ipMode": "VIP" }, { "ip": "203.0.113.3", "ipMode": "Proxy" },
    ] } });
    let vips: Vec<_> = one_service(&object).load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["203.0.113.1", "203.0.113.2"]);
}

#[test]
fn source_ranges_are_those_of_the_field_alone() {
    let mut object = service_of("web");
    let ranges = |object: &Value| {
        let ranges = one_service(object).source_ranges.into_iter();
        ranges.map(|range| range.to_string()).collect::<Vec<_>>()
    };
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    object["metadata"]["annotations"] = json!({ annotation: "10.1.2.3/8, fd00::/8" });
    assert_eq!(ranges(&object), [""; 0]);
    object["spec"]["loadBalancerSourceRanges"] = json!([" 192.0.2.7/24 ", "fd00::/8"]);
    assert_eq!(ranges(&object), ["192.0.2.0/24", "fd00::/8"]);
}

#[test]
fn an_ipv4_address_mapped_to_ipv6_is_one_of_ipv4() {
    let mut slice = slice_of("web");
    slice["endpoints"] = json!([{ "addresses": ["::ffff:10.244.0.3"] }]);
    assert_eq!(one_slice(&slice).endpoints[0].address, IpAddr::from([10, 244, 0, 3]));
}

#[test]
fn what_another_proxy_serves_or_none_is_left_out() {
    let service = |change: fn(&mut Value)| {
        let mut object = service_of("web");
        change(&mut object);
        object
    };
    let slice = |change: fn(&mut Value)| {
        let mut object = slice_of("web");
        change(&mut object);
        object
    };
    let unused = [
        service(|object| object["spec"]["clusterIPs"] = json!(["None"])),
        service(|object| object["spec"] = json!({ "type": "ExternalName", "externalName": "example.org" })),
        service(|object| object["spec"]["type"] = json!("ExternalName")),
        service(|object| object["spec"] = json!({ "clusterIP": "" })),
        service(|object| {
            object["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "" });
        }),
        slice(|object| object["addressType"] = json!("FQDN")),
        slice(|object| object["metadata"]["labels"] = json!({})),
        slice(|object| object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("")),
        slice(|object| object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x")),
    ];
    for object in unused {
        let entries = parsed(&list(&[object.clone(), service_of("good"), slice_of("good")]));
        let counts = (entries.services.len(), entries.slices.len(), entries.unused);
        assert_eq!((counts, entries.problems), ((1, 1, 1), vec![]), "{object}");
    }
}

#[test]
fn a_malformed_object_is_named_and_the_others_are_read() {
    let mut bad_address = service_of("bad-address");
    bad_address["spec"]["clusterIPs"] = json!(["10.96.0.300"]);
    let mut bad_policy = service_of("bad-policy");
    bad_policy["spec"]["externalTrafficPolicy"] = json!("Sometimes");
    let mut bad_port = slice_of("bad-port");
    bad_port["ports"][0]["protocol"] = json!("DCCP");
    let mut no_address = slice_of("no-address");
    no_address["endpoints"][0]["addresses"] = json!([]);
    let pod = json!({ "kind": "Pod", "metadata": { "name": "web-0", "namespace": "shop" } });
    let nameless = json!({ "kind": "Service", "metadata": {}, "spec": {} });
    let entries = parsed(&list(&[
        bad_address,
        service_of("good"),
        bad_policy,
        bad_port,
        no_address,
        pod,
        nameless,
        slice_of("good"),
    ]));
    assert_eq!((entries.services.len(), entries.slices.len()), (1, 1));
    let said: Vec<_> = entries.problems.iter().map(ToString::to_string).collect();
    let expected = [
        ("service shop/bad-address", "`10.96.0.300` is not an address"),
        ("service shop/bad-policy", "Sometimes"),
        ("endpointslice shop/bad-port-x", "DCCP"),
        ("endpointslice shop/no-address-x", "no address"),
        ("entry 6", "it is a Pod"),
        ("entry 7", "name"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (said, (entry, reason)) in said.iter().zip(expected) {
        assert!(said.starts_with(entry) && said.contains(reason), "{said}: {entry}, {reason}");
    }
}

#[test]
fn single_objects_are_read_and_other_lists_refused() {
    assert_eq!(parsed(&service_of("web").to_string()).services.len(), 1);
    let entries = parsed(&slice_of("web").to_string());
    assert_eq!((entries.slices[0].endpoints.len(), entries.slices[0].ports.len()), (1, 1));
    let refused = |text: &str| lists::parse::<Entries>(Path::new("list.json"), text.as_bytes()).unwrap_err();
    for text in ["", "{}", r#"{"kind":"NodeList","items":[]}"#] {
        let said = refused(text).to_string();
        assert!(
            said.contains("list.json") && said.contains("kubectl get services,endpointslices -A"),
            "{said}"
        );
    }
}

#[test]
fn what_is_saved_comes_back() {
    let entries = parsed(REAL);
    let services = entries.services.iter().cloned().map(Item::Service);
    let items: Vec<_> = services.chain(entries.slices.iter().cloned().map(Item::Slice)).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    saved::encode("List", &items, &mut file.as_file()).unwrap();
    let (back, age) = saved::read::<Entries>(file.path()).unwrap().unwrap();
    assert!(!age.is_zero());
    assert_eq!(back.problems, []);
    assert_eq!((back.services, back.slices), (entries.services, entries.slices));
}

/// The text of a large list, which is never in memory as a whole.
struct Large {
    next: u32,
    text: Vec<u8>,
    at: usize,
    total: usize,
}

impl Large {
    const SERVICES: u32 = 10_000;

    /// Returns the text of a service and of its slice with five endpoints, as long as kubectl prints
    /// them.
    fn entries(number: u32) -> String {
        let [_, _, high, low] = number.to_be_bytes();
        let (unused, separator) = ("x".repeat(2000), if number == 0 { "" } else { "," });
        let name =
            format!(r#""namespace":"shop","name":"web-{number}","annotations":{{"unused":"{unused}"}}"#);
        let spec = format!(r#"{{"clusterIPs":["10.96.{high}.{low}"],"ports":[{{"port":80}}]}}"#);
        let label = format!(r#""labels":{{"kubernetes.io/service-name":"web-{number}"}}"#);
        let endpoint = |last| format!(r#"{{"addresses":["10.244.{high}.{last}"],"nodeName":"node-{last}"}}"#);
        let endpoints = [0, 1, 2, 3, 4].map(endpoint).join(",");
        format!(
            r#"{separator}{{"kind":"Service","metadata":{{{name}}},"spec":{spec}}},
            {{"kind":"EndpointSlice","addressType":"IPv4","metadata":{{{name},{label}}},"endpoints":[{endpoints}]}}"#
        )
    }
}

impl Read for Large {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.text.len() {
            self.text = match self.next {
                number if number < Self::SERVICES => Self::entries(number).into_bytes(),
                Self::SERVICES => b"],\"kind\":\"List\"}".to_vec(),
                _ => return Ok(0),
            };
            (self.next, self.at) = (self.next + 1, 0);
        }
        let read = (&self.text[self.at..]).read(buffer)?;
        self.at += read;
        self.total += read;
        Ok(read)
    }
}

/// Runs in a process of its own: the kernel counts memory by process.
#[test]
fn a_large_list_is_read_in_a_part_of_its_own_size() {
    const NAME: &str = "services::objects::tests::a_large_list_is_read_in_a_part_of_its_own_size";
    const INSIDE: &str = "PODWIRE_LARGE_LIST";
    if std::env::var_os(INSIDE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args([NAME, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let mut large = Large { next: 0, text: b"{\"items\":[".to_vec(), at: 0, total: 0 };
    let entries: Entries = lists::parse(Path::new("services"), &mut large).unwrap();
    assert_eq!(entries.problems, []);
    assert_eq!(entries.services.len(), Large::SERVICES as usize);
    assert_eq!(entries.slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>(), 50_000);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).unwrap();
    let (peak, text) = (peak.trim().parse::<usize>().unwrap() << 10, large.total);
    println!("{peak} bytes of memory at most for {text} bytes of text");
    assert!(text > 40 << 20, "{text} bytes of text");
    assert!(peak < 40 << 20, "{peak} bytes of memory at most for {text} bytes of text");
}
