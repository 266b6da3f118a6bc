//! The offsets, in the running kernel, of the socket buffer fields that the programs read and that
//! their context lacks.

use std::fs;
use std::path::Path;

use podwire_common::abi::{SKB_WINDOW, SkbLayout};

use super::btf::{Btf, Member};
use super::error::DataplaneError;

/// The file with the kernel's types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// The alignment of the structure: a window begins at a multiple of it.
const ALIGNMENT: u32 = 8;

/// Returns the layout of the running kernel.
///
/// # Errors
/// [`DataplaneError::SkbLayout`].
pub fn of_running_kernel() -> Result<SkbLayout, DataplaneError> {
    of(Path::new(KERNEL_TYPES))
}

fn of(path: &Path) -> Result<SkbLayout, DataplaneError> {
    let found = fs::read(path).map_err(|error| error.to_string());
    found
        .and_then(|types| layout(&Btf::parse(&types)?))
        .map_err(|problem| DataplaneError::SkbLayout { path: path.to_owned(), problem })
}

fn layout(types: &Btf<'_>) -> Result<SkbLayout, String> {
    let member_of = |structure: &str, name: &str, bits: u32| -> Result<Member, String> {
        let found = types.member(structure, name)?;
        // A bit field must be within one byte, and a number must be at a multiple of its size.
        let last = found.bit + bits - 1;
        let fits = if bits < 8 { found.bit / 8 == last / 8 } else { found.bit % bits == 0 };
        if found.bits != bits || !fits {
            return Err(format!(
                "{structure}.{name} has {} bits at bit {}, and the programs can read only {bits} aligned bits",
                found.bits, found.bit
            ));
        }
        Ok(found)
    };
    let member = |name: &str, bits: u32| member_of("sk_buff", name, bits);
    let fields = [
        member("ip_summed", 2)?,
        member("encapsulation", 1)?,
        member("csum_start", 16)?,
        member("csum_offset", 16)?,
        member("mac_header", 16)?,
    ];
    let first = fields.iter().map(|field| field.bit).min().unwrap_or_default();
    let window = first / 8 / ALIGNMENT * ALIGNMENT;
    let end = fields.iter().map(|field| field.bit + field.bits).max().unwrap_or_default();
    if end > (window + SKB_WINDOW as u32) * 8 {
        return Err(format!("these fields of sk_buff do not fit into {SKB_WINDOW} bytes"));
    }
    let [ip_summed, encapsulation, csum_start, csum_offset, mac_header] =
        fields.map(|field| (field.bit - window * 8) as u16);
    Ok(SkbLayout {
        window: window as u16,
        ip_summed,
        encapsulation,
        csum_start: csum_start / 8,
        csum_offset: csum_offset / 8,
        mac_header: mac_header / 8,
        head: (member("head", u64::BITS)?.bit / 8) as u16,
        end: (member("end", u32::BITS)?.bit / 8) as u16,
        gso_type: (member_of("skb_shared_info", "gso_type", u32::BITS)?.bit / 8) as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::btf::tests::Written;

    /// Returns the layout of a structure as a kernel may have it. The parameters are: the byte
    /// where the flags begin, the bits of `ip_summed` and `encapsulation` after that byte, and the
    /// bytes of the checksum and of the link header.
    fn kernel(
        flags: u32,
        [summed, encapsulation]: [u32; 2],
        sum: u32,
        mac_header: u32,
    ) -> Result<SkbLayout, String> {
        let mut written = Written::new();
        let byte = written.int("unsigned char", 1);
        let short = written.int("short unsigned int", 2);
        let word = written.typedef("__u16", short);
        let pair = written.structure("", &[("csum_start", word, 0, 0), ("csum_offset", word, 16, 0)]);
        let either = written.union(&[("csum", word, 0, 0), ("", pair, 0, 0)]);
        // The same members twice, as `struct_group` makes them: once without a name, once with a
        // name.
        let headers = written.structure(
            "",
            &[
                ("ip_summed", byte, summed, 2),
                ("encapsulation", byte, encapsulation, 1),
                ("", either, (sum - flags) * 8, 0),
                ("mac_header", word, (mac_header - flags) * 8, 0),
            ],
        );
        let group = written.union(&[("", headers, 0, 0), ("headers", headers, 0, 0)]);
        let number = written.int("unsigned int", 4);
        let (data, pointer) = (written.typedef("sk_buff_data_t", number), written.pointer(byte));
        written.structure(
            "sk_buff",
            &[
                ("cloned", byte, 126 * 8, 1),
                ("", group, flags * 8, 0),
                ("end", data, 196 * 8, 0),
                ("head", pointer, 200 * 8, 0),
            ],
        );
        written.structure("skb_shared_info", &[("gso_type", number, 24 * 8, 0)]);
        layout(&Btf::parse(&written.bytes())?)
    }

    #[test]
    fn fields_are_found_where_a_kernel_has_them() {
        let expected = SkbLayout {
            window: 128,
            ip_summed: 5,
            encapsulation: 20,
            csum_start: 8,
            csum_offset: 10,
            mac_header: 54,
            head: 200,
            end: 196,
            gso_type: 24,
        };
        assert_eq!(kernel(128, [5, 20], 136, 182), Ok(expected));
        // The flags begin in the middle of eight bytes.
        let expected = SkbLayout {
            window: 128,
            ip_summed: 2 * 8 + 1,
            encapsulation: 2 * 8 + 26,
            csum_start: 8,
            csum_offset: 10,
            mac_header: 62,
            head: 200,
            end: 196,
            gso_type: 24,
        };
        assert_eq!(kernel(130, [1, 26], 136, 190), Ok(expected));
    }

    #[test]
    fn what_programs_cannot_read_at_once_is_refused() {
        assert!(kernel(128, [5, 20], 136, 128 + SKB_WINDOW as u32).unwrap_err().contains("64 bytes"));
        let split = kernel(128, [7, 20], 136, 182).unwrap_err();
        assert!(split.contains("ip_summed"), "{split}");
    }

    #[test]
    fn this_kernel_says_where_they_are() {
        let layout = of_running_kernel().unwrap();
        assert_eq!(layout.csum_offset, layout.csum_start + 2);
        assert!(layout.mac_header > layout.csum_offset);
        assert!(layout.head > layout.window && layout.end > layout.window && layout.gso_type > 0);
    }

    #[test]
    fn a_kernel_that_says_nothing_is_named_with_what_to_do() {
        let error = of(Path::new("/nonexistent/vmlinux")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/vmlinux") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
