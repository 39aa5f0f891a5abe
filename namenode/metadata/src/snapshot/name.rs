//! The name of a snapshot that was given none.

/// `s` and the time in UTC, as `s20261126-211500.123`.
pub(super) fn of_time(time_ns: i64) -> String {
    let ms = time_ns.div_euclid(1_000_000);
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!("s{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{:03}", of_day % 1000)
}

/// The date so many days after 1970-01-01. Years are counted from March, so that the leap day is the last of one.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_years + of_years / 4 - of_years / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + of_years + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_names() {
        assert_eq!(of_time(0), "s19700101-000000.000");
        assert_eq!(of_time(951_782_399_999_000_000), "s20000228-235959.999");
        assert_eq!(of_time(951_782_400_000_000_000), "s20000229-000000.000");
        assert_eq!(of_time(1_795_727_700_123_456_789), "s20261126-211500.123");
    }
}
