//! Reads Node objects from a file, and watches the file.

use std::path::PathBuf;
use std::time::Duration;

use podwire_core::cluster::NodeList;
use tokio::sync::mpsc;
use tracing::info;

use super::objects::Entries;
use crate::events::Event;
use crate::objects::list;
use crate::watched_file::{WatchError, Watched};

/// Largest size of the file in bytes: twice the 30 MB of 5,000 nodes.
const LARGEST: u64 = 64 << 20;

/// Sends the file's content as an event now and after every change. If the file cannot be used, the
/// event says why.
///
/// # Errors
/// The errors of [`Watched::watch`].
pub async fn watch(path: PathBuf, events: mpsc::Sender<Event>) -> Result<(), WatchError> {
    let file = Watched { what: "the node list", path: path.clone(), limit: LARGEST };
    file.watch(&events, move |file| match file {
        Ok(file) => match list::parse(&path, file) {
            Ok(Entries { records, problems }) => {
                info!(path = %path.display(), nodes = records.len(), "node list read");
                Event::Nodes(NodeList { records, problems, age: Duration::ZERO })
            }
            Err(error) => Event::NodeListUnusable(error.to_string()),
        },
        Err(reason) => Event::NodeListUnusable(reason),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::IpAddr;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::process::Command;

    use serde_json::Value;

    use super::*;
    use crate::objects::list::FileError;
    use podwire_core::cluster::{NodeProblem, NodeRecord};

    const JSON: &str = include_str!("../../../testdata/kubernetes/nodes.json");
    const YAML: &str = include_str!("../../../testdata/kubernetes/nodes.yaml");
    const DUAL: &str = include_str!("../../../testdata/dual-stack/nodes.json");

    fn parse(path: &Path, text: &[u8]) -> Result<Entries, FileError> {
        list::parse(path, text)
    }

    fn parsed(text: &str) -> (Vec<NodeRecord>, Vec<NodeProblem>) {
        let Entries { records, problems } = parse(Path::new("nodes"), text.as_bytes()).unwrap();
        (records, problems)
    }

    fn node(name: &str) -> Value {
        serde_json::json!({
            "kind": "Node",
            "metadata": { "name": name },
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "10.200.0.1" }] },
        })
    }

    fn list(items: &[Value]) -> String {
        serde_json::json!({ "kind": "List", "items": items }).to_string()
    }

    #[test]
    fn what_kubectl_prints_is_read_in_both_formats() {
        let (records, problems) = parsed(JSON);
        assert_eq!(problems, []);
        let names: Vec<_> = records.iter().map(|record| record.name.as_str()).collect();
        assert_eq!(names, ["node1", "node2"]);
        assert_eq!(records[1].pod_networks, ["10.244.2.0/24".parse().unwrap()]);
        assert_eq!(records[1].internal_addresses, ["10.200.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(parsed(YAML).0, records);
    }

    #[test]
    fn both_families_are_read_in_the_order_of_the_object() {
        let (records, problems) = parsed(DUAL);
        assert_eq!(problems, []);
        let of_second = ["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()];
        assert_eq!(records[1].pod_networks, of_second);
        let addresses = ["172.31.0.2", "fd00:172:31::2"].map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(records[1].internal_addresses, addresses);
    }

    #[test]
    fn a_single_node_is_read() {
        assert_eq!(parsed(&node("node1").to_string()).0.len(), 1);
    }

    #[test]
    fn a_malformed_entry_is_named_and_the_others_are_read() {
        let mut bad_network = node("bad-network");
        bad_network["spec"]["podCIDR"] = "10.244.1.0".into();
        let mut bad_address = node("bad-address");
        bad_address["status"]["addresses"][0]["address"] = "nowhere".into();
        let nameless = serde_json::json!({ "kind": "Node", "metadata": {} });
        let (records, problems) = parsed(&list(&[bad_network, nameless, node("good"), bad_address]));
        assert_eq!(records.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["good"]);
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(
            said[0].contains("node bad-network") && said[0].contains("`10.244.1.0` is not a network"),
            "{said:?}"
        );
        assert!(said[1].contains("entry 2") && said[1].contains("name"), "{said:?}");
        assert!(said[2].contains("node bad-address") && said[2].contains("`nowhere`"), "{said:?}");
    }

    #[test]
    fn a_node_that_has_nothing_yet_is_an_entry_without_networks() {
        let (records, problems) = parsed(&list(&[serde_json::json!({ "metadata": { "name": "new" } })]));
        assert_eq!(problems, []);
        assert!(records[0].pod_networks.is_empty() && records[0].internal_addresses.is_empty());
    }

    #[test]
    fn what_is_no_node_list_is_refused_as_a_whole() {
        for text in ["", "{", "[]", "hello", "{}", r#"{"kind":"Pod"}"#, r#"{"kind":"List","items":3}"#] {
            assert!(parse(Path::new("nodes.json"), text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_large_cluster_is_read_as_yaml() {
        let entry = |index: usize| {
            format!(
                "- kind: Node\n  metadata:\n    name: node{index}\n  spec:\n    podCIDR: 10.{}.{}.0/24\n",
                index / 256,
                index % 256
            )
        };
        let text: String =
            ["kind: List\nitems:\n".to_owned()].into_iter().chain((0..5000).map(entry)).collect();
        assert_eq!(parsed(&text).0.len(), 5000);
    }

    fn change(event: Option<Event>) -> Vec<String> {
        match event {
            Some(Event::Nodes(list)) => list.records.into_iter().map(|record| record.name).collect(),
            other => panic!("a node list was expected, not {other:?}"),
        }
    }

    /// Runs `steps` beside a watcher of a file in a temporary folder.
    fn with_watcher<F: Future<Output = ()>>(steps: impl FnOnce(PathBuf, mpsc::Receiver<Event>) -> F) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.json");
        std::fs::write(&path, list(&[node("first")])).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, events) = mpsc::channel(8);
            let watching = tokio::spawn(watch(path.clone(), sender));
            steps(path, events).await;
            watching.abort();
        });
    }

    #[test]
    fn a_changed_file_is_read_again_however_it_is_changed() {
        with_watcher(async |path, mut events| {
            assert_eq!(change(events.recv().await), ["first"]);
            std::fs::write(&path, list(&[node("written")])).unwrap();
            assert_eq!(change(events.recv().await), ["written"]);
            let beside = path.with_extension("new");
            std::fs::write(&beside, list(&[node("renamed")])).unwrap();
            std::fs::rename(&beside, &path).unwrap();
            assert_eq!(change(events.recv().await), ["renamed"]);
        });
    }

    #[test]
    fn a_file_that_cannot_be_used_says_why_once() {
        with_watcher(async |path, mut events| {
            assert_eq!(change(events.recv().await), ["first"]);
            std::fs::write(&path, "{ half a").unwrap();
            unusable(events.recv().await, "decode");
            std::fs::write(path.with_file_name("another file of the folder"), "").unwrap();
            tokio::time::sleep(4 * crate::watched_file::SETTLE).await;
            std::fs::remove_file(&path).unwrap();
            unusable(events.recv().await, "No such file");
            std::fs::write(&path, list(&[node("good again")])).unwrap();
            assert_eq!(change(events.recv().await), ["good again"]);
        });
    }

    /// Returns the next list. Skips events that say that there was no usable list for a moment.
    async fn list_after(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
        loop {
            match events.recv().await {
                Some(Event::NodeListUnusable(_)) => {}
                other => return change(other),
            }
        }
    }

    #[test]
    fn a_folder_or_link_on_the_way_may_be_replaced() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let write = |path: &str, name: &str| {
            fs::create_dir_all(at(path)).unwrap();
            fs::write(at(path).join("nodes.json"), list(&[node(name)])).unwrap();
        };
        write("top/real/sub", "first");
        symlink("real", at("top/link")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut events) = mpsc::channel(8);
            let watching = tokio::spawn(watch(at("top/link/sub/nodes.json"), sender));
            assert_eq!(list_after(&mut events).await, ["first"]);
            // Several rounds: each time the watcher watches another folder.
            for round in ["one", "two", "three"] {
                let name = |what: &str| format!("{what} {round}");
                fs::remove_dir_all(at("top/real/sub")).unwrap();
                write("top/real/sub", &name("made anew"));
                assert_eq!(list_after(&mut events).await, [name("made anew")]);

                write(&format!("top/{round}/sub"), &name("linked"));
                symlink(round, at("top/swapped")).unwrap();
                fs::rename(at("top/swapped"), at("top/link")).unwrap();
                assert_eq!(list_after(&mut events).await, [name("linked")]);

                fs::rename(at("top"), at(&format!("before {round}"))).unwrap();
                write("top/real/sub", &name("renamed"));
                symlink("real", at("top/link")).unwrap();
                assert_eq!(list_after(&mut events).await, [name("renamed")]);
            }
            watching.abort();
        });
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_named() {
        with_watcher(async |path, mut events| {
            assert_eq!(change(events.recv().await), ["first"]);
            let beside = path.with_extension("new");
            assert!(Command::new("mkfifo").arg(&beside).status().unwrap().success());
            fs::rename(&beside, &path).unwrap();
            unusable(events.recv().await, "no regular file");
            File::create(&beside).unwrap().set_len(LARGEST + 1).unwrap();
            fs::rename(&beside, &path).unwrap();
            unusable(events.recv().await, "67108865 bytes, more than the 67108864");
            fs::write(&beside, list(&[node("good again")])).unwrap();
            fs::rename(&beside, &path).unwrap();
            assert_eq!(change(events.recv().await), ["good again"]);
        });
    }

    /// Runs in a separate process with a user that may not have an inotify instance.
    #[test]
    fn a_file_is_looked_at_where_inotify_is_used_up() {
        const NAME: &str = "nodes::file::tests::a_file_is_looked_at_where_inotify_is_used_up";
        const INSIDE: &str = "PODWIRE_WITHOUT_INOTIFY";
        if std::env::var_os(INSIDE).is_none() {
            let script = r#"echo 0 > /proc/sys/user/max_inotify_instances && exec "$@""#;
            let mut child = Command::new("unshare");
            child.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
            child.arg(std::env::current_exe().unwrap()).args([NAME, "--exact", "--nocapture"]);
            let output = child.env(INSIDE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{output:?}");
            assert!(said.contains("fs.inotify.max_user_instances"), "{said}");
            return;
        }
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        with_watcher(async |path, mut events| {
            assert_eq!(change(events.recv().await), ["first"]);
            for name in ["second", "third"] {
                fs::write(&path, list(&[node(name)])).unwrap();
                assert_eq!(list_after(&mut events).await, [name]);
            }
        });
    }

    #[test]
    fn a_list_is_bounded_in_entries_their_size_and_depth() {
        let refused = |text: &str| parse(Path::new("nodes"), text.as_bytes()).unwrap_err().to_string();
        let entries = 20_001;
        let json = format!(r#"{{"kind":"List","items":[{}1]}}"#, "1,".repeat(entries));
        let yaml = format!("kind: List\nitems:\n{}", "- a: [1, 2, 3]\n".repeat(entries));
        for text in [&json, &yaml] {
            assert!(refused(text).contains("more than 20000 entries"), "{}", refused(text));
        }
        let json = format!(r#"{{"kind":"List","items":[[{}1]]}}"#, "1,".repeat(1 << 20));
        let yaml = format!("kind: List\nitems:\n- a:\n{}", "  - b: [1, 2, 3]\n".repeat(1 << 18));
        let status = format!("kind: Node\nstatus:\n{}", "  - b: [1, 2, 3]\n".repeat(1 << 18));
        for text in [&json, &yaml, &status] {
            assert!(refused(text).contains("more than 2097152 bytes"), "{}", refused(text));
        }
        let deep = |opening: &str, closing: &str| format!("{}{}", opening.repeat(1000), closing.repeat(1000));
        for text in [
            format!(r#"{{"kind":"List","items":[{}]}}"#, deep("[", "]")),
            format!("kind: List\nitems:\n- {}", deep("[", "]")),
            format!("kind: Node\nstatus: {}1", deep("{a: ", "").trim_end()),
        ] {
            refused(&text);
        }
    }

    #[track_caller]
    fn unusable(event: Option<Event>, why: &str) {
        match event {
            Some(Event::NodeListUnusable(reason)) => assert!(reason.contains(why), "{reason}"),
            other => panic!("the list should be unusable ({why}), but the event is {other:?}"),
        }
    }
}
