//! The kernel's own types (BTF): finds the members of structures (kernel documentation,
//! `bpf/btf.rst`).

const MAGIC: u16 = 0xeb9f;
/// Bytes of the part that all kinds of types have.
const TYPE: usize = 12;
const MEMBER: usize = 12;

const INT: u32 = 1;
const POINTER: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
/// The deepest nesting of structures, and the longest chain of type names, that is followed.
const DEEPEST: usize = 16;

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its first bit, from the beginning of the structure.
    pub bit: u32,
    /// Its length in bits.
    pub bits: u32,
}

/// All types of one kernel.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// The position of each type. The index is the type's number minus one.
    places: Vec<usize>,
}

/// One type.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether the upper 8 bits of a member's offset hold the size of a bit field.
    has_bit_fields: bool,
    /// Its size in bytes, or the type that it refers to.
    size_or_type: u32,
    /// The part that depends on the kind.
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads the sections and finds the position of each type.
    ///
    /// # Errors
    /// A description of what the bytes lack.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err("the file does not begin with the magic number of BTF".into());
        }
        let header = number(bytes, 4)?;
        let section = |offset: usize| -> Result<&'a [u8], String> {
            let (start, length) =
                (header as usize + number(bytes, offset)? as usize, number(bytes, offset + 4)?);
            bytes.get(start..start + length as usize).ok_or_else(|| "the file ends too early".into())
        };
        let mut btf = Self { types: section(8)?, strings: section(16)?, places: Vec::new() };
        let mut place = 0;
        while place < btf.types.len() {
            btf.places.push(place);
            place += TYPE + btf.at(place)?.rest.len();
        }
        Ok(btf)
    }

    /// Finds a member of a structure, also within its unnamed structures and unions.
    ///
    /// # Errors
    /// There is no such structure, or no such member.
    pub fn member(&self, structure: &str, member: &str) -> Result<Member, String> {
        let found = self.places.iter().map(|place| self.at(*place));
        let found =
            found.flatten().find(|found| found.kind == STRUCT && self.is_named(found.name, structure));
        let found = found.ok_or_else(|| format!("there is no struct {structure}"))?;
        self.member_of(found, member, 0)?.ok_or_else(|| format!("struct {structure} has no {member}"))
    }

    fn member_of(&self, structure: Type<'a>, name: &str, depth: usize) -> Result<Option<Member>, String> {
        for member in structure.rest.chunks_exact(MEMBER) {
            let (member_name, id, offset) = (number(member, 0)?, number(member, 4)?, number(member, 8)?);
            let (bit, bits) =
                if structure.has_bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_named(member_name, name) {
                let bits = if bits == 0 { self.size(id)? * 8 } else { bits };
                return Ok(Some(Member { bit, bits }));
            }
            let inner = self.get(id)?;
            if member_name == 0
                && matches!(inner.kind, STRUCT | UNION)
                && depth < DEEPEST
                && let Some(found) = self.member_of(inner, name, depth + 1)?
            {
                return Ok(Some(Member { bit: bit + found.bit, ..found }));
            }
        }
        Ok(None)
    }

    /// Returns the size of a type in bytes.
    fn size(&self, mut id: u32) -> Result<u32, String> {
        for _ in 0..DEEPEST {
            let found = self.get(id)?;
            match found.kind {
                INT | STRUCT | UNION => return Ok(found.size_or_type),
                POINTER => return Ok(size_of::<*const u8>() as u32),
                TYPEDEF | VOLATILE | CONST => id = found.size_or_type,
                kind => return Err(format!("a member has a type of kind {kind}, which has no size")),
            }
        }
        Err("a chain of types is too long".into())
    }

    fn get(&self, id: u32) -> Result<Type<'a>, String> {
        let place = (id as usize).checked_sub(1).and_then(|index| self.places.get(index));
        self.at(*place.ok_or_else(|| format!("there is no type {id}"))?)
    }

    fn at(&self, place: usize) -> Result<Type<'a>, String> {
        let info = number(self.types, place + 4)?;
        let (count, kind) = (info as usize & 0xffff, info >> 24 & 0x1f);
        let rest = match kind {
            INT | 14 | 17 => 4,
            3 => 12,
            STRUCT | UNION | 15 | 19 => count * 12,
            6 | 13 => count * 8,
            POINTER | 7..=12 | 16 | 18 => 0,
            _ => return Err(format!("types of kind {kind} are unknown to this release")),
        };
        let start = place + TYPE;
        Ok(Type {
            name: number(self.types, place)?,
            kind,
            has_bit_fields: info >> 31 != 0,
            size_or_type: number(self.types, place + 8)?,
            rest: self.types.get(start..start + rest).ok_or("a type ends too early")?,
        })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn number(bytes: &[u8], offset: usize) -> Result<u32, String> {
    let bytes = bytes.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(|| "the file ends too early".into())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Types that a test writes in the kernel's format.
    #[derive(Default)]
    pub struct Written {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Written {
        pub fn new() -> Self {
            Self { strings: vec![0], ..Self::default() }
        }

        /// Adds a type and returns its number. `info` has kind, flag and count as the format
        /// defines them.
        fn add(&mut self, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
            let name = self.name(name);
            for number in [name, info, size_or_type].iter().chain(rest) {
                self.types.extend(number.to_ne_bytes());
            }
            self.count += 1;
            self.count
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let place = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            place
        }

        pub fn int(&mut self, name: &str, bytes: u32) -> u32 {
            self.add(name, INT << 24, bytes, &[bytes * 8])
        }

        pub fn typedef(&mut self, name: &str, of: u32) -> u32 {
            self.add(name, TYPEDEF << 24, of, &[])
        }

        pub fn pointer(&mut self, to: u32) -> u32 {
            self.add("", POINTER << 24, to, &[])
        }

        /// Adds types of kinds that the agent skips, each with the part that its kind adds.
        pub fn others(&mut self) {
            self.pointer(1);
            self.add("", 3 << 24, 0, &[1, 1, 7]);
            self.add("an_enum", 6 << 24 | 2, 4, &[0, 0, 0, 1]);
            self.add("a_wide_enum", 19 << 24 | 1, 8, &[0, 0, 0]);
            self.add("", 13 << 24 | 1, 1, &[0, 1]);
            self.add("a_function", 12 << 24, 5, &[]);
            self.add("a_variable", 14 << 24, 1, &[0]);
            self.add("a_section", 15 << 24 | 1, 4, &[7, 0, 4]);
            self.add("a_tag", 17 << 24, 1, &[0]);
        }

        /// Adds a structure. Each member has a name, a type, a first bit, and the bits of a bit
        /// field or 0.
        pub fn structure(&mut self, name: &str, members: &[(&str, u32, u32, u32)]) -> u32 {
            self.of_members(STRUCT, name, members)
        }

        pub fn union(&mut self, members: &[(&str, u32, u32, u32)]) -> u32 {
            self.of_members(UNION, "", members)
        }

        fn of_members(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32, u32)]) -> u32 {
            let members = members.iter();
            let written: Vec<u32> =
                members.flat_map(|(name, id, bit, bits)| [self.name(name), *id, bits << 24 | bit]).collect();
            self.add(name, 1 << 31 | kind << 24 | (written.len() / 3) as u32, 0, &written)
        }

        pub fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for number in [24, 0, types, types, strings] {
                bytes.extend(u32::to_ne_bytes(number));
            }
            [bytes, self.types.clone(), self.strings.clone()].concat()
        }
    }

    #[test]
    fn a_member_is_found_within_unnamed_ones() {
        let mut written = Written::new();
        let byte = written.int("unsigned char", 1);
        let short = written.int("short unsigned int", 2);
        let named = written.typedef("__u16", short);
        written.others();
        let pair = written.structure("", &[("start", named, 0, 0), ("offset", named, 16, 0)]);
        let either = written.union(&[("sum", short, 0, 0), ("", pair, 0, 0)]);
        written.structure("other", &[("start", byte, 0, 0)]);
        written.structure(
            "wanted",
            &[("flags", byte, 8, 2), ("more", byte, 10, 1), ("", either, 32, 0), ("pair", pair, 64, 0)],
        );
        let bytes = written.bytes();
        let types = Btf::parse(&bytes).unwrap();
        let found = |name| types.member("wanted", name);
        assert_eq!(found("flags"), Ok(Member { bit: 8, bits: 2 }));
        assert_eq!(found("more"), Ok(Member { bit: 10, bits: 1 }));
        assert_eq!(found("start"), Ok(Member { bit: 32, bits: 16 }));
        assert_eq!(found("offset"), Ok(Member { bit: 48, bits: 16 }));
        assert!(found("star").unwrap_err().contains("wanted has no star"));
        assert!(types.member("want", "flags").unwrap_err().contains("struct want"));
    }

    #[test]
    fn what_is_cut_or_something_else_is_named() {
        assert!(Btf::parse(b"").is_err() && Btf::parse(&[0; 100]).is_err());
        let mut written = Written::new();
        let short = written.int("short", 2);
        written.structure("wanted", &[("member", short, 0, 0)]);
        let bytes = written.bytes();
        for length in 0..bytes.len() {
            let cut = Btf::parse(&bytes[..length]);
            assert!(cut.is_err(), "{length}");
        }
    }
}
