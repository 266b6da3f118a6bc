//! How entries of earlier layouts become entries of this one.

use podwire_common::tables::Table;

/// A key and a value, in bytes.
pub type Entry = (Vec<u8>, Vec<u8>);

/// For the entries of one table.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The table.
    pub table: Table,
    /// The layout that had changed the table last, before this release's.
    pub from: u32,
    /// Gives the new key and value for an old key and value. `None`: the entry is left behind.
    pub entry: fn(&[u8], &[u8]) -> Option<Entry>,
}

/// Those of this release. No release has an earlier layout yet.
#[cfg(not(debug_assertions))]
pub const CONVERSIONS: &[Conversion] = &[];

/// Tests upgrade a debug build from an artificial layout 0 (the feature `earlier-layout` of
/// podwire-common): its entries begin with eight reserved bytes.
#[cfg(debug_assertions)]
pub const CONVERSIONS: &[Conversion] = &[
    Conversion { table: Table::Endpoints, from: 0, entry: without_reserved },
    Conversion { table: Table::Translations, from: 0, entry: without_reserved },
];

#[cfg(debug_assertions)]
fn without_reserved(key: &[u8], value: &[u8]) -> Option<Entry> {
    Some((key.to_vec(), value.get(8..)?.to_vec()))
}

/// The one for a table whose entries have the form of a layout.
pub(super) fn conversion(conversions: &[Conversion], table: Table, from: u32) -> Option<&Conversion> {
    conversions.iter().find(|conversion| conversion.table == table && conversion.from == from)
}
