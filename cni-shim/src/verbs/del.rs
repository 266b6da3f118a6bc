//! DEL: asks the agent to remove everything, and makes sure that the link is gone in any case.

use podwire_cni::fault::Step;
use podwire_cni::protocol::Attachment;

use super::taken;
use crate::agent::{Agent, REQUEST_DEADLINE, UNDO_DEADLINE};
use crate::config::Config;
use crate::error::CniError;
use crate::netlink::Netlink;
use crate::note;
use crate::veth;

/// Detaches a pod. A failing agent is no error: the plugin removes the link, and the agent later
/// releases attachments without a link.
pub(crate) fn del(config: &Config, attachment: &Attachment) -> Result<(), CniError> {
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    if let Err(error) = agent.del(attachment) {
        note(&format!(
            "{error}; the plugin removes the link itself, and the address is released when the agent is back"
        ));
    }
    taken(Step::DelAnswered)?;
    veth::delete(&mut Netlink::open()?, &attachment.host_interface())?;
    taken(Step::LinkLookedFor)
}

/// Undoes an ADD that had succeeded, and reports failures on standard error.
pub(crate) fn undo(config: &Config, attachment: &Attachment) {
    match Netlink::open() {
        Ok(mut host) => {
            undo_with(config, attachment, &mut host, true).iter().for_each(|trouble| note(trouble))
        }
        Err(error) => note(&error.to_string()),
    }
}

/// Undoes an ADD, and returns what failed.
pub(super) fn undo_with(
    config: &Config,
    attachment: &Attachment,
    host: &mut Netlink,
    agent_may_hold_it: bool,
) -> Vec<String> {
    let mut troubles = Vec::new();
    if agent_may_hold_it {
        let agent = Agent { socket: &config.socket, deadline: UNDO_DEADLINE };
        troubles.extend(agent.del(attachment).err().map(|error| error.to_string()));
    }
    troubles.extend(veth::delete(host, &attachment.host_interface()).err().map(|error| error.to_string()));
    troubles
}
