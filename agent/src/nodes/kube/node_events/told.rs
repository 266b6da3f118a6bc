//! Which Kubernetes Events to write about the conditions of this node. This module decides; it
//! sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::conditions::{ConditionName, Conditions, Severity};

/// How long a condition of the severity [`Severity::Waiting`] holds before it has an Event: every
/// agent starts with such a condition.
const WAITING: Duration = Duration::from_secs(60);
/// The time after which the Event of a condition that still holds is repeated, as client-go repeats
/// a series. The API server keeps an Event for an hour.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// The most Events at once, and the time after which there may be one more: the limits of client-go
/// for one object.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5 * 60);
/// The most bytes of a note that an API server takes.
const LONGEST_NOTE: usize = 1024;

/// What an Event says of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Says {
    Holds,
    IsOver,
}

/// An Event object of the API server that was written `count` times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) object: String,
    pub(super) count: i32,
}

/// An Event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) name: ConditionName,
    pub(super) says: Says,
    pub(super) note: String,
    /// The object that has the same note already. `None`: make a new object.
    pub(super) earlier: Option<Series>,
}

/// The last Event of one condition that says one thing.
#[derive(Debug)]
struct Written {
    note: String,
    series: Series,
    at: Instant,
}

/// What the API server was told of one condition.
#[derive(Debug, Default)]
struct Track {
    /// When this module saw the condition first. `None` while it does not hold.
    since: Option<Instant>,
    /// Whether the last Event says that the condition holds.
    is_told: bool,
    written: BTreeMap<Says, Written>,
}

/// The reason why an Event is due, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Begun,
    Over,
    Changed,
    Repeat,
}

/// What the API server was told of all conditions, and how many Events it may be sent.
#[derive(Debug)]
pub(super) struct Told {
    tracks: BTreeMap<ConditionName, Track>,
    tokens: u32,
    refilled: Instant,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { tracks: BTreeMap::new(), tokens: BURST, refilled: now }
    }

    /// Notes which conditions hold now.
    pub(super) fn look(&mut self, conditions: &Conditions, now: Instant) {
        for name in ConditionName::ALL {
            let track = self.tracks.entry(*name).or_default();
            track.since = conditions.holds(*name).then(|| track.since.unwrap_or(now));
        }
        while now - self.refilled >= REFILL {
            self.refilled += REFILL;
            self.tokens = BURST.min(self.tokens + 1);
        }
    }

    /// Returns the most urgent Event, if one is due and the rate allows it. An Event that the caller
    /// could not write is due again.
    pub(super) fn next(&mut self, conditions: &Conditions, now: Instant) -> Option<Write> {
        if self.tokens == 0 {
            return None;
        }
        let due = self.tracks.iter().filter_map(|(name, track)| {
            let note = note(conditions, *name);
            let due = track.due(*name, note.as_deref(), now)?;
            Some((due, *name, note))
        });
        let (due, name, note) = due.min_by_key(|(due, name, _)| (*due, *name))?;
        self.tokens -= 1;
        let says = if due == Due::Over { Says::IsOver } else { Says::Holds };
        let note = note.unwrap_or_else(|| format!("the condition {} is over", name.name()));
        let written = self.tracks.get(&name).and_then(|track| track.written.get(&says));
        let earlier = written.filter(|written| written.note == note).map(|written| written.series.clone());
        Some(Write { name, says, note, earlier })
    }

    /// Notes that an Event was written, and to which object.
    pub(super) fn wrote(&mut self, write: Write, series: Series, now: Instant) {
        let track = self.tracks.entry(write.name).or_default();
        track.is_told = write.says == Says::Holds;
        track.written.insert(write.says, Written { note: write.note, series, at: now });
    }
}

impl Track {
    fn due(&self, name: ConditionName, note: Option<&str>, now: Instant) -> Option<Due> {
        let Some(note) = note else {
            return self.is_told.then_some(Due::Over);
        };
        let last = self.written.get(&Says::Holds).filter(|_| self.is_told);
        let Some(last) = last else {
            let is_waiting = name.severity() == Severity::Waiting;
            let is_due = !is_waiting || self.since.is_some_and(|since| now - since >= WAITING);
            return is_due.then_some(Due::Begun);
        };
        // A sentence that changes all the time must not use up what other conditions need.
        match now - last.at {
            age if last.note != note && age >= REFILL => Some(Due::Changed),
            age if age >= REPEAT => Some(Due::Repeat),
            _ => None,
        }
    }
}

/// Returns the sentence of a condition that holds, with its remedy.
fn note(conditions: &Conditions, name: ConditionName) -> Option<String> {
    let mut of_name = conditions.of(name);
    let first = of_name.next()?.sentence;
    let more = match of_name.count() {
        0 => String::new(),
        more => format!(" (and {more} more: `podwire status` names them)"),
    };
    let end = format!("{more} [{}]", name.remedy());
    Some(shortened(first, LONGEST_NOTE.saturating_sub(end.len())) + &end)
}

/// Returns a text of at most so many bytes.
fn shortened(text: &str, bytes: usize) -> String {
    const CUT: &str = "…";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub(CUT.len()));
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConditionName::{FirewallDrops, MtuTooLarge, NoRouteToNode, OwnNodeMissing};

    const SECOND: Duration = Duration::from_secs(1);

    /// An API server that takes every Event, and a clock that the test moves.
    struct Server {
        told: Told,
        conditions: Conditions,
        now: Instant,
        objects: i32,
    }

    impl Server {
        fn new() -> Self {
            let now = Instant::now();
            Self { told: Told::new(now), conditions: Conditions::default(), now, objects: 0 }
        }

        /// Moves the clock and writes what is due then: reason of the Event, what it says, and how
        /// many times its object was written.
        fn after(&mut self, time: Duration) -> Vec<(ConditionName, Says, i32)> {
            self.now += time;
            self.told.look(&self.conditions, self.now);
            let mut sent = Vec::new();
            while let Some(write) = self.told.next(&self.conditions, self.now) {
                assert!(write.note.len() <= LONGEST_NOTE, "{}", write.note.len());
                let series = match &write.earlier {
                    Some(Series { object, count }) => Series { object: object.clone(), count: count + 1 },
                    None => {
                        self.objects += 1;
                        Series { object: format!("event{}", self.objects), count: 1 }
                    }
                };
                sent.push((write.name, write.says, series.count));
                self.told.wrote(write, series, self.now);
            }
            sent
        }
    }

    #[test]
    fn it_begins_is_repeated_ends_and_begins_again() {
        let mut server = Server::new();
        assert_eq!(server.after(SECOND), []);
        server.conditions.set(FirewallDrops, "the chain FORWARD drops");
        assert_eq!(server.after(SECOND), [(FirewallDrops, Says::Holds, 1)]);
        assert_eq!(server.after(REPEAT - SECOND), []);
        assert_eq!(server.after(SECOND), [(FirewallDrops, Says::Holds, 2)]);
        server.conditions.clear(FirewallDrops);
        assert_eq!(server.after(SECOND), [(FirewallDrops, Says::IsOver, 1)]);
        assert_eq!(server.after(REPEAT), []);
        server.conditions.set(FirewallDrops, "the chain FORWARD drops");
        assert_eq!(server.after(SECOND), [(FirewallDrops, Says::Holds, 3)]);
        assert_eq!(server.objects, 2);
    }

    #[test]
    fn a_changed_sentence_is_a_new_object() {
        let mut server = Server::new();
        server.conditions.set(MtuTooLarge, "9000 bytes");
        assert_eq!(server.after(SECOND), [(MtuTooLarge, Says::Holds, 1)]);
        server.conditions.set(MtuTooLarge, "8000 bytes");
        assert_eq!(server.after(SECOND), [], "the last Event is a second old");
        assert_eq!(server.after(REFILL), [(MtuTooLarge, Says::Holds, 1)]);
        assert_eq!(server.objects, 2);
    }

    #[test]
    fn a_start_is_no_event_and_a_long_wait_is() {
        let mut server = Server::new();
        server.conditions.set(OwnNodeMissing, "no entry");
        assert_eq!(server.after(SECOND), []);
        assert_eq!(server.after(WAITING - SECOND), []);
        server.conditions.clear(OwnNodeMissing);
        assert_eq!(server.after(SECOND), []);
        server.conditions.set(OwnNodeMissing, "no entry");
        assert_eq!(server.after(SECOND), [], "the wait before is over");
        assert_eq!(server.after(WAITING), [(OwnNodeMissing, Says::Holds, 1)]);
    }

    #[test]
    fn subjects_share_an_event_that_counts_them() {
        let mut server = Server::new();
        let sentence = |node: u32| (format!("node{node:04}"), format!("no route to node{node:04}"));
        server.conditions.replace(NoRouteToNode, (0..1000).map(sentence));
        server.told.look(&server.conditions, server.now);
        let write = server.told.next(&server.conditions, server.now).unwrap();
        assert!(write.note.starts_with("no route to node0000 (and 999 more"), "{}", write.note);
        assert!(write.note.ends_with("[give this node a route to that node's InternalIP]"), "{}", write.note);
    }

    #[test]
    fn a_condition_that_comes_and_goes_is_no_flood() {
        let mut server = Server::new();
        let mut sent = 0;
        for _ in 0..500 {
            server.conditions.set(FirewallDrops, "the chain FORWARD drops");
            sent += server.after(SECOND).len();
            server.conditions.clear(FirewallDrops);
            sent += server.after(SECOND).len();
        }
        // A burst, and one for each of the three times five minutes.
        assert_eq!((sent, server.objects), (28, 2));
        // The first Event in five minutes is the one about what has just begun.
        server.conditions.set(MtuTooLarge, "9000 bytes");
        assert_eq!(server.after(REFILL)[0], (MtuTooLarge, Says::Holds, 1));
    }

    #[test]
    fn what_could_not_be_written_is_due_again() {
        let mut server = Server::new();
        server.conditions.set(FirewallDrops, "the chain FORWARD drops");
        server.told.look(&server.conditions, server.now);
        let write = server.told.next(&server.conditions, server.now).unwrap();
        assert_eq!(server.told.next(&server.conditions, server.now), Some(write));
        assert_eq!(server.after(SECOND), [(FirewallDrops, Says::Holds, 1)]);
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let mut server = Server::new();
        for shift in 0..3 {
            server.conditions.set(FirewallDrops, " ".repeat(shift) + &"ä".repeat(2000));
            let write = note(&server.conditions, FirewallDrops).unwrap();
            assert!((LONGEST_NOTE - 4..=LONGEST_NOTE).contains(&write.len()), "{}", write.len());
            assert!(write.ends_with("… [run the commands that the sentence names]"), "{write}");
        }
        assert_eq!(server.after(SECOND).len(), 1);
    }
}
