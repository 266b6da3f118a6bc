//! A pod: a namespace that the plugin has given an interface.

use std::net::IpAddr;
use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::ns::parse_mac;
use crate::lab::{CniCall, Ns, cleanup};

/// A pod. It is its network namespace, too: whatever takes an [`Ns`] takes a pod.
///
/// Dropping it changes nothing; the lab removes it, or [`Pod::delete`] as a runtime would.
#[derive(Debug)]
pub struct Pod {
    ns: Ns,
    call: CniCall,
    result: Value,
    address: IpAddr,
    gateway: IpAddr,
    host_interface: String,
    mac: [u8; 6],
    host_mac: [u8; 6],
}

impl Pod {
    pub(crate) fn add(ns: Ns, call: CniCall) -> Result<Self> {
        let output = call.run()?;
        ensure!(output.success, "ADD of {} failed: {}\n{}", ns.name(), output.answer, output.stderr);
        let result = output.answer;
        let ip = &result["ips"][0];
        let read = |value: &Value| value.as_str().map(str::to_owned);
        let field = |value: &Value, what: &str| {
            read(value).with_context(|| format!("the result of ADD has no {what}: {result}"))
        };
        let address = field(&ip["address"], "address")?;
        let address = address.split('/').next().unwrap_or_default().parse()?;
        let gateway = field(&ip["gateway"], "gateway")?.parse()?;
        // The pod's interface has a sandbox, the host side has none (CNI specification, "Success").
        let interfaces = result["interfaces"].as_array().context("the result of ADD has no interfaces")?;
        let host = interfaces.iter().find(|link| link["sandbox"].as_str().unwrap_or_default().is_empty());
        let pod =
            interfaces.iter().find(|link| link["sandbox"].as_str().is_some_and(|path| !path.is_empty()));
        let host =
            host.with_context(|| format!("the result of ADD has no interface on the node: {result}"))?;
        let pod = pod.with_context(|| format!("the result of ADD has no interface in the pod: {result}"))?;
        Ok(Self {
            host_interface: field(&host["name"], "interface name")?,
            host_mac: parse_mac(&field(&host["mac"], "mac")?)?,
            mac: parse_mac(&field(&pod["mac"], "mac")?)?,
            address,
            gateway,
            result,
            call,
            ns,
        })
    }

    /// What the plugin printed.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its default route's gateway.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Its interface's Ethernet address.
    pub fn eth0_mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The node's end of its veth pair.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// That end's Ethernet address: the gateway's.
    pub fn host_mac(&self) -> [u8; 6] {
        self.host_mac
    }

    /// The ADD call that made it; [`CniCall::with_command`] makes a DEL or a CHECK of it.
    pub fn call(&self) -> &CniCall {
        &self.call
    }

    /// DEL as a runtime does it, then its namespace is removed.
    ///
    /// # Errors
    /// When the plugin fails, or something runs on in the namespace.
    pub fn delete(self) -> Result<()> {
        let output = self.call.with_command("DEL").run()?;
        ensure!(output.success, "DEL of {} failed: {}\n{}", self.ns.name(), output.answer, output.stderr);
        cleanup::remove_namespace(self.ns.name())
    }
}

impl Deref for Pod {
    type Target = Ns;

    fn deref(&self) -> &Ns {
        &self.ns
    }
}
