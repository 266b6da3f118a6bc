//! STATUS and GC.

use podwire_cni::protocol::{Attachment, Call, Gc, Reply, codes};
use serde_json::json;

use crate::VERSIONS;
use crate::lab::{Agent, Answer, Lab, failed};

#[test]
fn status_says_nothing_when_add_can_be_served_and_why_when_not() {
    let lab = Lab::new();
    let status = || lab.call("STATUS").config("cniVersion", json!("1.1.0"));
    let answer = |answer: Answer| Agent::start(&lab, move |_, _| answer.clone());
    {
        let agent = answer(Answer::Reply(Reply::Serving));
        let mut call = status();
        for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
            call = call.env(variable, "");
        }
        let output = call.run();
        output.succeeded();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
        assert_eq!(agent.requests(), [Call::Status]);
    }
    for (code, said) in
        [(codes::UNAVAILABLE, "no address is free"), (codes::UNAVAILABLE_AND_LIMITED, "no uplink")]
    {
        let _agent = answer(failed(code, said));
        status().run().failed_with(code, said);
    }
    for (answer_to, said) in [
        (failed(codes::DECODING_FAILURE, "version 1 of the protocol"), "version 1 of the protocol"),
        (Answer::HangUp, "closed the connection"),
        (Answer::Stall, "did not answer within 10 s"),
    ] {
        let _agent = answer(answer_to);
        status().run().failed_with(codes::UNAVAILABLE, said);
    }
    status().run().failed_with(codes::UNAVAILABLE, "no agent accepts");
}

#[test]
fn gc_hands_the_agent_what_is_to_stay_and_needs_a_list() {
    let lab = Lab::new();
    let gc = || lab.call("GC").config("cniVersion", json!("1.1.0"));
    let key = "cni.dev/valid-attachments";
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    gc().config(key, valid.clone()).run().failed_with(codes::TRY_AGAIN_LATER, "no agent accepts");
    let agent = Agent::start(&lab, |_, _| Answer::Reply(Reply::Collected(2)));
    gc().run().failed_with(codes::INVALID_CONFIGURATION, "cni.dev/valid-attachments is missing");
    assert_eq!(agent.requests(), []);
    let output = gc().config(key, valid).run();
    output.succeeded();
    assert_eq!(output.stdout, "");
    assert!(output.stderr.contains("2 attachments"), "{}", output.stderr);
    // libcni writes `null` for a list without entries.
    gc().config(key, json!(null)).run().succeeded();
    let attachment = Attachment { container_id: "c1".into(), interface: "eth0".into() };
    let asked = [vec![attachment], vec![]].map(|valid| Call::Gc(Gc { network: "podwire".into(), valid }));
    assert_eq!(agent.requests(), asked);
}

#[test]
fn a_verb_is_refused_in_a_version_that_did_not_have_it() {
    let lab = Lab::new();
    for (verb, since, before) in [
        ("CHECK", "0.4.0", &VERSIONS[..4]),
        ("STATUS", "1.1.0", &VERSIONS[..6]),
        ("GC", "1.1.0", &VERSIONS[..6]),
    ] {
        for version in before {
            let output = lab.call(verb).config("cniVersion", json!(version)).run();
            output.failed_with(codes::INCOMPATIBLE_VERSION, &format!("{verb} needs cniVersion {since}"));
            assert_eq!(output.json()["cniVersion"], *version);
        }
    }
    let call = lab.call("CHECK").config("prevResult", json!({}));
    call.run().failed_with(codes::TRY_AGAIN_LATER, "not running, not ready or overloaded");
}
