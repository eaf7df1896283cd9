//! Names that are checked once, at the edge.

use std::{fmt, sync::Arc};

/// The name of a module: `cart`, `front-desk`. Cheap to clone.
///
/// Lower-case letters, digits and dashes, 63 bytes at the most, beginning with a letter and not ending with a dash: a
/// DNS label, since names become parts of keys, files and labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleName(Arc<str>);

impl ModuleName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadModuleName`] with the name.
    pub fn parse(name: &str) -> Result<Self, BadModuleName> {
        let letters = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let bytes = name.as_bytes();
        let good = bytes.len() <= 63
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last() != Some(&b'-')
            && bytes.iter().all(letters);
        if good { Ok(Self(name.into())) } else { Err(BadModuleName(name.to_owned())) }
    }

    /// The module that a node's own services (health, reflection) are accounted to.
    pub(crate) fn node() -> Self {
        Self("outpost".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A text that can't name a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` can't name a module: use 1 to 63 lower-case letters, digits and dashes, \
     beginning with a letter and not ending with a dash"
)]
pub struct BadModuleName(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "cart", "front-desk", "v2", &"x".repeat(63)] {
            assert_eq!(ModuleName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "Cart", "2nd", "-a", "a-", "a_b", "a.b", "käse", &"x".repeat(64)] {
            assert_eq!(ModuleName::parse(bad), Err(BadModuleName(bad.to_owned())));
        }
    }
}
