//! The pod's routes: its own, and those that the configuration requests (`routes`).

mod kernel;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

pub(crate) use kernel::{add, faults, is_local};

use crate::config_error::ConfigError;
use crate::fields::Fields;
use crate::ipv6;
use crate::version::SpecVersion;

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;
/// `RT_SCOPE_LINK`: the scope of a route without a gateway. A route with a gateway needs a wider
/// scope.
const SCOPE_LINK: u8 = 253;
/// The smallest MTU of an IPv4 route, bytes (RFC 791 section 3.2).
const SMALLEST_MTU: u32 = 68;
/// The largest MTU of a route and the largest segment size that the kernel does not reduce, bytes
/// (`fib_metrics`, `net/ipv4/metrics.c`): the largest IPv4 packet less some headers. IPv6 has the
/// same bounds.
const LARGEST_MTU: u64 = 65_520;
const LARGEST_ADVMSS: u64 = 65_495;
/// `IP6_RT_PRIO_USER`: the kernel's priority for an IPv6 route that names none.
const IPV6_PRIORITY: u32 = 1024;

/// Attributes of a route besides destination and gateway (CNI specification 1.1.0, section
/// "Success"). `None`: the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// MTU, bytes.
    mtu: Option<u32>,
    /// The TCP segment size that is advertised, bytes.
    advmss: Option<u32>,
    /// Of two routes, the kernel takes the one with the lower number.
    priority: Option<u32>,
    table: Option<u32>,
    scope: Option<u8>,
}

/// A route of the configuration. Without a gateway it gets the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    destination: IpNet,
    gateway: Option<IpAddr>,
    attributes: Attributes,
}

/// A route over the pod's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    /// `None`: the destination is on the link.
    pub(crate) gateway: Option<IpAddr>,
    attributes: Attributes,
}

/// Reads `routes` of the configuration.
pub(crate) fn parse(fields: &Fields<'_>) -> Result<Vec<Asked>, ConfigError> {
    fields.objects("routes")?.iter().map(Asked::parse).collect()
}

impl Asked {
    fn parse(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let missing = || ConfigError::Missing { field: fields.path_of("dst") };
        let text = fields.string("dst")?.ok_or_else(missing)?;
        let destination = text
            .parse::<IpNet>()
            .map_err(|_| invalid(fields, "dst", text, "a destination looks like 10.0.0.0/8"))?;
        let gateway = fields.string("gw")?.filter(|text| !text.is_empty()).map(|text| {
            text.parse().map_err(|_| invalid(fields, "gw", text, "an address looks like 10.244.1.1"))
        });
        let scope = match fields.unsigned("scope")? {
            None => None,
            Some(scope) => {
                Some(u8::try_from(scope).ok().filter(|scope| *scope < SCOPE_LINK).ok_or_else(|| {
                    let reason =
                        "a route by the pod's gateway has a scope of 0 (global) to 252, below \"link\"";
                    invalid(fields, "scope", &scope.to_string(), reason)
                })?)
            }
        };
        let smallest_mtu = if destination.addr().is_ipv4() { SMALLEST_MTU } else { ipv6::MIN_MTU };
        let attributes = Attributes {
            mtu: number(fields, "mtu", smallest_mtu.into()..=LARGEST_MTU)?.filter(|mtu| *mtu != 0),
            advmss: number(fields, "advmss", 1..=LARGEST_ADVMSS)?.filter(|advmss| *advmss != 0),
            priority: number(fields, "priority", 0..=u32::MAX.into())?,
            table: number(fields, "table", 0..=u32::MAX.into())?,
            scope,
        };
        Ok(Asked { destination: destination.trunc(), gateway: gateway.transpose()?, attributes })
    }
}

/// Returns a number, which must be in the range. Zero is always accepted: it means "not set", as
/// for the reference plugins.
fn number(
    fields: &Fields<'_>,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u32>, ConfigError> {
    let Some(number) = fields.unsigned(key)? else { return Ok(None) };
    if number != 0 && !range.contains(&number) {
        let reason = format!("it must be between {} and {}", range.start(), range.end());
        return Err(invalid(fields, key, &number.to_string(), &reason));
    }
    Ok(u32::try_from(number).ok())
}

fn invalid(fields: &Fields<'_>, key: &str, found: &str, reason: &str) -> ConfigError {
    ConfigError::Invalid { field: fields.path_of(key), found: found.to_owned(), reason: reason.to_owned() }
}

/// Returns the routes of a pod with known gateways and MTU: one route to each gateway, the default
/// routes, and the requested ones. A requested route may repeat the destination, table and priority
/// of an earlier one in this list. It replaces the earlier route if that one has a gateway and no
/// attributes, for example the default route. Any other repetition is an error, unless the two
/// routes are equal.
pub(crate) fn of_pod(gateways: &[IpAddr], mtu: u32, asked: &[Asked]) -> Result<Vec<Route>, ConfigError> {
    let mut routes: Vec<Route> = gateways
        .iter()
        .flat_map(|gateway| [Route::to_gateway(*gateway), Route::default_by(*gateway)])
        .collect();
    for (index, asked) in asked.iter().enumerate() {
        let wrong = |key: &str, found: String, reason: String| ConfigError::Invalid {
            field: format!("routes[{index}].{key}"),
            found,
            reason,
        };
        let is_ipv4 = asked.destination.addr().is_ipv4();
        let gateway = *gateways.iter().find(|gateway| gateway.is_ipv4() == is_ipv4).ok_or_else(|| {
            wrong("dst", asked.destination.to_string(), "the pod has no address of that family".to_owned())
        })?;
        if let Some(other) = asked.gateway.filter(|asked| *asked != gateway) {
            let reason = format!("the pod's only next hop is its gateway, {gateway}: leave gw out");
            return Err(wrong("gw", other.to_string(), reason));
        }
        if let Some(larger) = asked.attributes.mtu.filter(|asked| *asked > mtu) {
            let reason = format!("the pod's link carries {mtu} bytes: lower it or leave it out");
            return Err(wrong("mtu", larger.to_string(), reason));
        }
        let route =
            Route { destination: asked.destination, gateway: Some(gateway), attributes: asked.attributes };
        match routes.iter_mut().find(|there| there.place() == route.place()) {
            None => routes.push(route),
            Some(there) if there.gateway.is_some() && there.attributes == Attributes::default() => {
                *there = route;
            }
            Some(there) if *there == route => {}
            Some(there) => {
                let reason = format!(
                    "the pod has the route {there} already: give one of the two another priority or table"
                );
                return Err(wrong("dst", asked.destination.to_string(), reason));
            }
        }
    }
    Ok(routes)
}

impl Route {
    fn to_gateway(gateway: IpAddr) -> Self {
        let attributes = Attributes { scope: Some(SCOPE_LINK), ..Attributes::default() };
        Route { destination: gateway.into(), gateway: None, attributes }
    }

    fn default_by(gateway: IpAddr) -> Self {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        Route { destination, gateway: Some(gateway), attributes: Attributes::default() }
    }

    /// Returns the route's entry in a result of that version. Only results of 1.1.0 list its
    /// attributes.
    pub(crate) fn to_json(self, version: SpecVersion) -> Value {
        let mut route = json!({"dst": self.destination, "gw": self.gateway});
        let Attributes { mtu, advmss, priority, table, scope } = self.attributes;
        if version >= SpecVersion::V1_1_0 {
            let scope = scope.map(u32::from);
            for (key, value) in
                [("mtu", mtu), ("advmss", advmss), ("priority", priority), ("table", table), ("scope", scope)]
            {
                if let Some(value) = value {
                    route[key] = json!(value);
                }
            }
        }
        route
    }

    fn is_ipv4(&self) -> bool {
        self.destination.addr().is_ipv4()
    }

    fn table(&self) -> u32 {
        self.attributes.table.filter(|table| *table != 0).unwrap_or(TABLE_MAIN)
    }

    fn priority(&self) -> u32 {
        let default = if self.is_ipv4() { 0 } else { IPV6_PRIORITY };
        self.attributes.priority.filter(|priority| *priority != 0).unwrap_or(default)
    }

    /// Returns the scope. IPv6 routes have none.
    fn scope(&self) -> u8 {
        self.attributes.scope.filter(|_| self.is_ipv4()).unwrap_or_default()
    }

    /// Returns the place of the route: the kernel holds one route for each place.
    fn place(&self) -> (IpNet, u32, u32) {
        (self.destination, self.table(), self.priority())
    }

    /// Returns whether a route of the kernel is this one, apart from defaults that the kernel fills
    /// in.
    fn is_same(&self, there: &Self) -> bool {
        self.place() == there.place()
            && self.scope() == there.scope()
            && (self.gateway, self.attributes.mtu, self.attributes.advmss)
                == (there.gateway, there.attributes.mtu, there.attributes.advmss)
    }
}

impl fmt::Display for Route {
    /// Writes the route as `ip route` does, without the link.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination.prefix_len() {
            0 => f.write_str("default")?,
            _ => write!(f, "{}", self.destination)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        let Attributes { mtu, advmss, priority, table, scope } = self.attributes;
        let scope = scope.filter(|_| self.gateway.is_some()).map(u32::from);
        for (name, value) in
            [("table", table), ("metric", priority), ("scope", scope), ("mtu", mtu), ("advmss", advmss)]
        {
            if let Some(value) = value {
                write!(f, " {name} {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Keys;

    fn of(routes: &Value) -> Result<Vec<String>, String> {
        with_gateways(&["10.244.1.1".parse().unwrap()], routes)
    }

    fn with_gateways(gateways: &[IpAddr], routes: &Value) -> Result<Vec<String>, String> {
        let document = json!({ "routes": routes });
        let fields = Fields::root(document.as_object().unwrap(), Keys::Exact);
        let routes = parse(&fields).and_then(|asked| of_pod(gateways, 1450, &asked));
        routes
            .map(|routes| routes.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    const OWN: [&str; 2] = ["10.244.1.1/32", "default via 10.244.1.1"];

    #[test]
    fn a_pod_has_its_own_routes_and_those_asked_for() {
        assert_eq!(of(&json!([])).unwrap(), OWN);
        let all = json!([{"dst": "10.9.8.7/8", "gw": "10.244.1.1", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 1000, "scope": 200}]);
        assert_eq!(
            of(&all).unwrap()[2],
            "10.0.0.0/8 via 10.244.1.1 table 1000 metric 5 scope 200 mtu 1400 advmss 1300"
        );
    }

    #[test]
    fn a_route_that_repeats_the_default_one_does_no_harm() {
        for route in [
            json!({"dst": "0.0.0.0/0"}),
            json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1"}),
            json!({"dst": "0.0.0.0/0", "gw": "", "mtu": 0}),
        ] {
            assert_eq!(of(&json!([route, route])).unwrap(), OWN, "{route}");
        }
        let with_mtu = of(&json!([{"dst": "0.0.0.0/0", "mtu": 1300}])).unwrap();
        assert_eq!(with_mtu, ["10.244.1.1/32", "default via 10.244.1.1 mtu 1300"]);
    }

    #[test]
    fn what_cannot_be_is_named_by_its_field() {
        for (route, said) in [
            (json!({}), "routes[0].dst is missing"),
            (json!({"dst": "10.0.0.0"}), "routes[0].dst is \"10.0.0.0\""),
            (
                json!({"dst": "fd00::/8"}),
                "routes[0].dst is \"fd00::/8\": the pod has no address of that family",
            ),
            (json!({"dst": "10.0.0.0/8", "gw": "here"}), "routes[0].gw is \"here\""),
            (
                json!({"dst": "10.0.0.0/8", "gw": "10.244.1.9"}),
                "routes[0].gw is \"10.244.1.9\": the pod's only next hop",
            ),
            (
                json!({"dst": "10.0.0.0/8", "mtu": 1451}),
                "routes[0].mtu is \"1451\": the pod's link carries 1450",
            ),
            (json!({"dst": "10.0.0.0/8", "mtu": 67}), "routes[0].mtu is \"67\""),
            (json!({"dst": "10.0.0.0/8", "advmss": 65_496}), "routes[0].advmss is \"65496\""),
            (json!({"dst": "10.0.0.0/8", "priority": -1}), "routes[0].priority is -1"),
            (json!({"dst": "10.0.0.0/8", "table": 4_294_967_296_u64}), "routes[0].table is \"4294967296\""),
            (json!({"dst": "10.0.0.0/8", "scope": 253}), "routes[0].scope is \"253\""),
            (json!({"dst": "10.244.1.1/32"}), "routes[0].dst is \"10.244.1.1/32\": the pod has the route"),
        ] {
            let error = of(&json!([route])).unwrap_err();
            assert!(error.starts_with(said), "{route}: {error}");
        }
        let twice = json!([{"dst": "10.0.0.0/8", "mtu": 1300}, {"dst": "10.0.0.0/8", "mtu": 1200}]);
        assert!(of(&twice).unwrap_err().starts_with("routes[1].dst is \"10.0.0.0/8\""));
    }

    #[test]
    fn each_family_has_its_gateway_and_its_bounds() {
        let gateways = ["10.244.1.1", "fe80::1"].map(|gateway| gateway.parse().unwrap());
        let of = |routes: Value| with_gateways(&gateways, &routes);
        let own = ["10.244.1.1/32", "default via 10.244.1.1", "fe80::1/128", "default via fe80::1"];
        assert_eq!(of(json!([])).unwrap(), own);
        // The networks of a cluster whose earlier plugin was configured with both default routes.
        assert_eq!(of(json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])).unwrap(), own);
        assert_eq!(
            of(json!([{"dst": "2001:db8::7/32", "gw": "fe80::1", "mtu": 1280}])).unwrap()[4],
            "2001:db8::/32 via fe80::1 mtu 1280"
        );
        for (route, said) in [
            (
                json!({"dst": "2001:db8::/32", "mtu": 1279}),
                "routes[0].mtu is \"1279\": it must be between 1280 and 65520",
            ),
            (
                json!({"dst": "2001:db8::/32", "gw": "fd00:10:244::1"}),
                "routes[0].gw is \"fd00:10:244::1\": the pod's only next hop is its gateway, fe80::1",
            ),
            (json!({"dst": "2001:db8::/32", "gw": "10.244.1.1"}), "routes[0].gw is \"10.244.1.1\""),
            (json!({"dst": "fe80::1/128"}), "routes[0].dst is \"fe80::1/128\": the pod has the route"),
        ] {
            let error = of(json!([route])).unwrap_err();
            assert!(error.starts_with(said), "{route}: {error}");
        }
    }

    #[test]
    fn attributes_are_for_the_results_of_1_1_0() {
        let gateway: IpAddr = "10.244.1.1".parse().unwrap();
        let mut route = Route::default_by(gateway);
        route.attributes = Attributes { mtu: Some(1300), table: Some(7), ..Attributes::default() };
        assert_eq!(
            route.to_json(SpecVersion::V1_1_0),
            json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1300, "table": 7})
        );
        assert_eq!(route.to_json(SpecVersion::V1_0_0), json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1"}));
    }
}
