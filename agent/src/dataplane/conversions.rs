//! Conversions of entries from earlier layouts to this one.

use podwire_common::tables::Table;

/// A key and a value, in bytes.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The conversion of one table's entries.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The table.
    pub table: Table,
    /// The earlier layout of the table: the last one that changed the table before this release's.
    pub from: u32,
    /// Converts an old key and value to new ones. `None`: the entry is left behind.
    pub entry: fn(&[u8], &[u8]) -> Option<Entry>,
}

/// The conversions of this release. No release has an earlier layout yet.
#[cfg(not(debug_assertions))]
pub const CONVERSIONS: &[Conversion] = &[];

/// A debug build converts from an artificial layout 0 (the feature `earlier-layout` of
/// podwire-common), so that tests can upgrade it. Entries of that layout begin with eight reserved
/// bytes.
#[cfg(debug_assertions)]
pub const CONVERSIONS: &[Conversion] = &[
    Conversion { table: Table::Endpoints, from: 0, entry: without_reserved },
    Conversion { table: Table::Translations, from: 0, entry: without_reserved },
];

#[cfg(debug_assertions)]
fn without_reserved(key: &[u8], value: &[u8]) -> Option<Entry> {
    Some((key.to_vec(), value.get(8..)?.to_vec()))
}

/// Returns the conversion for a table with entries in the form of layout `from`.
pub(super) fn conversion(conversions: &[Conversion], table: Table, from: u32) -> Option<&Conversion> {
    conversions.iter().find(|conversion| conversion.table == table && conversion.from == from)
}
