//! Order statistics.

/// Returns the interpolated median; NaN if there are no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Returns the distance between the first and the third quartile.
pub(crate) fn interquartile_range(values: &[f64]) -> f64 {
    quantile(values, 0.75) - quantile(values, 0.25)
}

/// Returns the interpolated value that this share of the values does not exceed; NaN if there are
/// none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let below = place.floor();
    let (low, high) = (sorted[below as usize], sorted[place.ceil() as usize]);
    low + (high - low) * (place - below)
}

/// Formats a number with four significant figures.
pub(crate) fn short(value: f64) -> String {
    let decimals = (3 - value.abs().max(f64::MIN_POSITIVE).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_between_neighbours_in_order() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert_eq!(interquartile_range(&values), 1.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn numbers_are_shown_with_four_figures() {
        assert_eq!(short(3.070_4), "3.070");
        assert_eq!(short(16_601.0), "16601");
        assert_eq!(short(0.123_45), "0.1235");
        assert_eq!(short(0.0), "0.000000");
    }
}
