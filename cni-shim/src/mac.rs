//! Ethernet addresses.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 02:42:ac:11:00:02")]
pub(crate) struct NotAMac(String);

impl Mac {
    /// The form that [`Self::unicast`] requires, for messages.
    pub(crate) const UNICAST: &'static str = "an interface's address is unicast, such as 02:42:ac:11:00:02";

    /// Returns the address in a text, if an interface can have it.
    pub(crate) fn unicast(text: &str) -> Option<Self> {
        let is_unicast = |mac: &Mac| mac.0[0] & 0x01 == 0 && mac.0 != [0; 6];
        text.parse().ok().filter(is_unicast)
    }

    /// Returns a unicast, locally administered address from the kernel's random bits.
    pub(crate) fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        // One call returns all bytes: a signal never interrupts getrandom(2) for less than 256
        // bytes.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        bytes[0] = bytes[0] & !0x01 | 0x02;
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let wrong = || NotAMac(text.to_owned());
        let bytes = text.split(':').map(|byte| match byte.len() {
            2 => u8::from_str_radix(byte, 16).map_err(|_| wrong()),
            _ => Err(wrong()),
        });
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
        bytes.try_into().map(Mac).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_are_unicast_locally_administered_and_differ() {
        let addresses: Vec<_> = (0..64).map(|_| Mac::random().unwrap()).collect();
        for address in &addresses {
            assert_eq!(address.0[0] & 0x03, 0x02, "{address}");
        }
        assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn text_goes_both_ways_in_either_case() {
        assert_eq!("02:42:AC:11:00:fe".parse::<Mac>().unwrap().to_string(), "02:42:ac:11:00:fe");
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:00:02",
            "02-42-ac-11-00-02",
            "zz:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(NotAMac(text.to_owned())));
        }
    }
}
