//! Values with units, and how they are written.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use toml::Value;

/// A length of time, written `"10s"`, `"1m 30s"` or `"250ms"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(Duration);

impl Span {
    /// Whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Thousandths of a second.
    #[must_use]
    pub const fn milliseconds(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// The length.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes, written `"4MiB"`, `"64KiB"` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    #[must_use]
    pub const fn of_bytes(count: u64) -> Self {
        Self(count)
    }

    /// Units of 1,024 bytes.
    #[must_use]
    pub const fn kibibytes(count: u64) -> Self {
        Self(count << 10)
    }

    /// Units of 1,048,576 bytes.
    #[must_use]
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// An address to listen on, written `"127.0.0.1:7000"` or `"[::]:7000"`. Port 0 is any free port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(SocketAddr);

impl Listen {
    /// A port of this machine that other machines do not reach.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self((Ipv4Addr::LOCALHOST, port).into())
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads and writes a value as text; the error says what to write, whatever was written.
macro_rules! as_text {
    ($type:ty, $parse:expr, $expected:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(deserializer)?;
                let parse: fn(&Value) -> Option<$type> = $parse;
                parse(&value).ok_or_else(|| D::Error::custom($expected))
            }
        }
    };
}

as_text!(
    Span,
    |value| humantime::parse_duration(value.as_str()?).ok().map(Span),
    "expected a length of time: a number and a unit in quotes, such as \"10s\", \"1m 30s\" or \"250ms\""
);
as_text!(
    Size,
    |value| match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok().map(Size),
        other => other.as_str()?.parse::<bytesize::ByteSize>().ok().map(|size| Size(size.as_u64())),
    },
    "expected a number of bytes: a number, or a number and a unit in quotes, such as \"4MiB\" or \"64KiB\""
);
as_text!(
    Listen,
    |value| value.as_str()?.parse().ok().map(Listen),
    "expected an IP address and a port in quotes, such as \"127.0.0.1:7000\" or \"[::]:7000\""
);

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + for<'de> Deserialize<'de> + fmt::Debug>(text: &str) -> String {
        let value = Value::String(text.to_owned());
        let read: T = value.try_into().unwrap_or_else(|error| panic!("{text}: {error}"));
        Value::try_from(&read).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn units_are_printed_as_they_can_be_read() {
        for text in ["10s", "1m 30s", "250ms", "1h"] {
            assert_eq!(round_trip::<Span>(text), text);
        }
        for (text, printed) in [("4MiB", "4MiB"), ("1024", "1KiB"), ("1500B", "1500B"), ("1GB", "1000000000B")] {
            assert_eq!(round_trip::<Size>(text), printed);
        }
        assert_eq!(round_trip::<Listen>("[::1]:0"), "[::1]:0");
    }

    #[test]
    fn a_wrong_value_says_what_to_write() {
        let error = Value::Integer(10).try_into::<Span>().unwrap_err();
        assert!(error.to_string().contains("\"10s\""), "{error}");
        let error = Value::String("lots".into()).try_into::<Size>().unwrap_err();
        assert!(error.to_string().contains("\"4MiB\""), "{error}");
        let error = Value::String("localhost:80".into()).try_into::<Listen>().unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:7000"), "{error}");
    }
}
