//! What an API server, or the way to it, does wrong.

use std::time::Duration;

/// One fault, which lasts until another one is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Requests get no answer, and watches hear nothing any more; connections stay.
    Hang,
    /// Every answer is this status, with its Status object; watches that are there go on.
    Status(u16),
    /// Each answer ends after so many bytes of its body, wherever that is, and the connection with it.
    CutAfter(usize),
    /// Each answer's body comes in pieces of so many bytes, with this pause between them.
    Slow(usize, Duration),
    /// Every watch ends at once and without a word, also those that are there.
    WatchesEnd,
    /// Every watch that begins is told this error, and ends.
    WatchesFail(u16),
    /// Every watch that begins after a version is refused with this status.
    VersionsRefused(u16),
    /// The page after the first is too old: 410.
    PagesExpire,
}
