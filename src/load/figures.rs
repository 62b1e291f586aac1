//! The figures that tables and plots show of a stretch of load, and their medians over several. One place for both, so
//! that what is drawn is what is printed.

use hdrhistogram::Histogram;

use super::{Tally, table::Row};

/// Rates are per second, the share is in percent. What does not apply or is not known is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Only an open loop offers anything; a closed one takes what it gets.
    pub(crate) offered: Option<f64>,
    pub(crate) good: f64,
    pub(crate) refused: f64,
    /// Tool errors, broken connections, what was late or never sent.
    pub(crate) failed: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) not_ok_percent: f64,
    /// Good answers in a second of the server's CPU time.
    pub(crate) per_cpu: Option<f64>,
}

/// Latencies of the good answers; `None` when there are none, or those of tool errors are among them.
pub(super) fn good_ns(tally: &Tally) -> Option<&Histogram<u64>> {
    (tally.ok > 0 && tally.ok_ns.len() == tally.ok).then_some(&tally.ok_ns)
}

#[allow(clippy::cast_precision_loss)]
pub(super) fn quantile_ms(of: &Histogram<u64>, quantile: f64) -> Option<f64> {
    (!of.is_empty()).then(|| of.value_at_quantile(quantile) as f64 / 1e6)
}

/// The middle value; of an even number the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
}

impl Figures {
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn of(row: &Row) -> Self {
        let tally = &row.tally;
        let per_second = |count: u64| count as f64 / tally.elapsed.as_secs_f64().max(1e-9);
        let ms = |quantile| good_ns(tally).and_then(|of| quantile_ms(of, quantile));
        Self {
            offered: row.rate.map(|_| tally.offered()),
            good: tally.goodput(),
            refused: per_second(tally.refused.values().sum()),
            failed: per_second(tally.tool_errors + tally.broken + tally.timed_out + tally.not_sent),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            not_ok_percent: if tally.sent + tally.not_sent == 0 { 0.0 } else { (1.0 - tally.success()) * 100.0 },
            per_cpu: row.per_cpu_second(),
        }
    }

    /// The median of each figure, for which no single row stands.
    pub(crate) fn median(of: &[Self]) -> Option<Self> {
        let over = |figure: fn(&Self) -> Option<f64>| median(of.iter().filter_map(figure).collect());
        Some(Self {
            offered: over(|f| f.offered),
            good: over(|f| Some(f.good))?,
            refused: over(|f| Some(f.refused))?,
            failed: over(|f| Some(f.failed))?,
            p50_ms: over(|f| f.p50_ms),
            p99_ms: over(|f| f.p99_ms),
            not_ok_percent: over(|f| Some(f.not_ok_percent))?,
            per_cpu: over(|f| f.per_cpu),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::End;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![4.0]), Some(4.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn each_figure_has_its_own_median() {
        let figures = |good, p99_ms| Figures {
            offered: None,
            good,
            refused: 0.0,
            failed: 0.0,
            p50_ms: None,
            p99_ms,
            not_ok_percent: 0.0,
            per_cpu: None,
        };
        let of = [figures(1.0, Some(9.0)), figures(2.0, None), figures(9.0, Some(1.0)), figures(4.0, Some(2.0))];
        assert_eq!(Figures::median(&of), Some(figures(3.0, Some(2.0))));
        assert_eq!(Figures::median(&[]), None);
    }

    #[test]
    fn tool_errors_have_no_part_in_good_latencies() {
        let mut tally = Tally::new().expect("a tally");
        tally.end(End::ToolError, std::time::Duration::from_millis(1));
        assert!(good_ns(&tally).is_none());
        tally.end(End::Ok, std::time::Duration::from_millis(1));
        assert!(good_ns(&tally).is_none_or(|good| good.len() == 1));
    }
}
