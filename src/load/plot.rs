//! Results as an SVG: a line for each figure over the rows, in their order. By hand, since it is three polylines and
//! their labels; colours that can be read on white and on black.

use std::fmt::Write;

use super::table::Row;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 70.0;

/// One line of the plot.
struct Series {
    name: &'static str,
    colour: &'static str,
    /// It is read off the right axis.
    right: bool,
    values: Vec<f64>,
}

/// Good answers per second (left axis) and latencies (right axis, in milliseconds) of each row.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn svg(title: &str, rows: &[Row]) -> String {
    let ms = |quantile: f64| rows.iter().map(|r| r.tally.ok_ns.value_at_quantile(quantile) as f64 / 1e6).collect();
    let series = [
        Series {
            name: "good answers per second",
            colour: "#2a7de1",
            right: false,
            values: rows.iter().map(|r| r.tally.goodput()).collect(),
        },
        Series {
            name: "offered per second",
            colour: "#8a8f98",
            right: false,
            values: rows.iter().map(|r| r.tally.offered()).collect(),
        },
        Series { name: "p50, ms", colour: "#2e9e5b", right: true, values: ms(0.5) },
        Series { name: "p99, ms", colour: "#d1495b", right: true, values: ms(0.99) },
    ];
    let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    draw(title, &labels, &series)
}

fn draw(title: &str, labels: &[&str], series: &[Series]) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#707680">
<text x="{LEFT}" y="20" font-size="15">{}</text>"##,
        escaped(title)
    );
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let top_of = |is_right: bool| {
        let values = series.iter().filter(|s| s.right == is_right).flat_map(|s| &s.values);
        rounded_up(values.copied().filter(|v| v.is_finite()).fold(0.0, f64::max))
    };
    let (left_max, right_max) = (top_of(false), top_of(true));
    #[allow(clippy::cast_precision_loss)]
    let x = |index: usize| match labels.len() {
        0 | 1 => f64::midpoint(LEFT, right),
        n => LEFT + (right - LEFT) * index as f64 / (n - 1) as f64,
    };
    let y = |value: f64, max: f64| bottom - (bottom - TOP) * value / max;
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        let at = y(share, 1.0);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}" stroke="#8a8f98" stroke-opacity="0.35"/>
<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><text x="{:.1}" y="{:.1}">{}</text>"##,
            LEFT - 8.0,
            at + 4.0,
            number(left_max * share),
            right + 8.0,
            at + 4.0,
            number(right_max * share)
        );
    }
    let _ = writeln!(
        svg,
        r#"<text x="{LEFT}" y="{:.1}">per second</text><text x="{right}" y="{:.1}" text-anchor="end">milliseconds</text>"#,
        TOP - 10.0,
        TOP - 10.0
    );
    let step = labels.len().div_ceil(10).max(1);
    for (index, label) in labels.iter().enumerate().step_by(step) {
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x(index),
            bottom + 20.0,
            escaped(&label.chars().take(24).collect::<String>())
        );
    }
    let mut legend_at = LEFT;
    for line in series {
        let max = if line.right { right_max } else { left_max };
        let points: Vec<(f64, f64)> = line.values.iter().enumerate().map(|(i, v)| (x(i), y(*v, max))).collect();
        let path: String = points.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
        let dash = if line.right { r#" stroke-dasharray="5 3""# } else { "" };
        let colour = line.colour;
        let _ = writeln!(svg, r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#);
        for (x, y) in &points {
            let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
        }
        let at = HEIGHT - 16.0;
        let _ = writeln!(
            svg,
            r#"<line x1="{legend_at:.0}" y1="{:.0}" x2="{:.0}" y2="{:.0}" stroke="{colour}" stroke-width="3"{dash}/><text x="{:.0}" y="{at:.0}">{}</text>"#,
            at - 4.0,
            legend_at + 22.0,
            at - 4.0,
            legend_at + 28.0,
            line.name
        );
        #[allow(clippy::cast_precision_loss)]
        let width = 60.0 + line.name.len() as f64 * 6.5;
        legend_at += width;
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The next of 1, 2, 5 times a power of ten: where an axis ends.
fn rounded_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * unit).find(|end| *end >= value).unwrap_or(value)
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, end) in [(0.0, 1.0), (0.9, 1.0), (1.1, 2.0), (4999.0, 5000.0), (5001.0, 10_000.0)] {
            assert!((rounded_up(value) - end).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let series = [Series { name: "s", colour: "#000000", right: false, values: vec![1.0] }];
        let svg = draw("<b> & co", &["a<b"], &series);
        assert!(svg.contains("&lt;b&gt; &amp; co") && svg.contains("a&lt;b") && svg.ends_with("</svg>\n"), "{svg}");
    }
}
