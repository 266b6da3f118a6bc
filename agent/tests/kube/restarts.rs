//! A cluster's own API server that restarts while an agent uses it.

use podwire::events::Event;
use podwire::objects::Pace;
use xtask::envtest::Binaries;

use crate::cluster::Cluster;
use crate::watching::{Watching, node, pace};

#[tokio::test]
async fn no_node_is_missed_or_lost_while_the_api_server_restarts() {
    let Some(binaries) = Binaries::from_environment().unwrap() else { return };
    let mut cluster = Cluster::start(binaries).await;
    cluster.bind_role().await;
    for number in 1..=2 {
        cluster.put(&node(number)).await;
    }
    let silent = Pace { silence: Pace::default().silence, ..pace() };
    let mut watching = Watching::with(cluster.direct_access(), silent, tempfile::tempdir().unwrap());
    assert_eq!(watching.names().await, ["node1", "node2"]);
    for number in [3, 4] {
        // The agent keeps asking while the API server restarts.
        cluster.restart().await;
        cluster.put(&node(number)).await;
        loop {
            match watching.next().await {
                Event::Nodes(list) if list.records.len() == number as usize => break,
                Event::Nodes(list) => assert_eq!(list.records.len() + 1, number as usize, "some are gone"),
                // The connection is refused first. After that, perhaps, the server is not ready, or
                // does not authorize requests yet.
                event => println!("{event:?}"),
            }
        }
    }
}
