//! Faults of an API server, or of the connection to it.

use std::time::Duration;

/// A fault. It lasts until another one is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Requests get no answer, and watches get no more events. Connections stay open.
    Hang,
    /// Every answer has this status, with a Status object. Watches that exist already go on.
    Status(u16),
    /// Every answer about this kind of objects, by its name in URLs, has this status.
    KindRefused(&'static str, u16),
    /// Each answer ends after this number of body bytes, even in the middle of an object. Its
    /// connection ends with it.
    CutAfter(usize),
    /// The body of each answer comes in pieces of this number of bytes, with this pause between
    /// them.
    Slow(usize, Duration),
    /// Every watch ends at once and without an event, and so do the watches that exist already.
    WatchesEnd,
    /// Every new watch gets this error and ends.
    WatchesFail(u16),
    /// Every new watch from a version is refused with this status.
    VersionsRefused(u16),
    /// Every write of an Event is refused with this status.
    EventsRefused(u16),
    /// Every page after the first is refused as too old: 410.
    PagesExpire,
}
