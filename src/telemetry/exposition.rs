//! Metrics as the text that Prometheus reads (text format 0.0.4). Written here and not by a library, since a scrape of a
//! thousand tools is some fifty thousand lines and has 10 ms: labels are escaped once per series and not per line.
//! Values of labels come from the configuration only.

use std::fmt::{self, Display, Write};

use crate::telemetry::meter::{BOUNDS_NS, Distribution};

/// The content type of what is written.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics being written.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
    /// The metric that is being written.
    name: &'static str,
    /// `_bucket`'s labels after the series' own, made once.
    bounds: Vec<String>,
}

/// Labels of one series, as they are written between braces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels(String);

impl Labels {
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in pairs {
            if !text.is_empty() {
                text.push(',');
            }
            let _ = write!(text, "{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        Self(text)
    }

    fn with(&self, name: &str, value: &str) -> Self {
        let more = Self::new(&[(name, value)]);
        if self.0.is_empty() { more } else { Self(format!("{},{}", self.0, more.0)) }
    }
}

impl Exposition {
    pub(crate) fn new() -> Self {
        let bounds = BOUNDS_NS.iter().map(|ns| format!(",le=\"{}\"}} ", Seconds(*ns))).collect();
        Self { bounds, ..Self::default() }
    }

    /// Begins a counter, whose name ends in `_total`.
    pub(crate) fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.begin(name, "counter", help)
    }

    /// Begins a gauge.
    pub(crate) fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.begin(name, "gauge", help)
    }

    /// Begins a histogram of seconds.
    pub(crate) fn histogram(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.begin(name, "histogram", help)
    }

    fn begin(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.name = name;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self
    }

    /// One value of the metric begun last.
    pub(crate) fn value(&mut self, labels: &Labels, value: impl Display) -> &mut Self {
        self.text.push_str(self.name);
        if !labels.0.is_empty() {
            self.text.push('{');
            self.text.push_str(&labels.0);
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
        self
    }

    /// The only value of a metric without labels.
    pub(crate) fn only(&mut self, value: impl Display) -> &mut Self {
        self.value(&Labels::default(), value)
    }

    /// One series of the histogram begun last.
    pub(crate) fn distribution(&mut self, labels: &Labels, of: &Distribution) -> &mut Self {
        let mut number = itoa::Buffer::new();
        let mut count = 0;
        for (bound, bucket) in self.bounds.iter().zip(&of.buckets) {
            count += bucket;
            self.text.push_str(self.name);
            self.text.push_str("_bucket{");
            self.text.push_str(&labels.0);
            self.text.push_str(bound);
            self.text.push_str(number.format(count));
            self.text.push('\n');
        }
        let (name, count) = (self.name, of.count());
        let infinite = labels.with("le", "+Inf");
        let _ = writeln!(self.text, "{name}_bucket{{{}}} {count}", infinite.0);
        let _ = writeln!(self.text, "{name}_sum{{{}}} {}", labels.0, Seconds(of.sum_ns));
        let _ = writeln!(self.text, "{name}_count{{{}}} {count}", labels.0);
        self
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Nanoseconds, written as seconds without a rounding error.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{rest:09}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_labels_are_written_as_prometheus_reads_them() {
        let mut text = Exposition::new();
        text.counter("a_total", "Things").value(&Labels::new(&[("tool", "a\"b\\c\nd")]), 3);
        text.gauge("b", "Others").only(1.5);
        assert_eq!(
            text.into_text(),
            "# HELP a_total Things\n# TYPE a_total counter\na_total{tool=\"a\\\"b\\\\c\\nd\"} 3\n\
             # HELP b Others\n# TYPE b gauge\nb 1.5\n"
        );
    }

    #[test]
    fn buckets_are_cumulative_and_end_in_infinity() {
        let mut of = Distribution { sum_ns: 1_500_000_000, ..Distribution::default() };
        (of.buckets[0], of.buckets[1], of.buckets[BOUNDS_NS.len()]) = (1, 2, 4);
        let mut text = Exposition::new();
        text.histogram("h_seconds", "Time").distribution(&Labels::new(&[("tool", "t")]), &of);
        let text = text.into_text();
        for line in [
            "h_seconds_bucket{tool=\"t\",le=\"0.000005\"} 1\n",
            "h_seconds_bucket{tool=\"t\",le=\"0.00001\"} 3\n",
            "h_seconds_bucket{tool=\"t\",le=\"30\"} 3\n",
            "h_seconds_bucket{tool=\"t\",le=\"+Inf\"} 7\n",
            "h_seconds_sum{tool=\"t\"} 1.5\n",
            "h_seconds_count{tool=\"t\"} 7\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
