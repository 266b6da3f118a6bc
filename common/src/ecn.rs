//! Explicit congestion notification across the tunnel (RFC 6040).

/// The two ECN bits of a traffic class byte (RFC 3168 section 5).
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, ECT(1).
pub const ECT_1: u8 = 0b01;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// Returns the outer traffic class for an inner one: copies DSCP and ECN (RFC 6040 section 4.1,
/// normal mode; RFC 2983 uniform model).
#[inline(always)]
pub const fn encapsulate(inner: u8) -> u8 {
    inner
}

/// Returns the inner traffic class after the outer header is removed (RFC 6040 section 4.2, figure
/// 4). `None`: the outer header marks congestion, but the inner packet is not ECN-capable. The
/// caller must drop it.
#[inline(always)]
pub const fn decapsulate(outer: u8, inner: u8) -> Option<u8> {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(inner | CE),
        (ECT_1, 0b10) => Some((inner & !MASK) | ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table_of_rfc_6040() {
        const ECT_0: u8 = 0b10;
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(decapsulate(outer, inner), expected, "outer {outer:02b} inner {inner:02b}");
            }
        }
    }

    #[test]
    fn dscp_of_the_inner_packet_stays() {
        assert_eq!(decapsulate(CE, 0b1011_1001), Some(0b1011_1011));
        assert_eq!(encapsulate(0b1011_1001), 0b1011_1001);
    }
}
