//! The versions of the CNI specification that the plugin speaks.

/// A version of the specification; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecVersion {
    /// The first version. A configuration without `cniVersion` means this one. A result has one
    /// address of each family.
    V0_1_0,
    /// Adds VERSION.
    V0_2_0,
    /// Adds rich results and chaining.
    V0_3_0,
    /// Changes only the wording of the specification.
    V0_3_1,
    /// Adds CHECK, and the previous result on DEL.
    V0_4_0,
    /// Removes `version` from an address of the result.
    V1_0_0,
    /// Adds STATUS, GC, and to the result the MTU of interfaces and attributes of routes.
    V1_1_0,
}

impl SpecVersion {
    pub(crate) const ALL: [SpecVersion; 7] = [
        SpecVersion::V0_1_0,
        SpecVersion::V0_2_0,
        SpecVersion::V0_3_0,
        SpecVersion::V0_3_1,
        SpecVersion::V0_4_0,
        SpecVersion::V1_0_0,
        SpecVersion::V1_1_0,
    ];
    pub(crate) const NEWEST: SpecVersion = SpecVersion::V1_1_0;

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            SpecVersion::V0_1_0 => "0.1.0",
            SpecVersion::V0_2_0 => "0.2.0",
            SpecVersion::V0_3_0 => "0.3.0",
            SpecVersion::V0_3_1 => "0.3.1",
            SpecVersion::V0_4_0 => "0.4.0",
            SpecVersion::V1_0_0 => "1.0.0",
            SpecVersion::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// Returns all versions, as messages list them.
    pub(crate) fn list() -> String {
        Self::ALL.map(SpecVersion::as_str).join(", ")
    }
}
