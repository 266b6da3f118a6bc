//! A pod: a namespace with an interface made by the plugin.

use std::net::IpAddr;
use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::ns::parse_mac;
use crate::lab::{CniCall, Ns, cleanup};

/// A pod. It dereferences to its network namespace, so it is accepted where an [`Ns`] is expected.
///
/// A drop changes nothing. The lab removes the pod, or [`Pod::delete`] does as a runtime would.
#[derive(Debug)]
pub struct Pod {
    ns: Ns,
    call: CniCall,
    result: Value,
    addresses: Vec<IpAddr>,
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
        let ips = result["ips"].as_array().context("the result of ADD has no ips")?;
        let read = |value: &Value| value.as_str().map(str::to_owned);
        let field = |value: &Value, what: &str| {
            read(value).with_context(|| format!("the result of ADD has no {what}: {result}"))
        };
        let addresses: Result<Vec<IpAddr>> = ips
            .iter()
            .map(|ip| {
                let address = field(&ip["address"], "address")?;
                Ok(address.split('/').next().unwrap_or_default().parse()?)
            })
            .collect();
        let addresses = addresses?;
        ensure!(!addresses.is_empty(), "the result of ADD has no address: {result}");
        let gateway = field(&ips[0]["gateway"], "gateway")?.parse()?;
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
            addresses,
            gateway,
            result,
            call,
            ns,
        })
    }

    /// Returns the plugin's answer.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Returns the pod's first address.
    pub fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Returns the pod's addresses, one of each family, in the order of the plugin's answer.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Returns the gateway of the pod's default route.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Returns the Ethernet address of the pod's interface.
    pub fn eth0_mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Returns the name of the node's end of the pod's veth pair.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// Returns the Ethernet address of the node's end, which is the gateway's.
    pub fn host_mac(&self) -> [u8; 6] {
        self.host_mac
    }

    /// Returns the ADD call that made the pod; [`CniCall::with_command`] turns it into a DEL or a
    /// CHECK.
    pub fn call(&self) -> &CniCall {
        &self.call
    }

    /// Runs a DEL as a runtime does, then removes the namespace.
    ///
    /// # Errors
    /// When the plugin fails, or when the namespace cannot be removed.
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
