//! Results as an SVG on white, by hand, since it is bars, lines and their labels. Rows that differ in their rate become
//! lines over an axis of rates; all others, and configurations, are bars: between them there is nothing. Rates and
//! latencies stand side by side, each with an axis of its own.

use std::fmt::Write;

use super::{compare::Compared, figures::Figures, table::Row, table::shortened};

const WIDTH: f64 = 1000.0;
const TOP: f64 = 64.0;
/// Both charts of a panel: where they begin, and how wide they are.
const CHART_WIDTH: f64 = 310.0;
const BARS_AT: [f64; 2] = [280.0, 650.0];
const LINES_AT: [f64; 2] = [80.0, 560.0];
const LINES_WIDTH: f64 = 400.0;
const LINES_HEIGHT: f64 = 240.0;
const BAR_HEIGHT: f64 = 12.0;
/// Between two groups of bars.
const GAP: f64 = 12.0;
/// Below a chart, for its ticks and what they are of.
const BELOW: f64 = 80.0;

/// What is drawn of each row.
struct Series {
    name: &'static str,
    colour: &'static str,
    /// It stands in the chart of latencies.
    is_ms: bool,
    of: fn(&Figures) -> Option<f64>,
}

const SERIES: [Series; 6] = [
    Series { name: "offered", colour: "#9aa0a6", is_ms: false, of: |f| f.offered },
    Series { name: "good", colour: "#2a7de1", is_ms: false, of: |f| Some(f.good) },
    Series { name: "refused", colour: "#e08b1d", is_ms: false, of: |f| Some(f.refused) },
    Series { name: "failed", colour: "#7b3fa0", is_ms: false, of: |f| Some(f.failed) },
    Series { name: "p50", colour: "#2e9e5b", is_ms: true, of: |f| f.p50_ms },
    Series { name: "p99", colour: "#d1495b", is_ms: true, of: |f| f.p99_ms },
];

/// A row or a configuration: its label, where it stands on an axis of rates, and its figures.
struct Point {
    label: String,
    rate: f64,
    figures: Figures,
}

/// Stretches of load: those with the same connections and several rates as lines, the others as bars.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn rows(title: &str, rows: &[Row]) -> String {
    let point = |row: &&Row| Point {
        label: row.label.clone(),
        rate: row.rate.unwrap_or(row.connections as f64),
        figures: Figures::of(row),
    };
    let (mut bars, mut panels) = (Vec::new(), Vec::new());
    let mut connections: Vec<usize> = rows.iter().map(|row| row.connections).collect();
    connections.sort_unstable();
    connections.dedup();
    for connections in connections {
        let of = |open: bool| rows.iter().filter(move |r| r.connections == connections && r.rate.is_some() == open);
        bars.extend(of(false).collect::<Vec<_>>().iter().map(point));
        let open: Vec<Point> = sorted(of(true).collect::<Vec<_>>().iter().map(point).collect());
        match open.len() {
            0 => {}
            1 => bars.extend(open),
            _ => panels.push((format!("calls per second that were asked for, over {connections} connections"), open)),
        }
    }
    let mut drawing = Drawing::new();
    if !bars.is_empty() {
        drawing.bars(&bars);
    }
    for (axis, points) in &panels {
        drawing.lines(axis, points);
    }
    drawing.finish(title)
}

/// Configurations in their order.
pub(crate) fn compared(title: &str, compared: &[Compared]) -> String {
    let point = |c: &Compared| Some(Point { label: c.name.clone(), rate: 0.0, figures: c.figures()? });
    let mut drawing = Drawing::new();
    drawing.bars(&compared.iter().filter_map(point).collect::<Vec<_>>());
    drawing.finish(title)
}

fn sorted(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    points
}

/// The series of a chart that are more than nothing somewhere.
fn drawn(points: &[Point], is_ms: bool) -> Vec<&'static Series> {
    let has_value =
        |series: &&Series| points.iter().any(|point| (series.of)(&point.figures).is_some_and(|value| value > 0.0));
    SERIES.iter().filter(|series| series.is_ms == is_ms).filter(has_value).collect()
}

fn most(points: &[Point], series: &[&Series]) -> f64 {
    points.iter().flat_map(|p| series.iter().filter_map(|s| (s.of)(&p.figures))).fold(0.0, f64::max)
}

/// Panels, one below the other.
struct Drawing {
    svg: String,
    bottom: f64,
}

impl Drawing {
    fn new() -> Self {
        Self { svg: String::new(), bottom: TOP }
    }

    /// A group of horizontal bars for each point, with its label to the left.
    #[allow(clippy::cast_precision_loss)]
    fn bars(&mut self, points: &[Point]) {
        let charts = [drawn(points, false), drawn(points, true)];
        let in_group = charts.iter().map(Vec::len).max().unwrap_or(1) as f64;
        let group = in_group * BAR_HEIGHT + GAP;
        let (top, bottom) = (self.bottom, self.bottom + group * points.len() as f64);
        for (index, point) in points.iter().enumerate() {
            let at = top + group * (index as f64 + 0.5) - GAP / 2.0 + 4.0;
            self.text(BARS_AT[0] - 12.0, at, "end", &shortened(&point.label));
        }
        for ((series, left), unit) in charts.iter().zip(BARS_AT).zip(["per second", "ms"]) {
            let ticks = ticks(most(points, series));
            let end = ticks.last().map_or(1.0, |(value, _)| *value);
            for (value, label) in &ticks {
                let x = left + CHART_WIDTH * value / end;
                self.line((x, top - 6.0), (x, bottom), "#dadce0");
                self.text(x, bottom + 16.0, "middle", label);
            }
            for (index, point) in points.iter().enumerate() {
                for (number, one) in series.iter().enumerate() {
                    let Some(value) = (one.of)(&point.figures).filter(|value| *value > 0.0) else { continue };
                    let _ = writeln!(
                        self.svg,
                        r#"<rect x="{left}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{}"/>"#,
                        top + group * index as f64 + BAR_HEIGHT * number as f64,
                        (CHART_WIDTH * value / end).max(1.0),
                        BAR_HEIGHT - 2.0,
                        one.colour
                    );
                }
            }
            self.legend(left, bottom + 38.0, unit, series);
        }
        self.bottom = bottom + BELOW;
    }

    /// Figures over the rate, to scale.
    fn lines(&mut self, axis: &str, points: &[Point]) {
        let bottom = self.bottom + LINES_HEIGHT;
        let rates = ticks(points.iter().map(|point| point.rate).fold(0.0, f64::max));
        let rate_end = rates.last().map_or(1.0, |(value, _)| *value);
        for (left, is_ms) in LINES_AT.into_iter().zip([false, true]) {
            let series = drawn(points, is_ms);
            let ticks = ticks(most(points, &series));
            let end = ticks.last().map_or(1.0, |(value, _)| *value);
            for (value, label) in &ticks {
                let y = bottom - LINES_HEIGHT * value / end;
                self.line((left, y), (left + LINES_WIDTH, y), "#dadce0");
                self.text(left - 8.0, y + 4.0, "end", label);
            }
            for (value, label) in &rates {
                let x = left + LINES_WIDTH * value / rate_end;
                self.line((x, bottom), (x, bottom + 4.0), "#80868b");
                self.text(x, bottom + 18.0, "middle", label);
            }
            for one in &series {
                let of = |p: &Point| Some((p.rate, (one.of)(&p.figures)?));
                let path: Vec<(f64, f64)> = points
                    .iter()
                    .filter_map(of)
                    .map(|(rate, value)| (left + LINES_WIDTH * rate / rate_end, bottom - LINES_HEIGHT * value / end))
                    .collect();
                let joined: Vec<String> = path.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let (joined, colour) = (joined.join(" "), one.colour);
                let _ = writeln!(
                    self.svg,
                    r#"<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>"#
                );
                for (x, y) in path {
                    let _ = writeln!(self.svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
                }
            }
            self.text(left + LINES_WIDTH / 2.0, bottom + 36.0, "middle", axis);
            self.legend(left, bottom + 56.0, if is_ms { "ms" } else { "per second" }, &series);
        }
        self.bottom = bottom + BELOW + 24.0;
    }

    fn legend(&mut self, left: f64, y: f64, unit: &str, series: &[&Series]) {
        self.text(left, y, "start", &format!("{unit}:"));
        let mut x = left + 78.0;
        for one in series {
            let _ = writeln!(
                self.svg,
                r#"<rect x="{x}" y="{:.1}" width="12" height="10" fill="{}"/>"#,
                y - 9.0,
                one.colour
            );
            self.text(x + 17.0, y, "start", one.name);
            x += 80.0;
        }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let _ = writeln!(
            self.svg,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(self.svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    fn finish(self, title: &str) -> String {
        let (height, title, svg) = (self.bottom, escaped(title), self.svg);
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#3c4043">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="20" y="28" font-size="14">{title}</text>
{svg}</svg>
"##
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Where an axis has its ticks, from zero to at least `most`: at 1, 2 or 5 times a power of ten, and what stands there.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // four to eight, and a few digits
fn ticks(most: f64) -> Vec<(f64, String)> {
    let most = if most > 0.0 { most } else { 1.0 };
    let unit = 10_f64.powf((most / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * unit).into_iter().find(|step| most / step <= 5.0).unwrap_or(most);
    let decimals = (-step.log10() - 1e-9).ceil().max(0.0) as usize;
    let last = (most / step - 1e-9).ceil() as u32;
    (0..=last).map(|index| f64::from(index) * step).map(|value| (value, label(value, step, decimals))).collect()
}

fn label(value: f64, step: f64, decimals: usize) -> String {
    match step {
        _ if value == 0.0 => "0".to_owned(),
        step if step >= 999_999.0 => format!("{:.0}M", value / 1e6),
        step if step >= 999.9 => format!("{:.0}k", value / 1e3),
        _ => format!("{value:.decimals$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_say_where_they_are() {
        for (most, expected) in [
            (0.0, "0 0.2 0.4 0.6 0.8 1.0"),
            (12.4, "0 5 10 15"),
            (0.26, "0 0.1 0.2 0.3"),
            (0.013, "0 0.005 0.010 0.015"),
            (2400.0, "0 500 1000 1500 2000 2500"),
            (61_000.0, "0 20k 40k 60k 80k"),
            (5e6, "0 1M 2M 3M 4M 5M"),
        ] {
            let labels: Vec<_> = ticks(most).into_iter().map(|(_, label)| label).collect();
            assert_eq!(labels.join(" "), expected, "{most}");
            assert!(ticks(most).last().is_some_and(|(end, _)| *end >= most * 0.999), "{most}");
        }
    }

    #[test]
    fn bars_have_labels_and_no_lines() {
        let figures = Figures {
            offered: None,
            good: 10.0,
            refused: 5.0,
            failed: 0.0,
            p50_ms: None,
            p99_ms: Some(2.0),
            not_ok_percent: 0.0,
            per_cpu: None,
        };
        let mut drawing = Drawing::new();
        drawing.bars(&[Point { label: "a<b".into(), rate: 0.0, figures }]);
        let svg = drawing.finish("<b> & co");
        assert!(svg.contains("&lt;b&gt; &amp; co") && svg.contains("a&lt;b") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("refused") && !svg.contains("offered") && !svg.contains("polyline"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
