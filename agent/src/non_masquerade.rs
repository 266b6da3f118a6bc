//! Networks that see pods' own addresses: the file of `--non-masquerade-file`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::events::Event;
use crate::watched_file::{WatchError, Watched};

/// Largest size of the file in bytes: as much as a ConfigMap holds, more than 50,000 networks.
const LARGEST: u64 = 1 << 20;

/// A line that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {number} of {}: `{text}` is not a network such as 192.0.2.0/24 or 2001:db8::/32; the agent keeps the last good list", path.display())]
pub struct BadLine {
    path: PathBuf,
    number: usize,
    text: String,
}

/// Sends an event now and after every change: the file's networks, or why they cannot be used. A
/// missing file has no networks, because a ConfigMap may lack the key.
///
/// # Errors
/// Those of [`Watched::watch`].
pub async fn watch(path: PathBuf, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
    let what = "the list of networks that are not masqueraded";
    let file = Watched { what, path: path.clone(), limit: LARGEST };
    file.watch(&events, move |file| {
        let read = |file| io::read_to_string(file).map_err(|error| error.to_string());
        let text = match file {
            Err(_) if !path.exists() => Ok(String::new()),
            file => file.and_then(read),
        };
        Event::NonMasquerade(text.and_then(|text| parse(&path, &text).map_err(|error| error.to_string())))
    })
    .await
}

/// Parses one network per line; `#` begins a comment.
///
/// # Errors
/// [`BadLine`].
pub fn parse(path: &Path, text: &str) -> Result<BTreeSet<IpNet>, BadLine> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split('#').next().unwrap_or_default().trim()))
        .filter(|(_, network)| !network.is_empty())
        .map(|(number, network)| {
            let bad = BadLine { path: path.into(), number, text: network.into() };
            network.parse::<IpNet>().map(|network| network.trunc()).map_err(|_| bad)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<BTreeSet<IpNet>, BadLine> {
        parse(Path::new("/etc/networks"), text)
    }

    #[test]
    fn a_line_is_a_network_a_comment_or_nothing() {
        let networks = parsed("# ours\n10.0.0.0/8\n\n  192.0.2.77/24 # theirs\n2001:db8::7/32\n").unwrap();
        let expected = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"].map(|text| text.parse().unwrap());
        assert_eq!(networks, expected.into());
        assert_eq!(parsed(""), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_line_that_is_no_network_is_named() {
        for network in ["10.0.0.0/33", "2001:db8::/129", "2001:db8::"] {
            let refusal = parsed(&format!("10.0.0.0/8\n{network}\n")).unwrap_err().to_string();
            assert!(refusal.contains("line 2 of /etc/networks") && refusal.contains(network), "{refusal}");
        }
    }
}
