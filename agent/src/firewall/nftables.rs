//! Base chains of nftables, read over netlink (include/uapi/linux/netfilter/nf_tables.h). The
//! chains of iptables-nft and firewalld are among them.
//!
//! This module decodes the answers itself, attribute by attribute. It needs only the parts of a
//! rule that show whether the rule accepts pods.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use podwire_common::names::{VETH_PREFIX, VXLAN_DEVICE};
use podwire_core::forward_policy::{FIREWALLD, Family, Place};

use super::{Side, accept_both_ways};

/// The kernel fills at most 32 KiB at a time (`netlink_dump`).
const ANSWER: usize = 32768;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
/// `NLM_F_DUMP_INTR`: the rules changed during the dump.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `struct nfgenmsg`: family 1, version 1, resource 2.
const GENERIC_HEADER: usize = 4;
/// `NFNL_SUBSYS_NFTABLES` << 8, with `NFT_MSG_NEWCHAIN`, `NFT_MSG_NEWRULE`.
const NEW_CHAIN: u16 = 10 << 8 | 3;
const NEW_RULE: u16 = 10 << 8 | 6;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// An attribute's type without its flags.
const TYPE: u16 = 0x3fff;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_KEY: u16 = 2;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;

/// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
/// `NF_DROP`, `NF_ACCEPT`, `NFT_GOTO`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const GOTO: u32 = (-4_i32).cast_unsigned();
/// `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_NFPROTO`.
const INPUT_NAME: u32 = 6;
const OUTPUT_NAME: u32 = 7;
const FAMILY: u32 = 15;
/// `NFT_FIB_RESULT_OIF`.
const ROUTES_LINK: u32 = 1;
/// `NFTA_FIB_F_SADDR` | `NFTA_FIB_F_IIF`: the route back to the source, by the same link.
const BACK_BY_SAME_LINK: u32 = 1 | 8;
/// `NFT_CMP_EQ`.
const EQUAL: u32 = 0;

/// The chain that accepts everything that the zone `trusted` forwards. Until firewalld 0.9 its name
/// had one more letter.
const FIREWALLD_TRUSTED: [&str; 2] = ["filter_FWD_trusted", "filter_FWDI_trusted"];

/// Returns the places of nftables that may drop pods' packets.
pub(super) fn places() -> io::Result<Vec<Place>> {
    let socket = match open() {
        // A kernel without netfilter's netlink has no nftables either.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    let mut chains = Vec::new();
    let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let listed = dump(&socket, NetfilterProtoFamily::Unspec, all, NEW_CHAIN, |payload| {
        chains.extend(base_chain(payload));
    });
    match listed {
        // A kernel without nftables has no subsystem of that number.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Vec::new()),
        listed => listed?,
    }
    let mut places = Vec::new();
    for chain in chains {
        places.extend(chain.place(&socket)?);
    }
    Ok(places)
}

/// A base chain that sees forwarded packets.
#[derive(Debug, PartialEq, Eq)]
struct BaseChain {
    family: Family,
    table: String,
    name: String,
    /// [`PREROUTING`] or [`FORWARD`].
    hook: u32,
    drops: bool,
}

impl BaseChain {
    /// Returns the chain's place if the chain may drop pods' packets.
    fn place(self, socket: &Socket) -> io::Result<Option<Place>> {
        if self.hook == PREROUTING {
            let rule = self.rules(socket, true, rule_about_tunnel)?.into_iter().next();
            let Self { family, table, name: chain, .. } = self;
            return Ok(match rule {
                Some(AboutTunnel::DropsByRoute(sees)) => {
                    Some(Place::ReversePath { sees: sees.unwrap_or(family), family, table, chain })
                }
                Some(AboutTunnel::Accepts) | None => None,
            });
        }
        if self.table == FIREWALLD {
            // The chain jumps to other chains of its table, and those distinguish zones.
            let trusted = self.rules(socket, false, rule_about_pods)?.into_iter().any(|(side, verdict)| {
                let chain =
                    matches!(&verdict, Verdict::Goto(chain) if FIREWALLD_TRUSTED.contains(&chain.as_str()));
                side == Side::FromPods && chain
            });
            return Ok((!trusted).then_some(Place::Firewalld));
        }
        if !self.drops {
            return Ok(None);
        }
        let rules = self.rules(socket, true, rule_about_pods)?.into_iter();
        let accepted: Vec<_> = rules.filter(|rule| rule.1 == Verdict::Accept).map(|rule| rule.0).collect();
        let Self { family, table, name: chain, .. } = self;
        Ok((!accept_both_ways(&accepted)).then_some(Place::Nftables { family, table, chain }))
    }

    /// Returns what `decode` finds in the rules of this chain or of its whole table, in order.
    fn rules<T>(
        &self,
        socket: &Socket,
        of_chain: bool,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut attributes = vec![RuleAttribute::Table(self.table.clone())];
        if of_chain {
            attributes.push(RuleAttribute::Chain(self.name.clone()));
        }
        let family = match self.family {
            Family::Ip => NetfilterProtoFamily::IPv4,
            Family::Ip6 => NetfilterProtoFamily::IPv6,
            Family::Inet => NetfilterProtoFamily::Inet,
        };
        let mut rules = Vec::new();
        let message = NfTablesMessage::GetRule(RuleMessage { attributes });
        dump(socket, family, message, NEW_RULE, |payload| rules.extend(decode(payload)))?;
        Ok(rules)
    }
}

/// The verdict of a rule.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Goto(String),
}

/// What a rule does to everything that arrives by the VXLAN device.
#[derive(Debug, PartialEq, Eq)]
enum AboutTunnel {
    Accepts,
    /// It drops what arrives by another link than the one that leads back to its source. The family
    /// of these packets, if the rule asks for one.
    DropsByRoute(Option<Family>),
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks for a list, and passes the payload of each answer of type `answer` to `take`.
fn dump(
    socket: &Socket,
    family: NetfilterProtoFamily,
    question: NfTablesMessage,
    answer: u16,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question);
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    packet.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut interrupted = false;
    loop {
        let mut received = Vec::with_capacity(ANSWER);
        socket.recv(&mut received, 0)?;
        for (kind, flags, payload) in messages(&received) {
            interrupted |= flags & DUMP_INTERRUPTED != 0;
            match kind {
                // Both types begin with a negative error number; at the end of a list, 0 stands for
                // no error.
                NLMSG_ERROR | NLMSG_DONE => {
                    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 if interrupted => Err(io::ErrorKind::Interrupted.into()),
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                kind if kind == answer => take(payload),
                _ => {}
            }
        }
    }
}

/// Returns type, flags and payload of each netlink message. Leaves out a truncated message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let payload = bytes.get(NLMSG_HEADER..length)?;
        let (kind, flags) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, payload))
    })
}

/// Returns type and value of each netlink attribute. Leaves out a truncated attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let (kind, value) = (u16_at(bytes, 2)? & TYPE, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// Returns a base chain on the prerouting or forward hook of a family with IP. `None` for any other
/// chain.
fn base_chain(payload: &[u8]) -> Option<BaseChain> {
    let family = match *payload.first()? {
        INET => Family::Inet,
        IPV4 => Family::Ip,
        IPV6 => Family::Ip6,
        _ => return None,
    };
    let payload = payload.get(GENERIC_HEADER..)?;
    let hook = number(attribute(attribute(payload, CHAIN_HOOK)?, HOOK_NUMBER)?)?;
    if ![PREROUTING, FORWARD].contains(&hook) {
        return None;
    }
    Some(BaseChain {
        family,
        hook,
        table: text(attribute(payload, CHAIN_TABLE)?)?,
        name: text(attribute(payload, CHAIN_NAME)?)?,
        drops: number(attribute(payload, CHAIN_POLICY)?)? == DROP,
    })
}

/// Returns a rule about all packets from pods, or all packets to pods. `None` for any other rule,
/// such as one that checks more than the name of the link.
fn rule_about_pods(payload: &[u8]) -> Option<(Side, Verdict)> {
    let parts = parts(payload)?;
    let [load, compare, verdict] = &parts[..] else { return None };
    let (key, name) = equals(load, compare)?;
    let side = match key {
        INPUT_NAME => Side::FromPods,
        OUTPUT_NAME => Side::ToPods,
        _ => return None,
    };
    let verdict = verdict_of(verdict)?;
    let verdict = match number(attribute(verdict, VERDICT_CODE)?)? {
        ACCEPT => Verdict::Accept,
        GOTO => Verdict::Goto(text(attribute(verdict, VERDICT_CHAIN)?)?),
        _ => return None,
    };
    // A prefix lacks the 0 byte that ends a whole name.
    (name == VETH_PREFIX.as_bytes()).then_some((side, verdict))
}

/// Returns what a rule does to everything that arrives by the VXLAN device. `None` if it checks
/// anything else, or does something else.
fn rule_about_tunnel(payload: &[u8]) -> Option<AboutTunnel> {
    let parts = parts(payload)?;
    let (verdict, conditions) = parts.split_last()?;
    let code = number(attribute(verdict_of(verdict)?, VERDICT_CODE)?)?;
    let (conditions, family) = match conditions {
        [load, compare, rest @ ..] if matches!(equals(load, compare), Some((FAMILY, _))) => {
            let family = match equals(load, compare)?.1 {
                [IPV4] => Family::Ip,
                [IPV6] => Family::Ip6,
                _ => return None,
            };
            (rest, Some(family))
        }
        conditions => (conditions, None),
    };
    let [load, compare] = conditions else { return None };
    match code {
        ACCEPT if family.is_none() => {
            let (key, name) = equals(load, compare)?;
            let name = name.strip_prefix(VXLAN_DEVICE.as_bytes())?;
            // A whole name ends with a 0 byte.
            let is_whole = name.first() == Some(&0);
            (key == INPUT_NAME && is_whole).then_some(AboutTunnel::Accepts)
        }
        DROP => {
            let (kind, data) = load;
            let is_back = kind == "fib"
                && number(attribute(data, FIB_RESULT)?)? == ROUTES_LINK
                && number(attribute(data, FIB_FLAGS)?)? & BACK_BY_SAME_LINK == BACK_BY_SAME_LINK;
            // 0: there is no such route.
            let is_missing = is_back && compared(compare)?.iter().all(|byte| *byte == 0);
            is_missing.then_some(AboutTunnel::DropsByRoute(family))
        }
        _ => None,
    }
}

/// An expression's name and data.
type Part<'a> = (String, &'a [u8]);

/// Returns the expressions of a rule, without counters: rules of iptables-nft have one.
fn parts(payload: &[u8]) -> Option<Vec<Part<'_>>> {
    let expressions = attribute(payload.get(GENERIC_HEADER..)?, RULE_EXPRESSIONS)?;
    let mut parts = Vec::new();
    for (_, expression) in attributes(expressions) {
        let name = text(attribute(expression, EXPRESSION_NAME)?)?;
        if name != "counter" {
            parts.push((name, attribute(expression, EXPRESSION_DATA)?));
        }
    }
    Some(parts)
}

/// Returns the key that two expressions compare, and the value that it must have.
fn equals<'a>(load: &Part<'a>, compare: &Part<'a>) -> Option<(u32, &'a [u8])> {
    let value = compared(compare)?;
    (load.0 == "meta").then_some((number(attribute(load.1, META_KEY)?)?, value))
}

/// Returns the value that an expression asks for.
fn compared<'a>((kind, data): &Part<'a>) -> Option<&'a [u8]> {
    if kind != "cmp" || number(attribute(data, COMPARE_OPERATION)?)? != EQUAL {
        return None;
    }
    attribute(attribute(data, COMPARE_DATA)?, DATA_VALUE)
}

fn verdict_of<'a>((kind, data): &Part<'a>) -> Option<&'a [u8]> {
    if kind != "immediate" {
        return None;
    }
    attribute(attribute(data, IMMEDIATE_DATA)?, DATA_VERDICT)
}

/// Decodes a number. nftables' numbers are in network byte order, unlike netlink's own.
fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}

fn text(value: &[u8]) -> Option<String> {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8(value.to_vec()).ok()
}

fn u16_at(bytes: &[u8], position: usize) -> Option<u16> {
    bytes.get(position..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        encoded(kind | 0x8000, &parts.concat())
    }

    fn chain(family: u8, hook: u32, policy: u32) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(encoded(CHAIN_TABLE, b"filter\0"));
        bytes.extend(encoded(CHAIN_NAME, b"FORWARD\0"));
        bytes.extend(nested(CHAIN_HOOK, &[encoded(HOOK_NUMBER, &hook.to_be_bytes())]));
        bytes.extend(encoded(CHAIN_POLICY, &policy.to_be_bytes()));
        bytes
    }

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        nested(1, &[encoded(EXPRESSION_NAME, name.as_bytes()), nested(EXPRESSION_DATA, data)])
    }

    /// Returns the rule `iifname "pw*" counter accept`. The parameters vary each part.
    fn rule(key: u32, operation: u32, name: &[u8], verdict: u32, more: &[Vec<u8>]) -> Vec<u8> {
        let code = nested(DATA_VERDICT, &[encoded(VERDICT_CODE, &verdict.to_be_bytes())]);
        let mut expressions = more.to_vec();
        expressions.extend([
            expression("meta", &[encoded(META_KEY, &key.to_be_bytes())]),
            expression(
                "cmp",
                &[
                    encoded(COMPARE_OPERATION, &operation.to_be_bytes()),
                    nested(COMPARE_DATA, &[encoded(DATA_VALUE, name)]),
                ],
            ),
            expression("counter", &[]),
            expression("immediate", &[nested(IMMEDIATE_DATA, &[code])]),
        ]);
        [vec![INET, 0, 0, 0], nested(RULE_EXPRESSIONS, &expressions)].concat()
    }

    #[test]
    fn a_forward_chain_is_told_from_the_others() {
        let found = |family, drops| {
            Some(BaseChain { family, table: "filter".into(), name: "FORWARD".into(), hook: FORWARD, drops })
        };
        assert_eq!(base_chain(&chain(IPV4, FORWARD, DROP)), found(Family::Ip, true));
        assert_eq!(base_chain(&chain(INET, FORWARD, ACCEPT)), found(Family::Inet, false));
        assert_eq!(base_chain(&chain(IPV6, FORWARD, DROP)), found(Family::Ip6, true));
        assert_eq!(base_chain(&chain(7, FORWARD, DROP)), None, "a bridge");
        assert_eq!(base_chain(&chain(IPV4, 1, DROP)), None, "the input hook");
    }

    #[test]
    fn a_rule_about_all_pods_is_told_from_the_others() {
        let accepted = |side| Some((side, Verdict::Accept));
        let plain = rule(INPUT_NAME, EQUAL, b"pw", ACCEPT, &[]);
        assert_eq!(rule_about_pods(&plain), accepted(Side::FromPods));
        assert_eq!(rule_about_pods(&rule(OUTPUT_NAME, EQUAL, b"pw", ACCEPT, &[])), accepted(Side::ToPods));
        let tcp_only = expression("meta", &[encoded(META_KEY, &16_u32.to_be_bytes())]);
        for (other, what) in [
            (rule(INPUT_NAME, EQUAL, b"pw\0", ACCEPT, &[]), "one link with exactly this name"),
            (rule(INPUT_NAME, EQUAL, b"eth", ACCEPT, &[]), "other links"),
            (rule(INPUT_NAME, 1, b"pw", ACCEPT, &[]), "all but pods"),
            (rule(INPUT_NAME, EQUAL, b"pw", DROP, &[]), "dropped"),
            (rule(16, EQUAL, b"pw", ACCEPT, &[]), "another key"),
            (rule(INPUT_NAME, EQUAL, b"pw", ACCEPT, &[tcp_only]), "some packets"),
        ] {
            assert_eq!(rule_about_pods(&other), None, "{what}");
        }
    }

    #[test]
    fn a_rule_about_all_of_the_tunnel_is_told_from_the_others() {
        let whole = rule(INPUT_NAME, EQUAL, b"podwire-vxlan\0", ACCEPT, &[]);
        assert_eq!(rule_about_tunnel(&whole), Some(AboutTunnel::Accepts));
        let fib = |flags: u32, value: &[u8], verdict, more: &[Vec<u8>]| {
            let back = [encoded(FIB_RESULT, &1_u32.to_be_bytes()), encoded(FIB_FLAGS, &flags.to_be_bytes())];
            let value = nested(COMPARE_DATA, &[encoded(DATA_VALUE, value)]);
            let code = nested(DATA_VERDICT, &[encoded(VERDICT_CODE, &u32::to_be_bytes(verdict))]);
            let mut expressions = more.to_vec();
            expressions.extend([
                expression("fib", &back),
                expression("cmp", &[encoded(COMPARE_OPERATION, &EQUAL.to_be_bytes()), value]),
                expression("immediate", &[nested(IMMEDIATE_DATA, &[code])]),
            ]);
            [vec![INET, 0, 0, 0], nested(RULE_EXPRESSIONS, &expressions)].concat()
        };
        let missing = fib(BACK_BY_SAME_LINK | 4, &[0; 4], DROP, &[]);
        assert_eq!(rule_about_tunnel(&missing), Some(AboutTunnel::DropsByRoute(None)));
        let limit = expression("limit", &[]);
        for (other, what) in [
            (rule(INPUT_NAME, EQUAL, b"podwire-vxlan", ACCEPT, &[]), "a prefix"),
            (rule(INPUT_NAME, EQUAL, b"podwire-vxlan2\0", ACCEPT, &[]), "another link"),
            (rule(OUTPUT_NAME, EQUAL, b"podwire-vxlan\0", ACCEPT, &[]), "what leaves by the link"),
            (fib(1, &[0; 4], DROP, &[]), "a route back by any link"),
            (fib(BACK_BY_SAME_LINK, &[0, 0, 0, 2], DROP, &[]), "one link"),
            (fib(BACK_BY_SAME_LINK, &[0; 4], ACCEPT, &[]), "accepted"),
            (fib(BACK_BY_SAME_LINK, &[0; 4], DROP, &[limit]), "some packets"),
        ] {
            assert_eq!(rule_about_tunnel(&other), None, "{what}");
        }
        for rule in [whole, missing] {
            for end in 0..rule.len() {
                assert_eq!(rule_about_tunnel(&rule[..end]), None, "rule cut at {end}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let (chain, rule) = (chain(IPV4, FORWARD, DROP), rule(INPUT_NAME, EQUAL, b"pw", ACCEPT, &[]));
        for end in 0..chain.len() {
            assert_eq!(base_chain(&chain[..end]), None, "chain cut at {end}");
        }
        for end in 0..rule.len() {
            assert_eq!(rule_about_pods(&rule[..end]), None, "rule cut at {end}");
        }
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.resize(20, 0);
        assert_eq!(messages(&message).count(), 1);
        assert_eq!(messages(&message[..19]).count(), 0);
        for endless in [[0; 16], [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]] {
            assert_eq!((messages(&endless).count(), attributes(&endless).count()), (0, 0));
        }
    }
}
