//! The wall clock, and the little of the calendar that a shop needs.

use std::time::{SystemTime, UNIX_EPOCH};

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// Milliseconds since 1970. For people and for dates on cards; nothing is measured with it.
#[expect(clippy::disallowed_methods, reason = "the one place where the shop reads the wall clock")]
pub(crate) fn unix_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// A month of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Month {
    pub(crate) year: i64,
    /// 1 to 12.
    pub(crate) month: i64,
}

impl Month {
    /// The month in which a moment lies.
    ///
    /// This is Howard Hinnant's `civil_from_days`: years that begin in March have their leap day at the end, and an era
    /// of 400 such years always has 146,097 days.
    pub(crate) fn of(unix_ms: i64) -> Self {
        let days = unix_ms.div_euclid(MS_PER_DAY) + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months_since_march = (5 * day_of_year + 2) / 153;
        let month = (months_since_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self { year, month }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_lies_in_its_month() {
        for (unix_s, year, month) in [
            (0, 1970, 1),
            (-1, 1969, 12),
            (951_782_400, 2000, 2), // 29 February
            (951_868_800, 2000, 3), // the day after
            (1_735_689_599, 2024, 12),
            (1_735_689_600, 2025, 1),
            (4_107_542_400, 2100, 3), // 2100 has no leap day
        ] {
            assert_eq!(Month::of(unix_s * 1000), Month { year, month }, "{unix_s}");
        }
    }
}
